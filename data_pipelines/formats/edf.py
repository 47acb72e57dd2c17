"""EDF, EDF+ (continuous or not) and BDF: every signal at its own rate, codes of annotations as events.

Decoded by NumPy from the checked header (`edf_header`): the samples equal those of `edfio` and `pyedflib`.
"""

import re
from pathlib import Path

import numpy as np

from data_pipelines.errors import BadInput
from data_pipelines.formats.edf_header import BDF_MAGIC, EDF_MAGIC, EdfHeader, read_edf_header
from data_pipelines.recording import Channel, Event, Recording

# Annotations are free text, which may hold a name: only these become events.
_CODES = {
    text.lower(): text
    for text in (
        *(f"Sleep stage {stage}" for stage in ("W", "1", "2", "3", "4", "N1", "N2", "N3", "R", "?", "M")),
        "Movement time", "Lights on", "Lights off", "T0", "T1", "T2", "Arousal", "EEG arousal", "Apnea",
        "Obstructive apnea", "Central apnea", "Mixed apnea", "Hypopnea", "Obstructive hypopnea", "Central hypopnea",
        "Desaturation", "Limb movement", "Snore", "Seizure",
    )
}  # fmt: skip
# one annotation list: onset, perhaps a duration, texts; all between the record's zero bytes
_TAL = re.compile(rb"([-+]\d{1,9}(?:\.\d{1,9})?)(?:\x15(\d{1,9}(?:\.\d{1,9})?))?\x14([^\x00]*)\x14\x00")
_MOST_STRETCH = 4  # a file with gaps may become so many times as long


def recognises(path: Path, head: bytes) -> bool:
    """Whether a file begins as EDF or BDF does, and goes on with printable fields."""
    return head[:8] in (EDF_MAGIC, BDF_MAGIC) and len(head) >= 256 and all(32 <= byte < 127 for byte in head[168:192])


def person(path: Path, item: str = "") -> str:
    """The patient's code, without a signal being read; "" if there is none."""
    return read_edf_header(path).person()


def read(path: str | Path, item: str = "") -> Recording:
    """Reads an EDF or BDF file.

    Args:
        path: of the file.

    Returns:
        Channels in the file's units; gaps of a discontinuous file are NaN, and time counts from its first record.
        Labels: sex and age, where the patient's field tells them. Events: annotations of known codes.

    Raises:
        BadInput: see `edf_header.parse_edf_header`; also no signal but annotations, data records without onsets or in
            disorder, and gaps that would make the recording many times as long as the file.
    """
    header = read_edf_header(Path(path))
    if all(signal.is_annotations for signal in header.signals):
        raise BadInput(path, "annotations only", "at least one signal", "read it with the recording that it belongs to")
    table = _table(header)
    onsets = _onsets(header, table)
    positions, length = _places(header, onsets)
    channels, at = [], 0
    for signal in header.signals:
        if not signal.is_annotations:
            block = _digital(header, table, at, signal.samples)
            rate = signal.samples / header.seconds
            samples = _placed(_physical(block, signal), positions, length, header.seconds, rate)
            channels.append(Channel(signal.label, rate, signal.unit, samples))
        at += signal.samples
    events = _events(header, table, onsets[0] if len(onsets) else 0.0)
    name = header.person() or header.path.stem
    return Recording(
        tuple(channels), subject=name, study=header.path.stem, source="edf", labels=header.labels(), events=events
    )


def read_events(path: Path) -> tuple[Event, ...]:
    """The events of a file that may hold nothing else, such as a hypnogram; time counts from its own beginning."""
    header = read_edf_header(path)
    return _events(header, _table(header), 0.0)


def _table(header: EdfHeader) -> np.ndarray:
    """The data records' bytes, uint8 [records, bytes of one]."""
    try:
        raw = np.fromfile(header.path, np.uint8, offset=header.start)
    except OSError as error:
        found = f"a file that cannot be read ({error.strerror})"
        raise BadInput(header.path, found, "an EDF file", "check it") from None
    if raw.size != header.records * header.record_samples * header.width:
        raise BadInput(header.path, "a file that changed while it was read", "its full length", "read it again")
    return raw.reshape(header.records, -1)


def _digital(header: EdfHeader, table: np.ndarray, at: int, samples: int) -> np.ndarray:
    """One signal's samples, int32 or int16 [records, samples]."""
    raw = np.ascontiguousarray(table[:, at * header.width : (at + samples) * header.width])
    if header.width == 2:
        return raw.view("<i2")
    wide = np.zeros((header.records, samples, 4), np.uint8)
    wide[..., 1:] = raw.reshape(header.records, samples, 3)
    return wide.view("<i4")[..., 0] >> 8


def _physical(digital: np.ndarray, signal) -> np.ndarray:
    (low, high), (least, most) = signal.physical, signal.digital
    gain = (high - low) / (most - least)
    return ((digital + (high / gain - most)) * gain).astype(np.float32)


def _annotation_bytes(header: EdfHeader, table: np.ndarray) -> list[bytes]:
    """Of every data record, what its annotation signals hold."""
    columns, at = [], 0
    for signal in header.signals:
        if signal.is_annotations:
            columns.append(table[:, at * header.width : (at + signal.samples) * header.width])
        at += signal.samples
    return [
        b"\0".join(column[i].tobytes() for column in columns) + b"\0" for i in range(header.records if columns else 0)
    ]


def _onsets(header: EdfHeader, table: np.ndarray) -> list[float]:
    """Seconds of each data record's beginning, where the file is discontinuous."""
    if header.continuous:
        return []
    onsets = []
    for record in _annotation_bytes(header, table):
        first = _TAL.match(record)
        if not first:
            raise BadInput(
                header.path, "a data record without an onset", "one in every record of EDF+D", "export again"
            )
        onsets.append(float(first[1]))
    if len(onsets) != header.records:
        raise BadInput(header.path, "a discontinuous file without annotations", "onsets of its records", "export again")
    return onsets


def _places(header: EdfHeader, onsets: list[float]) -> tuple[np.ndarray, float]:
    """Seconds from the recording's beginning to each data record, and the recording's length."""
    if not onsets:
        return np.arange(header.records) * header.seconds, header.records * header.seconds
    places = np.array(onsets) - onsets[0]
    if (np.diff(places) < header.seconds - 1e-6).any():
        raise BadInput(header.path, "data records that overlap", "records in order of time", "export it again")
    length = places[-1] + header.seconds
    if length > _MOST_STRETCH * header.records * header.seconds + 60:
        found = "gaps that make the recording many times as long as what was recorded"
        raise BadInput(header.path, found, f"at most {_MOST_STRETCH} times", "split the file at its gaps")
    return places, float(length)


def _placed(blocks: np.ndarray, places: np.ndarray, length: float, seconds: float, rate: float) -> np.ndarray:
    if len(places) * seconds == length:
        return blocks.reshape(-1)
    out = np.full(round(length * rate), np.nan, np.float32)
    for block, place in zip(blocks, places):
        at = min(round(place * rate), len(out) - len(block))
        out[at : at + len(block)] = block
    return out


def _events(header: EdfHeader, table: np.ndarray, origin: float) -> tuple[Event, ...]:
    found = []
    for record in _annotation_bytes(header, table):
        for onset, seconds, texts in _TAL.findall(record):
            for text in texts.decode("utf-8", "replace").split("\x14"):
                if code := _CODES.get(text.strip().lower()):
                    found.append(Event(float(onset) - origin, float(seconds or 0), code))
    return tuple(sorted(found, key=lambda event: event.time))
