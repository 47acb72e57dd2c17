"""WFDB records: header, signal files, segments; `wfdb_header` parses and `wfdb_signals` decodes."""

import re
from pathlib import Path

import numpy as np

from data_pipelines.errors import BadInput
from data_pipelines.formats.sidecar import find_sidecar
from data_pipelines.formats.wfdb_header import Header, comment_fields, comment_labels, read_header
from data_pipelines.formats.wfdb_signals import read_signals
from data_pipelines.recording import Channel, Recording

_RECORD_LINE = re.compile(rb"[^\s/]+(/\d+)?\s+\d+\s+[\d.]+\S*\s+\d+")
_PERSON = ("patient id", "subject id", "patient", "subject")
_MOST_GAP = 1 << 28  # samples of a multi-segment record that no segment holds: 1 GiB of NaN


def recognises(path: Path, head: bytes) -> bool:
    """Whether a file is a WFDB header: its first line that is no comment names a record and a number of signals.

    So may the first row of a table; what a sidecar describes is one.
    """
    lines = (line.strip() for line in head.split(b"\n"))
    first = next((line for line in lines if line and not line.startswith(b"#")), b"")
    return path.suffix == ".hea" or bool(_RECORD_LINE.match(first) and not find_sidecar(path))


def person(path: Path, item: str = "") -> str:
    """The header's comment "Patient ID: ..." or "Subject ID: ..."; "" if there is none."""
    fields = comment_fields(read_header(path).comments)
    return next((fields[key] for key in _PERSON if fields.get(key)), "")


def parts(path: Path) -> list[Path]:
    """The signal files and the segments' headers that a header names: they are no recordings by themselves."""
    header = read_header(path)
    segments = [path.with_name(f"{name}.hea") for name, _ in header.segments if name != "~"]
    files = {file for file, form in zip(header.signals.file, header.signals.format) if form}
    return sorted(map(path.with_name, files)) + segments


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
    header = read_header(path if isinstance(path, Path) else Path(path))
    channels = _segments(header) if header.segments else _channels(header)
    if not any(len(channel.signal) for channel in channels):
        raise BadInput(path, "no signal with samples", "at least one", "leave the record out")
    return Recording(
        channels, subject=header.record, study=header.record, source="wfdb", labels=comment_labels(header.comments),
        comments=header.comments,
    )  # fmt: skip


def _channels(header: Header) -> tuple[Channel, ...]:
    signals, rate = header.signals, header.rate
    samples = read_signals(header)
    return tuple(
        [
            Channel(name, rate * per_frame, unit, x)
            for name, per_frame, unit, x in zip(signals.name, signals.samples_per_frame, signals.unit, samples)
            if x is not None
        ]
    )


def _segments(header: Header) -> tuple[Channel, ...]:
    """Joins a multi-segment record; a first segment of length 0 is the layout of segments with any of its channels."""
    first = read_header(header.path.with_name(header.segments[0][0] + ".hea"))
    variable = header.segments[0][1] == 0
    stored, parts = 0, {}
    for number, (name, frames) in enumerate(header.segments[variable:], 1 + variable):
        if name == "~" or frames == 0:
            continue
        part = read_header(header.path.with_name(name + ".hea"))
        if part.segments or part.frames != frames or part.rate != header.rate:
            found = f"in the header of segment {number} another length or rate, or segments within a segment"
            expected = f"one segment of {frames} frames at {header.rate:g} Hz, as the record's header declares"
            raise BadInput(part.path, found, expected, "replace it")
        parts[name] = part
        stored += frames * sum(part.signals.samples_per_frame)
    gaps = header.frames * sum(first.signals.samples_per_frame) - stored
    if gaps > _MOST_GAP:
        raise BadInput(header.path, f"{gaps} samples that no segment holds", f"at most {_MOST_GAP}", "split the record")
    return _join(header, first, parts, variable)


def _join(header: Header, first: Header, parts: dict[str, Header], variable: bool) -> tuple[Channel, ...]:
    names, units, spf = first.signals.name, first.signals.unit, first.signals.samples_per_frame
    joined = [np.full(header.frames * n, np.nan, np.float32) for n in spf]
    position = 0
    for number, (name, frames) in enumerate(header.segments[variable:], 1 + variable):
        if name in parts:
            own = parts[name].signals
            places = _places(names, own.name, variable)
            for at, label, unit, samples in zip(places, own.name, own.unit, read_signals(parts[name])):
                if samples is None:  # a null signal: it keeps its place, and nothing is there
                    continue
                if at is None or (names[at], units[at]) != (label, unit) or len(samples) != frames * spf[at]:
                    where, found = header.path.with_name(name + ".hea"), "a channel of another name, unit or rate"
                    expected = "the channels of the header of segment 1"
                    raise BadInput(where, f"in the header of segment {number} {found}", expected, "replace it")
                joined[at][position * spf[at] : (position + frames) * spf[at]] = samples
        position += frames
    return tuple(Channel(name, header.rate * n, unit, x) for name, n, unit, x in zip(names, spf, units, joined))


def _places(names: tuple[str, ...], own: tuple[str, ...], variable: bool) -> list[int | None]:
    """Which of the record's channels each signal of a segment is; None where it is none of them."""
    if not variable:  # the segments have all of them, in one order
        return [i if len(own) == len(names) else None for i in range(len(own))]
    free: dict[str, list[int]] = {}
    for i in reversed(range(len(names))):
        free.setdefault(names[i], []).append(i)
    # of channels of one name, the first is the first, the second the second
    return [free[name].pop() if free.get(name) else None for name in own]
