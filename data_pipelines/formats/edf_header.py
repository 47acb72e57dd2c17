"""The header of EDF, EDF+ and BDF: a strict parser that takes nothing in it on trust.

Formats: Kemp et al. 1992 (EDF), Kemp & Olivan 2003 (EDF+), BioSemi (BDF: 24 bits a sample). Whether the declared
number of records fits the file is checked here, so that whatever is allocated later is bounded by the file's size.
"""

import math
import re
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from data_pipelines.errors import BadInput

EDF_MAGIC, BDF_MAGIC = b"0       ", b"\xffBIOSEMI"
_FIELDS = (("label", 16), ("transducer", 80), ("unit", 8), ("physical_min", 8), ("physical_max", 8), ("digital_min", 8),
           ("digital_max", 8), ("prefilter", 80), ("samples", 8), ("reserved", 32))  # fmt: skip
_ANNOTATIONS = ("EDF Annotations", "BDF Annotations")
_NUMBER = re.compile(r"[-+]?\d{1,12}(?:\.\d{0,12})?(?:[eE][-+]?\d{1,2})?|[-+]?\.\d{1,12}", re.ASCII)
_MONTHS = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split()
_LOWEST_RATE, _HIGHEST_RATE = 1e-5, 1e7  # Hz
_LARGEST_VALUE = 1e30  # of a physical limit: float32 holds what follows from it
_REMEDY = "replace the file by the original, or export it again"


@dataclass(frozen=True)
class EdfSignal:
    """One signal: `samples` a data record, and how its digital values map to `unit`."""

    label: str
    unit: str
    physical: tuple[float, float]
    digital: tuple[int, int]
    samples: int

    @property
    def is_annotations(self) -> bool:
        return self.label in _ANNOTATIONS


@dataclass(frozen=True)
class EdfHeader:
    """A checked header.

    Attributes:
        width: bytes a sample, 2 (EDF) or 3 (BDF).
        start: byte where the data records begin. records: how many. seconds: length of one.
        continuous: False where every data record tells its own onset ("EDF+D").
        plus: whether the patient's identification has the subfields of EDF+: code, sex, birthdate, name.
        patient: the words of that field. begun: date of the recording, or None.
    """

    path: Path
    width: int
    start: int
    records: int
    seconds: float
    continuous: bool
    plus: bool
    signals: tuple[EdfSignal, ...]
    patient: tuple[str, ...]
    begun: date | None

    @property
    def record_samples(self) -> int:
        return sum(signal.samples for signal in self.signals)

    def person(self) -> str:
        """The patient's code; the whole field where only a name is told, and in plain EDF, whose words may be anything.

        Sex and birthdate beside an unknown code and name tell no person: strangers share them.
        """
        if not self.plus:
            return " ".join(self.patient) if set(self.patient) - {"X"} else ""
        if not self.patient or self.patient[0] != "X":
            return "".join(self.patient[:1])
        rest = list(self.patient[1:])
        if rest and rest[0] in ("M", "F", "X"):
            rest.pop(0)
        if rest and _date(rest[0]):
            rest.pop(0)
        return " ".join(self.patient) if set(rest) - {"X"} else ""

    def labels(self) -> dict[str, float]:
        """Sex (0 male, 1 female) and age in years at the recording, where the subfields of EDF+ tell them."""
        labels = {}
        if not self.plus:  # free text: an M may be an initial
            return labels
        if len(self.patient) > 1 and self.patient[1] in ("M", "F"):
            labels["sex"] = float(self.patient[1] == "F")
        born = _date(self.patient[2]) if len(self.patient) > 2 else None
        if born and self.begun and 0 <= (years := (self.begun - born).days / 365.25) < 130:
            labels["age"] = float(int(years))
        return labels


def read_edf_header(path: Path) -> EdfHeader:
    """Reads and checks the header of a file; BadInput for whatever is wrong with it."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            fixed = file.read(256)
            count = _whole(fixed[252:256])
            # never more than there is: `read` allocates what it is asked for
            rest = file.read(min(256 * max(count or 0, 0), max(size - 256, 0)))
    except OSError as error:
        raise BadInput(
            path, f"a file that cannot be read ({error.strerror})", "an EDF file", "check the path"
        ) from None
    return parse_edf_header(fixed + rest, size, path)


def parse_edf_header(content: bytes, size: int, path: Path) -> EdfHeader:
    """Parses the header's bytes.

    Args:
        content: the file's first 256 x (1 + number of signals) bytes. size: of the whole file, in bytes.
        path: named in errors.

    Raises:
        BadInput: no EDF; a number that is none or makes no sense; a length that is not the file's.
    """
    fixed = content[:256]
    if len(fixed) < 256 or fixed[:8] not in (EDF_MAGIC, BDF_MAGIC):
        raise _bad(path, "no header", "an EDF or BDF header")
    bdf = fixed[:8] == BDF_MAGIC
    header_bytes, records, count = _whole(fixed[184:192]), _whole(fixed[236:244]), _whole(fixed[252:256])
    seconds, reserved = _number(fixed[244:252]), fixed[192:236]
    if not count or count < 1:
        raise _bad(path, "zero channels", "at least one signal")
    if header_bytes != 256 * (count + 1) or len(content) < header_bytes:
        raise _bad(path, f"a header length of {header_bytes}", f"{256 * (count + 1)} bytes for {count} signals")
    if records == -1:
        found, expected = "a record count of -1 (a recording that was not closed)", "the number of data records"
        raise BadInput(path, found, expected, "close it with the recorder's software, or repair the count")
    if records is None or records < 1 or seconds is None or seconds < 0:
        raise _bad(path, "no number of data records, or no length of them", "at least one, of 0 s or more")
    signals = _signals(content[256:header_bytes], count, 2**23 if bdf else 2**15, path)
    width = 3 if bdf else 2
    if not seconds and not all(signal.is_annotations for signal in signals):
        raise _bad(path, "data records of 0 s with signals in them", "a length above 0")
    expected = header_bytes + records * width * sum(signal.samples for signal in signals)
    if size != expected:
        raise _bad(path, f"{size} bytes", f"{expected}, as the header declares")
    if any(not _LOWEST_RATE < signal.samples / seconds < _HIGHEST_RATE for signal in signals if seconds):
        raise _bad(path, "a sampling rate out of all reason", f"{_LOWEST_RATE:g} to {_HIGHEST_RATE:g} Hz")
    patient = tuple(fixed[8:88].decode("latin-1").split())
    return EdfHeader(
        path, width, header_bytes, records, seconds, reserved[:5] not in (b"EDF+D", b"BDF+D"),
        reserved[:4] in (b"EDF+", b"BDF+"), signals, patient, _begun(fixed),
    )  # fmt: skip


def _signals(content: bytes, count: int, limit: int, path: Path) -> tuple[EdfSignal, ...]:
    columns, at = {}, 0
    for name, width in _FIELDS:
        columns[name] = [content[at + i * width : at + (i + 1) * width] for i in range(count)]
        at += count * width
    signals = []
    for i in range(count):
        label, unit = (_text(columns[name][i]) for name in ("label", "unit"))
        physical = [_number(columns[name][i]) for name in ("physical_min", "physical_max")]
        digital = [_whole(columns[name][i]) for name in ("digital_min", "digital_max")]
        samples = _whole(columns["samples"][i])
        if samples is None or samples < 1:
            raise _bad(path, f"no samples in signal {i + 1}", "at least one a data record")
        if label not in _ANNOTATIONS:
            if not (label + unit).isprintable():
                raise _bad(path, f"control characters in the label or unit of signal {i + 1}", "text")
            if None in physical or physical[0] == physical[1] or max(map(abs, physical)) > _LARGEST_VALUE:
                raise _bad(path, f"a physical range of signal {i + 1} that is none", "two different numbers")
            if None in digital or not -limit <= digital[0] < digital[1] < limit:
                raise _bad(path, f"a digital range of signal {i + 1} that is none", f"within -{limit} to {limit - 1}")
        else:
            physical, digital = [0.0, 1.0], [0, 1]
        signals.append(EdfSignal(label, unit, tuple(physical), tuple(digital), samples))
    return tuple(signals)


def _bad(path: Path, found: str, expected: str) -> BadInput:
    return BadInput(path, found, expected, _REMEDY)


def _text(field: bytes) -> str:
    """ASCII by the book; "µV" is found in both of these encodings."""
    try:
        text = field.decode("utf-8")
    except UnicodeDecodeError:
        text = field.decode("latin-1")
    return text.strip(" \0")


def _number(field: bytes) -> float | None:
    text = _text(field).replace(",", ".")
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    return value if math.isfinite(value) else None


def _whole(field: bytes) -> int | None:
    value = _number(field)
    return int(value) if value is not None and value == int(value) else None


def _begun(fixed: bytes) -> date | None:
    """The recording field's "Startdate dd-MMM-yyyy", else dd.mm.yy with 1985 as the earliest year."""
    words = fixed[88:168].decode("latin-1").split()
    if len(words) > 1 and words[0] == "Startdate" and (found := _date(words[1])):
        return found
    try:
        day = datetime.strptime(fixed[168:176].decode("ascii"), "%d.%m.%y").date()
    except ValueError:
        return None
    year = day.year % 100
    try:
        return day.replace(year=1900 + year if year >= 85 else 2000 + year)
    except ValueError:  # 29 February of another century
        return None


def _date(text: str) -> date | None:
    """Of "02-AUG-1951"; None for anything else."""
    parts = text.upper().split("-")
    try:
        if len(parts) == 3 and parts[1] in _MONTHS:
            return date(int(parts[2]), _MONTHS.index(parts[1]) + 1, int(parts[0]))
    except (ValueError, OverflowError):
        pass
    return None
