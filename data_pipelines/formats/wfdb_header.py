"""The WFDB header: a strict parser that takes nothing in it on trust.

Format: header(5) of the WFDB Applications Guide. Names stay inside the header's folder and numbers stay in bounds;
whether the declared length fits the signal files is checked by the reader, before it allocates.
"""

import itertools
import os
import re
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from data_pipelines.errors import BadInput

_LARGEST_HEADER = 1 << 24  # bytes; a year of MIMIC segments is below one megabyte
_NUMBER = r"(?:\d{1,12}(?:\.\d{0,20})?|\.\d{1,20})"
_RECORD = re.compile(r"(?P<name>[^\s/]+)(?:/(?P<segments>\d{1,7}))?", re.ASCII)
_RATE = re.compile(rf"(?P<rate>{_NUMBER})(?:/-?{_NUMBER}?(?:\(-?{_NUMBER}\))?)?", re.ASCII)
# file, format x samples per frame : skew + byte offset, gain (baseline) / unit, resolution, zero, first value,
# checksum, block size, name: one pattern for the line, because reading an ECG is mostly reading twelve of these
_SIGNAL = re.compile(
    r"(\S+)\s+(\d{1,4})(?:x(\d{1,6}))?(?::(\d{1,9}))?(?:\+(\d{1,12}))?"
    rf"(?:\s+([-+]?{_NUMBER}(?:[eE][-+]?\d{{1,3}})?)(?:\((-?\d{{1,12}})\))?(?:/(\S*))?"
    r"(?:\s+(-?\d{1,12})(?:\s+(-?\d{1,12})(?:\s+(-?\d{1,12})(?:\s+(-?\d{1,12})(?:\s+(-?\d{1,12})(?:\s+(\S.*))?)?)?)?)?)?)?",
    re.ASCII,
)
_WHOLE = re.compile(r"\d{1,15}", re.ASCII)
_UNSAFE_NAME = re.compile(r"[/\\:\x00-\x20]")
_AGE = re.compile(r"\bage\b>?\s*:\s*(\d{1,3}(?:\.\d{1,6})?)", re.IGNORECASE)
_SEX = re.compile(r"\bsex\b>?\s*:\s*(male|female|m|f)\b", re.IGNORECASE)


class Signals(NamedTuple):
    """The signal lines, a column a field: where the samples of each signal are, and what they mean.

    `file`, `checksum` (None where the header gives none) and the first value belong to one record; records of a
    dataset often share all the rest.
    """

    file: tuple[str, ...]
    checksum: tuple[int | None, ...]
    format: tuple[int, ...]
    samples_per_frame: tuple[int, ...]
    skew: tuple[int, ...]
    offset: tuple[int, ...]
    gain: tuple[float, ...]
    baseline: tuple[int, ...]
    unit: tuple[str, ...]
    name: tuple[str, ...]

    def at(self, members: list[int]) -> "Signals":
        """Some of them, in the given order."""
        return Signals(*(tuple([column[i] for i in members]) for column in self))


class Header(NamedTuple):
    """A parsed header.

    Attributes:
        path: of the header file.
        rate: frames a second.
        frames: declared length, or None where the header leaves it to the file's size.
        signals: columns of length 0 for a multi-segment header.
        segments: (record name or "~" for a gap, frames); empty for a single-segment header.
        comments: lines after "#", stripped.
    """

    path: Path
    record: str
    rate: float
    frames: int | None
    signals: Signals
    segments: tuple[tuple[str, int], ...]
    comments: tuple[str, ...]


_NO_SIGNALS = Signals(*[()] * len(Signals._fields))


def comment_fields(comments: tuple[str, ...]) -> dict[str, str]:
    """The comments of the form "key: value", keys in lower case ("#Age: 47", "# Age: 47" -> {"age": "47"})."""
    pairs = (comment.partition(":") for comment in comments if ":" in comment)
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def comment_labels(comments: tuple[str, ...]) -> dict[str, float]:
    """Age in years, sex (0 male, 1 female), numeric codes ("dx/426783006": 1.0), as far as the comments tell."""
    if not comments:
        return {}
    text, labels = "\n".join(comments), {}
    if found := _AGE.search(text):
        labels["age"] = float(found[1])
    if found := _SEX.search(text):
        labels["sex"] = float(found[1][0] in "fF")
    codes = (code.strip() for code in comment_fields(comments).get("dx", "").split(","))
    return labels | {f"dx/{code}": 1.0 for code in codes if code.isascii() and code.isdigit()}


def read_header(path: Path) -> Header:
    """Reads and checks a header file; raises BadInput for whatever is wrong with it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would be waited for
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadInput(path, "no file but a folder or a pipe", "a WFDB header", "check the path")
            # as long as the file is: `read` allocates what it is asked for
            content = os.read(descriptor, min(status.st_size, _LARGEST_HEADER + 1))
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise BadInput(path, "no such file", "a WFDB header", "check the path and the copy of the dataset") from None
    except OSError as error:
        raise BadInput(
            path, f"a file that cannot be read ({error.strerror})", "a WFDB header", "check the path"
        ) from None
    if len(content) > _LARGEST_HEADER:
        raise BadInput(path, "more than 16 MiB", "a WFDB header of text lines", "remove or replace the file")
    return parse_header(content, path)


def parse_header(content: bytes, path: Path) -> Header:
    """Parses a header's bytes.

    Args:
        content: the file's bytes, in UTF-8 or Latin-1.
        path: named in errors; segment and signal files are looked for beside it.

    Raises:
        BadInput: any line that header(5) does not allow, a name that leaves the folder, no signals.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    for template in _templates:
        if match := template.pattern.fullmatch(text):
            return template.header(match, path)
    header = _parsed(text, path)
    _remember(text, header)
    return header


def _parsed(text: str, path: Path) -> Header:
    lines, comments = [], []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line.startswith("#"):
            comments.append(line.lstrip("# \t"))
        elif line:
            lines.append((number, line))
    if not lines:
        raise _bad(path, 1, "no record line", "a record line: name, number of signals, rate, length")
    number, line = lines[0]
    record, segments, signals, rate, frames = _record_line(line, number, path)
    count = segments if segments is not None else signals
    if len(lines) - 1 < count:
        found = f"{len(lines) - 1} signal or segment lines"
        raise _bad(path, number, found, f"{count}, as the record line declares")
    body = lines[1 : count + 1]
    if segments is not None:
        parts = tuple(_segment_line(line, number, path) for number, line in body)
        total, names = sum(length for _, length in parts), [name for name, _ in parts if name != "~"]
        if len(set(names)) < len(names):
            raise _bad(path, number, "one segment more than once", "segments of different names")
        if frames is not None and total != frames:
            raise _bad(
                path, number, f"segments of {total} frames together", f"the {frames} that the record line declares"
            )
        return Header(path, record, rate, total, _NO_SIGNALS, parts, tuple(comments))
    signals = Signals(*zip(*(_signal_line(line, number, path) for number, line in body)))
    return Header(path, record, rate, frames, signals, (), tuple(comments))


class _Template(NamedTuple):
    """A header of a dataset, in which only the file, the first values, the checksums and the comments change."""

    pattern: re.Pattern
    rate: float
    constant: tuple[tuple, ...]  # the columns of `Signals` from format on

    def header(self, match: re.Match, path: Path) -> Header:
        record, frames, file, *sums, comments = match.groups()
        if not safe_name(file):
            raise _bad(path, 2, "a signal file outside the header's folder", "a plain file name")
        signals = Signals((file,) * len(sums), tuple(map(int, sums)), *self.constant)
        lines = [line.strip().lstrip("# \t") for line in comments.split("\n")[:-1]] if comments else ()
        return Header(path, record, self.rate, int(frames) or None, signals, (), tuple(lines))


# Reading an ECG is mostly reading its header, and the headers of a dataset are mostly alike: those that were last seen.
_templates: tuple[_Template, ...] = ()
_MOST_TEMPLATES = 4


def _remember(text: str, header: Header) -> None:
    """Keeps the template of a header that came before with other numbers, if it is written as datasets write them."""
    global _templates
    body, count = text[: text.find("\n#") + 1 or len(text)], len(header.signals.name)
    written = body.rstrip("\n").split("\n")
    rows = [line.split() for line in written]
    if [" ".join(row) for row in rows] != written:  # not as datasets write them; their fields lie elsewhere
        return
    if len(rows) != count + 1 or len(rows[0]) != 4 or {len(row) for row in rows[1:]} != {9}:
        return
    constant = tuple(" ".join([*row[1:5], *row[7:]]) for row in rows[1:])
    if len(set(header.signals.file)) > 1 or next(_sightings(rows[0][1], rows[0][2], constant)) == 0:
        return
    lines = [rf"([^\s/]+) {re.escape(rows[0][1])} {re.escape(rows[0][2])} (\d{{1,15}})"]
    for row in rows[1:]:
        file = r"(\S+)" if len(lines) == 1 else r"\3"
        constants = [re.escape(" ".join(row[a:b])) for a, b in ((1, 5), (7, 9))]
        lines.append(rf"{file} {constants[0]} -?\d{{1,12}} (-?\d{{1,12}}) {constants[1]}")
    pattern = re.compile("\n".join(lines) + r"\n((?:#[^\n]*\n)*)", re.ASCII)
    if pattern.fullmatch(text):
        template = _Template(pattern, header.rate, tuple(header.signals)[2:])
        _templates = (template, *_templates)[:_MOST_TEMPLATES]


@lru_cache(maxsize=256)
def _sightings(*layout) -> Iterator[int]:
    """Counts how often a layout was seen: compiling the template of each takes as long as parsing twenty."""
    return itertools.count()


def _bad(path: Path, line: int, found: str, expected: str) -> BadInput:
    return BadInput(f"{path} line {line}", found, expected, "replace the header by the dataset's original")


def _record_line(line: str, number: int, path: Path) -> tuple[str, int | None, int, float, int | None]:
    words = line.split()
    name = _RECORD.fullmatch(words[0])
    numbers = _record_numbers(*words[1:4]) if name else "something else"
    if isinstance(numbers, str):
        raise _bad(path, number, numbers, "a record line: name, number of signals, rate, length")
    segments = int(name["segments"]) if name["segments"] is not None else None
    if numbers[0] == 0:
        raise _bad(path, number, "zero channels", "at least one signal")
    if segments == 0:
        raise _bad(path, number, "zero segments", "at least one segment")
    return name["name"], segments, *numbers


@lru_cache(maxsize=4096)
def _record_numbers(signals: str = "", rate: str = "250", frames: str = "0") -> tuple[int, float, int | None] | str:
    """Number of signals, rate and length of a record line, or what is wrong with them."""
    match = _RATE.fullmatch(rate)
    if not _WHOLE.fullmatch(signals):
        return "something else"
    if not match or not float(match["rate"]) > 0:
        return "a sampling rate that is no positive number"
    if not _WHOLE.fullmatch(frames):
        return "a length that is no whole number"
    return int(signals), float(match["rate"]), int(frames) or None


@lru_cache(maxsize=4096)
def safe_name(name: str) -> bool:
    """Whether a name from a header names a file in the header's own folder."""
    return not _UNSAFE_NAME.search(name) and name not in (".", "..", "-") and len(name) < 256


def _segment_line(line: str, number: int, path: Path) -> tuple[str, int]:
    words = line.split()
    if len(words) < 2 or not _WHOLE.fullmatch(words[1]):
        raise _bad(path, number, "something else", "a segment line: name and length")
    if not safe_name(words[0]):
        raise _bad(path, number, "a segment outside the header's folder", "a plain record name")
    return words[0], int(words[1])


def _signal_line(line: str, number: int, path: Path) -> tuple:
    """One entry of each column of `Signals`."""
    expected = "a signal line: file, format, gain, resolution, zero, first value, checksum, block size, name"
    match = _SIGNAL.fullmatch(line)
    if not safe_name(match[1] if match else line.split(None, 1)[0]):
        raise _bad(path, number, "a signal file outside the header's folder", "a plain file name")
    if not match:
        raise _bad(path, number, "something else", expected)
    file, form, spf, skew, offset, gain, baseline, unit, _, zero, _, checksum, _, name = match.groups()
    # header(5): a gain of zero means "not calibrated", to be taken as 200; a baseline left out is the ADC's zero
    scale = float(gain or 0) or 200.0
    if not 1e-30 < abs(scale) < 1e30:
        raise _bad(path, number, "a gain beyond what float32 holds", expected)
    if spf and not int(spf):
        raise _bad(path, number, "zero samples per frame", "at least one")
    return (
        file,
        int(checksum) if checksum else None,
        int(form),
        int(spf or 1),
        int(skew or 0),
        int(offset or 0),
        scale,
        int(baseline or zero or 0),
        unit or "mV",
        name or "",
    )
