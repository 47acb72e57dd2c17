"""WFDB records: own decoder for formats 16, 24, 32, 61 and 212 (and the challenges' `.mat`), `wfdb` for the others.

The header says where the samples are, so the signal file's size is compared with the declared length before
anything is allocated, and the header's checksum of each signal with its samples after they are read: the `wfdb`
package does neither, and takes twenty times as long, nearly all of it for the header.
"""

import os
import re
import stat
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_pipelines.errors import BadInput
from data_pipelines.formats.wfdb_header import Header, Signal, comment_fields, comment_labels, read_header
from data_pipelines.recording import Channel, Recording

# signal(5): format -> (bytes per sample, the value that means "no sample")
_FORMATS = {
    8: (1, None), 16: (2, -(2**15)), 24: (3, -(2**23)), 32: (4, -(2**31)), 61: (2, -(2**15)), 80: (1, -(2**7)),
    160: (2, -(2**15)), 212: (1.5, -(2**11)), 310: (4 / 3, -(2**9)), 311: (4 / 3, -(2**9)),
    508: (0, -(2**7)), 516: (0, -(2**15)), 524: (0, -(2**23)),
}  # fmt: skip
_OWN = (16, 24, 32, 61, 212)  # 61 too: wfdb 4.3.1 fails on it unless it may scale to physical units
_FLAC = (508, 516, 524)
# FLAC's densest frame: a constant block of 65,535 samples in 14 bytes
_FLAC_SAMPLES_PER_BYTE = 65535 / 14
_RECORD_LINE = re.compile(rb"[^\s/]+(/\d+)?\s+\d+\s+[\d.]+\S*\s+\d+")
_PERSON = ("patient id", "subject id", "patient", "subject")
_MOST_GAP = 1 << 28  # samples of a multi-segment record that no segment holds: 1 GiB of NaN


def recognises(path: Path, head: bytes) -> bool:
    """Whether a file is a WFDB header: its first line that is no comment names a record and a number of signals."""
    lines = (line.strip() for line in head.split(b"\n"))
    first = next((line for line in lines if line and not line.startswith(b"#")), b"")
    return path.suffix == ".hea" or bool(_RECORD_LINE.match(first))


def person(path: Path, item: str = "") -> str:
    """The header's comment "Patient ID: ..." or "Subject ID: ..."; "" if there is none."""
    fields = comment_fields(read_header(path).comments)
    return next((fields[key] for key in _PERSON if fields.get(key)), "")


def parts(path: Path) -> list[Path]:
    """The signal files and the segments' headers that a header names: they are no recordings by themselves."""
    header = read_header(path)
    segments = [path.with_name(f"{name}.hea") for name, _ in header.segments if name != "~"]
    return sorted({path.with_name(signal.file) for signal in header.signals if signal.format}) + segments


def read(path: str | Path, item: str = "") -> Recording:
    """Reads a WFDB record.

    Args:
        path: of the header, `x.hea`.

    Returns:
        Channels in physical units, float32, NaN where the file holds the format's "no sample" value; signals with more
        samples per frame keep their own rate. Labels are those of the header's comments.

    Raises:
        BadInput: see `wfdb_header.parse_header`; also a missing or short signal file, an unknown format, a wrong
            checksum.
    """
    header = read_header(Path(path))
    channels = _segments(header) if header.segments else _channels(header)
    if not any(len(channel.signal) for channel in channels):
        raise BadInput(path, "no signal with samples", "at least one", "leave the record out")
    return Recording(
        channels, subject=header.record, study=header.record, source="wfdb", labels=comment_labels(header.comments),
        comments=header.comments,
    )  # fmt: skip


def _channels(header: Header) -> tuple[Channel, ...]:
    files: dict[str, list[int]] = {}
    for i, signal in enumerate(header.signals):
        if signal.format != 0:  # a null signal: it has a name, but no samples
            files.setdefault(signal.file, []).append(i)
    channels: dict[int, Channel] = {}
    for members in files.values():
        signals = [header.signals[i] for i in members]
        file = header.path.with_name(signals[0].file)
        frames = _frames(header, file, signals)
        if signals[0].format in _OWN:
            digital = _decode(file, signals, frames)
        else:
            digital = _decode_by_library(header, file, members, frames)
        _verify(file, signals, digital)
        for i, signal, samples in zip(members, signals, _physical(signals, digital)):
            channels[i] = Channel(signal.name, header.rate * signal.samples_per_frame, signal.unit, samples)
    return tuple(channels[i] for i in sorted(channels))


def _frames(header: Header, file: Path, signals: list[Signal]) -> int:
    """How many frames to read of one signal file: the declared number, if the file is long enough for it."""
    first = signals[0]
    if first.format not in _FORMATS or len({(s.format, s.offset) for s in signals}) > 1:
        raise BadInput(
            file, "an unknown storage format, or several in one file", f"one of {sorted(_FORMATS)}", "convert it"
        )
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError
    except OSError:
        remedy = "complete the copy of the dataset, or leave the record out"
        raise BadInput(file, "no such file", f"the signal file that {header.path.name} names", remedy) from None
    size, flac = status.st_size, first.format in _FLAC
    per_sample = 1 / _FLAC_SAMPLES_PER_BYTE if flac else _FORMATS[first.format][0]
    per_frame = per_sample * sum(s.samples_per_frame for s in signals)
    # the offset of a FLAC file counts samples, not bytes
    there = int((size - (0 if flac else first.offset)) / per_frame)
    frames = header.frames if header.frames is not None or flac else there
    if frames is None or frames <= 0 or there < frames:
        found, expected = f"{size} bytes", f"the {frames} frames that {header.path.name} declares"
        raise BadInput(file, found, expected, "replace the file or the header by the dataset's original")
    return frames


def _decode(file: Path, signals: list[Signal], frames: int) -> list[np.ndarray] | np.ndarray:
    """The digital samples of one signal file: [signals, frames], or a list where signals differ in rate."""
    width, form = sum(s.samples_per_frame for s in signals), signals[0].format
    count = frames * width
    dtype = {16: "<i2", 61: ">i2", 32: "<i4"}.get(form, "u1")
    items = {24: 3 * count, 212: (3 * count + 1) // 2}.get(form, count)
    try:
        raw = np.fromfile(file, dtype, items, offset=signals[0].offset)
    except OSError as error:
        raise BadInput(file, f"a file that cannot be read ({error.strerror})", "a signal file", "check it") from None
    if len(raw) != items:
        raise BadInput(file, "a file that shrank while it was read", f"{items} items", "read it again")
    if form == 24:
        raw = _from_24(raw)
    elif form == 212:
        raw = _from_212(raw)[:count]
    table = raw.reshape(frames, width).T
    if width == len(signals):
        return table  # sample by sample as in the file: it is put in order once, as float32
    ends = np.cumsum([s.samples_per_frame for s in signals])
    return [table[end - s.samples_per_frame : end].T.reshape(-1) for s, end in zip(signals, ends)]


def _from_24(raw: np.ndarray) -> np.ndarray:
    wide = np.zeros((len(raw) // 3, 4), np.uint8)
    wide[:, 1:] = raw.reshape(-1, 3)
    return wide.view("<i4")[:, 0] >> 8


def _from_212(raw: np.ndarray) -> np.ndarray:
    """Pairs of 12-bit samples in 3 bytes: low byte, two high nibbles, low byte."""
    raw = np.concatenate([raw, np.zeros(-len(raw) % 3, np.uint8)]).reshape(-1, 3).astype(np.int16)
    pairs = np.empty((len(raw), 2), np.int16)
    pairs[:, 0] = raw[:, 0] | (raw[:, 1] & 0x0F) << 8
    pairs[:, 1] = raw[:, 2] | (raw[:, 1] & 0xF0) << 4
    return pairs.reshape(-1) << 4 >> 4  # the shift left drops into the sign bit, the shift right extends it


def _decode_by_library(header: Header, file: Path, members: list[int], frames: int) -> list[np.ndarray]:
    import wfdb  # half a second, and only for the rare formats

    try:
        # unsmoothed: several samples per frame stay several; unskewed: the checksum is of the samples as stored
        record = wfdb.rdrecord(
            str(header.path.with_suffix("")), channels=members, sampto=frames, physical=False, smooth_frames=False,
            ignore_skew=True,
        )  # fmt: skip
    except Exception as error:  # its reader and the FLAC library raise whatever comes to hand
        found = f"samples that the wfdb package cannot decode ({type(error).__name__})"
        remedy = "replace the file by the dataset's original"
        raise BadInput(file, found, f"format {header.signals[members[0]].format}", remedy) from None
    return record.e_d_signal


def _verify(file: Path, signals: list[Signal], digital: list[np.ndarray] | np.ndarray) -> None:
    # summed in the samples' own type: it wraps at a multiple of 65,536, as the checksum does
    if isinstance(digital, np.ndarray):
        sums = _column_sums(digital.T)
    else:
        sums = [samples.sum(dtype=samples.dtype.type) for samples in digital]
    for signal, total in zip(signals, sums):
        if signal.checksum is not None and (int(total) - signal.checksum) & 0xFFFF:
            raise BadInput(
                file,
                f"samples of channel {signal.name} that do not add up to the header's checksum",
                "the samples that the header was written for",
                "replace the file by the dataset's original, or leave the record out",
            )


def _column_sums(table: np.ndarray) -> np.ndarray:
    """Of [frames, signals], wrapping; a hundred frames at a time, since NumPy is slow along short rows."""
    kind, whole = table.dtype.type, len(table) // 100 * 100
    blocks = table[:whole].reshape(-1, 100 * table.shape[1]).sum(axis=0, dtype=kind)
    return blocks.reshape(100, -1).sum(axis=0, dtype=kind) + table[whole:].sum(axis=0, dtype=kind)


def _physical(signals: list[Signal], digital: list[np.ndarray] | np.ndarray) -> list[np.ndarray]:
    """(digital - baseline) / gain, rounded once to float32.

    NaN for missing samples, and beyond the end of a skewed signal.
    """
    missing = _FORMATS[signals[0].format][1]
    gains, baselines = _scales(tuple([s.gain for s in signals]), tuple([s.baseline for s in signals]))
    if isinstance(digital, np.ndarray):
        rows = list(_scaled(digital, gains[:, None], baselines[:, None], missing))
    else:
        rows = [_scaled(*row, missing) for row in zip(digital, gains, baselines)]
    for i, signal in enumerate(signals):
        if signal.skew:
            late = min(signal.skew * signal.samples_per_frame, len(rows[i]))
            rows[i] = np.concatenate([rows[i][late:], np.full(late, np.nan, np.float32)])
    return rows


@lru_cache(maxsize=256)
def _scales(gains: tuple[float, ...], baselines: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(gains), np.array(baselines)


def _scaled(digital: np.ndarray, gain: np.ndarray, baseline: np.ndarray, missing: int | None) -> np.ndarray:
    # float32 division of numbers that float32 holds exactly rounds as float64 division does, at half the cost
    single = gain.astype(np.float32)
    exact = digital.dtype.itemsize <= 2 and (single == gain).all() and (np.abs(baseline) < 1 << 23).all()
    values = np.empty(digital.shape, np.float32 if exact else np.float64)
    values[...] = digital
    if baseline.any():
        values -= baseline.astype(values.dtype)
    values /= single if exact else gain
    if missing is not None and digital.min() == missing:
        values[digital == missing] = np.nan
    return values.astype(np.float32, copy=False)


def _segments(header: Header) -> tuple[Channel, ...]:
    """Joins a multi-segment record: a first segment of length 0 is the layout, whose channels are matched by name."""
    first = read_header(header.path.with_name(header.segments[0][0] + ".hea"))
    variable = header.segments[0][1] == 0
    stored, parts = 0, []
    for name, frames in header.segments[variable:]:
        if name == "~" or frames == 0:
            continue
        part = read_header(header.path.with_name(name + ".hea"))
        if part.segments or part.frames != frames or part.rate != header.rate:
            expected = f"one segment of {frames} frames at {header.rate:g} Hz, as {header.path.name} declares"
            raise BadInput(part.path, "another length or rate, or segments within a segment", expected, "replace it")
        parts.append((name, part))
        stored += frames * sum(s.samples_per_frame for s in part.signals)
    gaps = header.frames * sum(s.samples_per_frame for s in first.signals) - stored
    if gaps > _MOST_GAP:
        raise BadInput(header.path, f"{gaps} samples that no segment holds", f"at most {_MOST_GAP}", "split the record")
    return _join(header, first, {name: _channels(part) for name, part in parts}, variable)


def _join(header: Header, first: Header, parts: dict[str, tuple[Channel, ...]], variable: bool) -> tuple[Channel, ...]:
    spf = [s.samples_per_frame for s in first.signals]
    joined = [np.full(header.frames * n, np.nan, np.float32) for n in spf]
    position = 0
    for name, frames in header.segments[variable:]:
        for i, channel in enumerate(parts.get(name, ())):
            at = next((k for k, s in enumerate(first.signals) if s.name == channel.name), -1) if variable else i
            fits = 0 <= at < len(spf) and first.signals[at].unit == channel.unit
            if not fits or len(channel.signal) != frames * spf[at]:
                where, found = header.path.with_name(name + ".hea"), "a channel of another name, unit or rate"
                raise BadInput(where, found, f"the channels of {first.path.name}", "replace it")
            joined[at][position * spf[at] : (position + frames) * spf[at]] = channel.signal
        position += frames
    return tuple(Channel(s.name, header.rate * n, s.unit, x) for s, n, x in zip(first.signals, spf, joined))
