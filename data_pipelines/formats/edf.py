"""EDF, EDF+ (continuous or not) and BDF: every signal at its own rate, codes of annotations as events.

Decoded by NumPy from the checked header (`edf_header`): the samples equal those of `edfio` and `pyedflib`.
"""

import re
from pathlib import Path

import numpy as np

from data_pipelines.errors import BadInput
from data_pipelines.formats.edf_header import BDF_MAGIC, EDF_MAGIC, EdfHeader, read_edf_header
from data_pipelines.formats.scaling import physical
from data_pipelines.recording import Channel, Event, Recording

# Annotations are free text, which may hold a name: only these become events. British spelling is brought to ours.
_CODES = {
    text.lower(): text
    for text in (
        *(f"Sleep stage {stage}" for stage in ("W", "1", "2", "3", "4", "N1", "N2", "N3", "R", "?", "M")),
        "Movement time", "Lights on", "Lights off", "T0", "T1", "T2", "Arousal", "EEG arousal", "Apnea",
        "Obstructive apnea", "Central apnea", "Mixed apnea", "Hypopnea", "Obstructive hypopnea", "Central hypopnea",
        "Mixed hypopnea", "Desaturation", "Limb movement", "Snore", "Seizure",
    )
}  # fmt: skip
# an annotation list, cut at its final zero byte: onset, perhaps a duration, texts with 20 between them
_TAL = re.compile(rb"([-+]\d{1,12}(?:\.\d{0,12})?)(?:\x15(\d{1,12}(?:\.\d{0,12})?)?)?\x14(.*)", re.DOTALL)
# a file with gaps may become so many times as long: NaN of 4 bytes for samples of 2, and ten times the file at most
_MOST_STRETCH, _STRETCH_FLOOR = 3, 1 << 18


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
    notes = _annotation_lists(header, table)
    places, length = _places(header, notes)
    channels, at = [], 0
    for signal in header.signals:
        if not signal.is_annotations:
            (low, high), (least, most) = signal.physical, signal.digital
            gain = (high - low) / (most - least)
            blocks = physical(_digital(header, table, at, signal.samples), gain, before=high / gain - most)
            rate = signal.samples / header.seconds
            samples = _placed(blocks.reshape(header.records, -1), places, length, header.seconds, rate)
            channels.append(Channel(signal.label, rate, signal.unit, samples))
        at += signal.samples
    name = header.person() or header.path.stem
    return Recording(
        tuple(channels), subject=name, study=header.path.stem, source="edf", labels=header.labels(),
        events=_events(notes, _origin(notes)),
    )  # fmt: skip


def read_events(path: Path) -> tuple[Event, ...]:
    """The events of a file that may hold nothing else, such as a hypnogram; time counts from its own beginning."""
    header = read_edf_header(path)
    return _events(_annotation_lists(header, _table(header)), 0.0)


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
    """One signal's samples, int16 or int32 [samples of all records]."""
    raw = np.ascontiguousarray(table[:, at * header.width : (at + samples) * header.width])
    if header.width == 2:
        return raw.view("<i2").reshape(-1)
    wide = np.zeros((header.records * samples, 4), np.uint8)
    wide[:, 1:] = raw.reshape(-1, 3)
    digital = wide.view("<i4")[:, 0]
    digital >>= 8
    return digital


def _annotation_lists(header: EdfHeader, table: np.ndarray) -> list[list[re.Match]]:
    """Of every data record, its annotation lists; none at all if the file has no annotation signal."""
    columns, at = [], 0
    for signal in header.signals:
        if signal.is_annotations:
            columns.append(table[:, at * header.width : (at + signal.samples) * header.width])
        at += signal.samples
    # cut at zero bytes first: searching for lists in a record takes quadratic time where nothing ends one
    return [
        [found for column in columns for text in column[i].tobytes().split(b"\0") if (found := _TAL.fullmatch(text))]
        for i in range(header.records if columns else 0)
    ]


def _origin(notes: list[list[re.Match]]) -> float:
    """Onset of the first data record: below a second in a continuous file, any in a discontinuous one."""
    keeps_time = bool(notes and notes[0] and notes[0][0][3].startswith(b"\x14"))
    return float(notes[0][0][1]) if keeps_time else 0.0


def _places(header: EdfHeader, notes: list[list[re.Match]]) -> tuple[np.ndarray, float]:
    """Seconds from the recording's beginning to each data record, and the recording's length."""
    if header.continuous:
        return np.arange(header.records) * header.seconds, header.records * header.seconds
    if not notes or not all(lists and lists[0][3].startswith(b"\x14") for lists in notes):
        found, expected = "a data record without an onset", "one in every record of EDF+D"
        raise BadInput(header.path, found, expected, "export it again")
    onsets = np.array([float(lists[0][1]) for lists in notes])
    places = onsets - onsets[0]
    if (np.diff(places) < header.seconds - 1e-6).any():
        raise BadInput(header.path, "data records that overlap", "records in order of time", "export it again")
    length = float(places[-1]) + header.seconds
    stored = header.records * header.record_samples
    if length / header.seconds * header.record_samples > _MOST_STRETCH * stored + _STRETCH_FLOOR:
        found = "gaps that make the recording many times as long as what was recorded"
        raise BadInput(header.path, found, f"at most {_MOST_STRETCH} times", "split the file at its gaps")
    return places, length


def _placed(blocks: np.ndarray, places: np.ndarray, length: float, seconds: float, rate: float) -> np.ndarray:
    if len(places) * seconds == length:
        return blocks.reshape(-1)
    out = np.full(round(length * rate), np.nan, np.float32)
    for block, place in zip(blocks, places):
        at = min(round(place * rate), len(out) - len(block))
        out[at : at + len(block)] = block
    return out


def _events(notes: list[list[re.Match]], origin: float) -> tuple[Event, ...]:
    found = []
    for onset, seconds, texts in (note.groups() for lists in notes for note in lists):
        for text in texts.decode("utf-8", "replace").split("\x14"):
            # "Arousal@@EEG C4-A1": of one channel
            code = _CODES.get(text.partition("@@")[0].strip().lower().replace("pnoea", "pnea"))
            if code:
                found.append(Event(float(onset) - origin, float(seconds or 0), code))
    return tuple(sorted(found, key=lambda event: event.time))
