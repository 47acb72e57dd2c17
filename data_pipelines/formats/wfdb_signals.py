"""The signal files of a WFDB record: own decoder for most formats, the `wfdb` package for 8 and for FLAC.

The header says where the samples are, so a file's size is compared with the declared length before anything is
allocated, and the header's checksum of each signal with its samples after they are read: the package does neither.
"""

import math
import os
import stat
import threading
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from data_pipelines.errors import BadInput
from data_pipelines.formats.wfdb_header import Header, Signals

# signal(5): format -> (bytes per sample, the value that means "no sample")
_FORMATS = {
    8: (1, None), 16: (2, -(2**15)), 24: (3, -(2**23)), 32: (4, -(2**31)), 61: (2, -(2**15)), 80: (1, -(2**7)),
    160: (2, -(2**15)), 212: (1.5, -(2**11)), 310: (4 / 3, -(2**9)), 311: (4 / 3, -(2**9)),
    508: (0, -(2**7)), 516: (0, -(2**15)), 524: (0, -(2**23)),
}  # fmt: skip
# wfdb 4.3.1 fails on 61 unless it may scale to physical units, on 80, 160, 310 and 311 where the header gives no length
_OWN = (16, 24, 32, 61, 80, 160, 212, 310, 311)
_FLAC = (508, 516, 524)
# FLAC's densest frame: a constant block of 65,535 samples in 14 bytes
_FLAC_SAMPLES_PER_BYTE = 65535 / 14
_LITTLE = np.dtype("<i2")
_LARGEST_SCRATCH = 1 << 22
_kept = threading.local()


def read_signals(header: Header) -> list[np.ndarray | None]:
    """Physical samples of each signal of a single-segment header, None for null signals (format 0).

    Returns:
        float32 [frames * samples per frame] each: (digital - baseline) / gain, rounded once. NaN for missing samples,
        and beyond the end of a skewed signal.

    Raises:
        BadInput: a missing or short signal file, an unknown format, a wrong checksum.
    """
    out: list[np.ndarray | None] = [None] * len(header.signals.name)
    folder = os.path.dirname(header.path)
    for name, members in _members(header.signals.file, header.signals.format):
        file = os.path.join(folder, name)
        signals = header.signals if len(members) == len(out) else header.signals.at(members)
        at = 0
        for digital in _digital(header, file, signals, members):
            block = signals if len(digital) == len(members) else signals.at(range(at, at + len(digital)))
            _verify(file, block, digital, members[at:])
            for i, samples in zip(members[at:], _physical(block, digital)):
                out[i] = samples
            at += len(digital)
    return out


def _members(files: tuple[str, ...], formats: tuple[int, ...]) -> Iterable[tuple[str, list[int]]]:
    """Of each file, which signals are in it; a null signal (format 0) has a name, but no samples."""
    if files.count(files[0]) == len(files) and 0 not in formats:
        return [(files[0], list(range(len(files))))]
    members: dict[str, list[int]] = {}
    for i, (file, form) in enumerate(zip(files, formats)):
        if form != 0:
            members.setdefault(file, []).append(i)
    return members.items()


def _digital(header: Header, file: str, signals: Signals, members: list[int]) -> list[np.ndarray]:
    """Integers as stored, [signals, samples] of all or, where rates differ, of each signal, until the next call."""
    first, offset, count = signals.format[0], signals.offset[0], len(signals.format)
    if first not in _FORMATS or signals.format.count(first) < count or signals.offset.count(offset) < count:
        raise BadInput(
            file, "an unknown storage format, or several in one file", f"one of {sorted(_FORMATS)}", "convert it"
        )
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would be waited for
    except FileNotFoundError:
        raise _missing(file) from None
    except OSError as error:
        raise BadInput(file, f"a file that cannot be read ({error.strerror})", "a signal file", "check it") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _missing(file)
        frames = _frames(header, file, signals, status.st_size)
        if first in _OWN:
            return _decode(descriptor, file, signals, frames)
    finally:
        os.close(descriptor)
    return _decode_by_library(header, file, members, frames)


def _missing(file: str) -> BadInput:
    remedy = "complete the copy of the dataset, or leave the record out"
    # a segment's header has its name from inside another file: no reason tells it
    return BadInput(file, "no such file", "the signal file that its header names", remedy)


def _frames(header: Header, file: str, signals: Signals, size: int) -> int:
    """How many frames to read of one signal file: the declared number, if the file is long enough for it."""
    form, flac = signals.format[0], signals.format[0] in _FLAC
    per_sample = 1 / _FLAC_SAMPLES_PER_BYTE if flac else _FORMATS[form][0]
    # the offset of a FLAC file counts samples, not bytes
    bytes_there = size - (0 if flac else signals.offset[0])
    if form == 310:  # of two bytes together: an odd one at the end is a part of a sample
        bytes_there -= bytes_there % 2
    there = int(bytes_there / (per_sample * sum(signals.samples_per_frame)))
    if header.frames is None and form not in _OWN:
        expected = f"the number of samples in its record line, which format {form} needs"
        raise BadInput(header.path, "no length", expected, "write it there, or get the dataset's original header")
    frames = there if header.frames is None else header.frames
    if frames <= 0 or there < frames:
        expected = "at least one frame" if header.frames is None else f"the {frames} frames that its header declares"
        found = f"{size} bytes"
        raise BadInput(file, found, expected, "replace the file or the header by the dataset's original")
    return frames


def _decode(descriptor: int, file: str, signals: Signals, frames: int) -> list[np.ndarray]:
    each = signals.samples_per_frame
    width, form = sum(each), signals.format[0]
    count = frames * width
    size = math.ceil(count * _FORMATS[form][0])
    if form == 310 and count % 3 == 2:
        size += 1  # the second of three ends in the fourth byte
    raw = _bytes(descriptor, file, signals.offset[0], size)
    if form == 212 and each == (1, 1):  # the pairs of the format are the frames
        return [_from_212(raw)]
    if form == 212:
        flat = _from_212(raw).T.reshape(-1)[:count]
    elif form == 24:
        flat = _from_24(raw)
    elif form in (310, 311):
        flat = (_from_310 if form == 310 else _from_311)(raw)[:count]
    elif form in (80, 160):  # offset binary: the middle of the range is zero
        flat = (raw ^ 0x80).view("i1").astype(np.int16) if form == 80 else (raw.view("<u2") ^ 0x8000).view("<i2")
    else:
        flat = raw.view({16: "<i2", 61: ">i2", 32: "<i4"}[form])
    kind = flat.dtype.newbyteorder("=")
    table = flat.reshape(frames, width)
    if len(set(each)) == 1:
        ordered = _scratch("digital", count * kind.itemsize).view(kind).reshape(len(each), frames, each[0])
        ordered[...] = table.reshape(frames, len(each), each[0]).transpose(1, 0, 2)
        return [ordered.reshape(len(each), -1)]
    ends = np.cumsum(each)
    return [np.ascontiguousarray(table[:, end - n : end], kind).reshape(1, -1) for n, end in zip(each, ends)]


def _bytes(descriptor: int, file: str, offset: int, size: int) -> np.ndarray:
    """uint8 [size]; NumPy's own `fromfile` asks the system ten questions before it reads."""
    raw, at = _scratch("raw", size), 0
    while at < size:
        try:
            n = os.preadv(descriptor, [raw[at:]], offset + at)  # two gigabytes at most
        except OSError as error:
            raise BadInput(
                file, f"a file that cannot be read ({error.strerror})", "a signal file", "check it"
            ) from None
        if n == 0:
            raise BadInput(file, "a file that shrank while it was read", f"{size} bytes", "read it again")
        at += n
    return raw


def _scratch(name: str, size: int) -> np.ndarray:
    """uint8 [size] that the thread's next record overwrites: fresh memory takes longer to get than to fill."""
    if size > _LARGEST_SCRATCH:
        return np.empty(size, np.uint8)
    if size > len(getattr(_kept, name, b"")):
        setattr(_kept, name, np.empty(size, np.uint8))
    return getattr(_kept, name)[:size]


def _from_24(raw: np.ndarray) -> np.ndarray:
    wide = np.zeros((len(raw) // 3, 4), np.uint8)
    wide[:, 1:] = raw.reshape(-1, 3)
    return wide.view("<i4")[:, 0] >> 8


def _from_212(raw: np.ndarray) -> np.ndarray:
    """Pairs of 12-bit samples in 3 bytes (low byte, two high nibbles, low byte): int16 [2, pairs]."""
    pairs = -(-len(raw) // 3)
    if len(raw) < 3 * pairs:
        raw = np.concatenate([raw, np.zeros(3 * pairs - len(raw), np.uint8)])
    out = _scratch("digital", 4 * pairs).view(np.int16).reshape(2, pairs)
    first, second = out
    # the two bytes that a sample is in, as one number; a shift right extends the sign
    first[...] = np.ndarray(pairs, _LITTLE, raw, 0, (3,))
    first <<= 4
    first >>= 4
    high = np.ndarray(pairs, _LITTLE, raw, 1, (3,)).astype(np.int16)
    np.left_shift(high, 8, out=second)
    second >>= 12
    second <<= 8
    low = high.view(np.uint16)
    low >>= 8
    second |= low.view(np.int16)
    return out


def _from_310(raw: np.ndarray) -> np.ndarray:
    """Three 10-bit samples in two words: one in the middle of each, the third in the upper five bits of both."""
    words = np.frombuffer(raw.tobytes() + bytes(-len(raw) % 4), "<u2").reshape(-1, 2)
    third = (words[:, 0] >> 11) | (words[:, 1] >> 11 << 5)
    return _of_ten_bits(np.stack([words[:, 0] >> 1, words[:, 1] >> 1, third], axis=1))


def _from_311(raw: np.ndarray) -> np.ndarray:
    """Three 10-bit samples in 32 bits, the first lowest; the two highest bits mean nothing."""
    words = np.frombuffer(raw.tobytes() + bytes(-len(raw) % 4), "<u4")
    return _of_ten_bits((words[:, None] >> np.array([0, 10, 20], np.uint32)).astype(np.uint16))


def _of_ten_bits(table: np.ndarray) -> np.ndarray:
    table <<= 6
    return table.view(np.int16).reshape(-1) >> 6  # a shift right extends the sign


def _decode_by_library(header: Header, file: str, members: list[int], frames: int) -> list[np.ndarray]:
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
        raise BadInput(file, found, f"format {header.signals.format[members[0]]}", remedy) from None
    return [samples[None] for samples in record.e_d_signal]


def _verify(file: str, signals: Signals, digital: np.ndarray, members: list[int]) -> None:
    # summed in the samples' own type: it wraps at a multiple of 65,536, as the checksum does
    sums = np.add.reduce(digital, axis=1, dtype=digital.dtype).tolist()
    for member, declared, total in zip(members, signals.checksum, sums):
        if declared is not None and (total - declared) & 0xFFFF:
            raise BadInput(
                file,
                f"samples of signal {member + 1} that do not add up to the header's checksum",
                "the samples that the header was written for",
                "replace the file by the dataset's original, or leave the record out",
            )


def _physical(signals: Signals, digital: np.ndarray) -> list[np.ndarray]:
    gain, baseline = _scales(signals.gain, signals.baseline, digital.dtype.itemsize)
    missing = _FORMATS[signals.format[0]][1]
    lost = digital == missing if missing is not None and np.minimum.reduce(digital, axis=None) == missing else None
    if signals.format[0] == 212 and baseline is not None and np.abs(baseline).max() < 1 << 14:
        digital -= baseline.astype(np.int16)  # of twelve bits: as integers it takes a third of the time
        baseline = None
    values = digital.astype(gain.dtype)
    if baseline is not None:
        values -= baseline
    values /= gain
    if lost is not None:
        values[lost] = np.nan
    rows = list(values.astype(np.float32, copy=False))
    if any(signals.skew):
        for i, (skew, per_frame) in enumerate(zip(signals.skew, signals.samples_per_frame)):
            late = min(skew * per_frame, len(rows[i]))
            rows[i] = np.concatenate([rows[i][late:], np.full(late, np.nan, np.float32)])
    return rows


@lru_cache(maxsize=256)
def _scales(gains: tuple, baselines: tuple, item_size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Gains and baselines as columns, baselines None if all are zero."""
    gain, baseline = np.array(gains)[:, None], np.array(baselines)[:, None]
    # float32 division of numbers that float32 holds exactly rounds as float64 division does, at half the cost
    exact = item_size <= 2 and (gain.astype(np.float32) == gain).all() and (np.abs(baseline) < 1 << 23).all()
    kind = np.float32 if exact else np.float64
    return gain.astype(kind), baseline.astype(kind) if baseline.any() else None
