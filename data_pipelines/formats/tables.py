"""Tables: text (CSV, TSV, columns with comment lines) and Parquet, described by a sidecar.

Text whose first comment line says "Simple Text Format" describes itself (BioSPPy); any other text without a sidecar is
not taken for a recording, since most text files are none.
"""

import csv
import io
import re
from pathlib import Path

import numpy as np

from data_pipelines.errors import BadInput
from data_pipelines.formats.sidecar import ChannelNote, Sidecar, find_sidecar, read_sidecar, recording_of
from data_pipelines.recording import Recording

_PARQUET, _SIMPLE = b"PAR1", b"# Simple Text Format"
_TEXT = (".csv", ".tsv", ".txt", ".dat", ".asc")
_MOST_INFLATION = 100
_UNEVEN = 0.01  # of a sampling interval: how far the times of a table may stray from a regular grid


def recognises(path: Path, head: bytes) -> bool:
    """Whether it is a table that a sidecar or its own first lines describe."""
    if head.startswith(_SIMPLE):
        return True
    return (head.startswith(_PARQUET) or path.suffix in _TEXT) and find_sidecar(path) is not None


def read(path: str | Path, item: str = "") -> Recording:
    """Reads a table.

    Args:
        path: of a text file or a Parquet file; rows are samples.

    Returns:
        The columns that the sidecar names; empty fields and "nan" are invalid samples.

    Raises:
        BadInput: rows of different lengths, fields that are no numbers, a missing column, times that are not regular.
    """
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(len(_SIMPLE))
    sidecar = read_sidecar(path) if find_sidecar(path) else _simple(path) if head == _SIMPLE else None
    if sidecar is None:
        raise BadInput(path, "no sidecar", f"{path.name}.json", "describe rate, channels and unit in it")
    columns = _parquet(path, sidecar) if head.startswith(_PARQUET) else _text(path, sidecar)
    signals = [_column(path, columns, note.place or note.name, i) for i, note in enumerate(sidecar.channels)]
    if sidecar.time:
        rate = _rate(path, _column(path, columns, sidecar.time, None))
        sidecar = Sidecar(**{**sidecar.__dict__, "rate": rate})
    return recording_of(path, sidecar, signals)


def _column(path: Path, columns: dict[str, np.ndarray], name: str, position: int | None) -> np.ndarray:
    if name in columns:
        return columns[name]
    if position is not None and (number := f"#{position}") in columns:
        return columns[number]
    raise BadInput(path, "no such column", f"a column {name!r}", "correct the description")


def _wanted(sidecar: Sidecar) -> list[str]:
    """Names of the columns that a sidecar asks for."""
    return [note.place or note.name for note in sidecar.channels] + [sidecar.time] * bool(sidecar.time)


def _refuse_twins(path: Path, names: list[str], wanted: list[str]) -> None:
    if any(names.count(name) > 1 for name in set(wanted)):
        raise BadInput(path, "two columns of one name", "one of each that is described", "rename one of them")


def _text(path: Path, sidecar: Sidecar) -> dict[str, np.ndarray]:
    """Column name -> float64; "#0", "#1", ... where the file has no line of names."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(path, f"text that cannot be read ({type(error).__name__})", "UTF-8", "convert it") from None
    lines = [line for line in content.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise BadInput(path, "no rows", "at least one", "leave the file out")
    delimiter = next((mark for mark in ("\t", ";", ",") if mark in lines[0]), None)
    split = (lambda line: next(csv.reader([line], delimiter=delimiter))) if delimiter else str.split
    first = split(lines[0])
    named = any(_float(field) is None for field in first)
    names = [field.strip() for field in first] if named else [f"#{i}" for i in range(len(first))]
    _refuse_twins(path, names, _wanted(sidecar))
    return dict(zip(names, _numbers(path, lines[named:], len(names), delimiter)))


def _numbers(path: Path, lines: list[str], width: int, delimiter: str | None) -> np.ndarray:
    """float64 [columns, rows]; BadInput names the first row that does not fit."""
    try:
        values = np.genfromtxt(
            io.StringIO("\n".join(lines)), delimiter=delimiter, comments=None, ndmin=2, invalid_raise=True
        )
    except ValueError:
        values = np.zeros((0, 0))
    if values.shape != (len(lines), width):
        counts = (len(line.split(delimiter)) for line in lines)
        ragged = next((i for i, count in enumerate(counts) if count != width), 0)
        expected = f"{width} fields in every row"
        raise BadInput(
            path, f"a row with another number of fields ({ragged + 1} of {len(lines)})", expected, "correct it"
        )
    odd = next((i for i, line in enumerate(lines) if "_" in line), None)  # Python would take 1_0 for 10
    if odd is not None:
        raise BadInput(path, f"a field that is no number in row {odd + 1}", "numbers", "correct it")
    # genfromtxt makes NaN of what is no number: only an empty field or "nan" may be one
    for row in np.flatnonzero(np.isnan(values).any(axis=1)):
        fields = lines[row].split(delimiter)
        if any(np.isnan(value) and _float(field or "nan") is None for value, field in zip(values[row], fields)):
            raise BadInput(path, f"a field that is no number in row {row + 1}", "numbers", "correct it")
    return values.T


def _float(field: str) -> float | None:
    try:
        return float(field.strip() or "nan") if "_" not in field else None
    except ValueError:
        return None


def _parquet(path: Path, sidecar: Sidecar) -> dict[str, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = _wanted(sidecar)
    try:
        file = pq.ParquetFile(path)
        _refuse_twins(path, file.schema_arrow.names, names)
        if file.metadata.num_rows * len(names) * 8 > _MOST_INFLATION * path.stat().st_size + (1 << 20):
            raise BadInput(path, "a table out of all proportion to the file", "its samples", "replace the file")
        found = [name for name in names if name in file.schema_arrow.names]
        table = file.read(columns=found)
        return {name: table[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in found}
    except (OSError, pa.ArrowException, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        found = f"a damaged file, or no numbers ({type(error).__name__})"
        raise BadInput(path, found, "Parquet columns of numbers", "write it again") from None


def _rate(path: Path, times: np.ndarray) -> float:
    """Hz of a column of seconds."""
    if len(times) > 1 and np.isfinite(times).all():
        step = (times[-1] - times[0]) / (len(times) - 1)
        regular = step > 0 and np.abs(times - times[0] - step * np.arange(len(times))).max() <= _UNEVEN * step
        if regular:
            return float(1 / step)
    raise BadInput(path, "times that are not regular", "seconds at equal steps", "resample it, or give a rate")


def _simple(path: Path) -> Sidecar:
    """What BioSPPy's header lines say: "# Sampling Rate (Hz):= 1000.00", "# Labels:= ECG"."""
    with open(path, encoding="latin-1") as file:
        lines = [line for _, line in zip(range(64), file) if line.startswith("#")]
    text = "".join(lines)
    rate = re.search(r"Sampling Rate \(Hz\):= *(\d{1,7}(?:\.\d{1,6})?)", text)
    labels = re.search(r"Labels:= *([^\n]{1,400})", text)
    if not rate or not float(rate[1]) or not labels:
        raise BadInput(path, "a header without rate and labels", "both", "add a sidecar")
    names = re.split(r"[\t,]", labels[1].strip())
    channels = tuple(ChannelNote(name.strip(), "a.u.", f"#{i}") for i, name in enumerate(names))
    return Sidecar(path, float(rate[1]), "", channels, "", "samples", "", "", None)
