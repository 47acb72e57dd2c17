"""A site's own labels for a folder of recordings: a CSV file with a row a recording."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_pipelines.datasets.source import read_table, table_columns
from data_pipelines.errors import BadInput
from data_pipelines.store import SPLITS

RECORDING, SUBJECT, SPLIT = "recording", "subject", "split"
_LABEL = re.compile(r"[\w.%/-]+")  # what the words of a task can name
_UNKNOWN = {"", "nan", "na", "n/a", "null"}


@dataclass(frozen=True)
class Row:
    """What a table says of one recording: subject and split ("" = nothing), and labels by name, those that are blank
    left out."""

    subject: str
    split: str
    labels: dict[str, float]


def read_labels(path: Path) -> dict[str, Row]:
    """Reads a table of labels.

    Args:
        path: a CSV file. Its column "recording" holds paths below the folder of recordings, "/" between their parts,
            with or without the file's suffix, and "#item" where a file holds several. "subject" and "split" may be
            there. Every other column is a label: a number, or blank where it is not known.

    Returns:
        Recording, as the table names it -> its row.

    Raises:
        BadInput: no such table, a column twice or with a name that is none, a recording twice, a field that is no
            number, or a split of another name; by row and column, without what the field holds.
    """
    remedy = "correct the table"
    columns = table_columns(path)
    rows = read_table(path, (RECORDING,), unique=RECORDING, remedy=remedy)
    labels = [name for name in columns if name not in (RECORDING, SUBJECT, SPLIT)]
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise BadInput(path, f"the column {twice[0]!r} twice", "each once", remedy)
    if not labels:
        raise BadInput(path, "no column of labels", f"columns beside {RECORDING}, {SUBJECT} and {SPLIT}", remedy)
    if wrong := [name for name in labels if not _LABEL.fullmatch(name)]:
        expected = "names of letters, digits, _ - . % and /, such as af or rhythm/af"
        raise BadInput(path, f"a column named {wrong[0]!r}", expected, "rename it")
    found = {}
    for number, row in enumerate(rows, 2):
        where = f"{path} row {number}"
        if None in row or None in row.values():
            raise BadInput(where, "another number of fields than columns", f"{len(columns)} fields", remedy)
        split = (row.get(SPLIT) or "").strip()
        if split and split not in SPLITS:
            raise BadInput(f"{where}, {SPLIT}", "another word", f"{', '.join(SPLITS)}, or nothing", remedy)
        values = {name: _number(row[name], f"{where}, {name}") for name in labels}
        known = {name: value for name, value in values.items() if value is not None}
        found[row[RECORDING].strip()] = Row((row.get(SUBJECT) or "").strip(), split, known)
    return found


def by_recording(rows: dict[str, Row], recordings: Iterable[str], table: Path) -> tuple[dict[str, Row], int]:
    """Finds the recordings that a table names.

    Args:
        rows: of `read_labels`. recordings: paths below the folder. table: for messages.

    Returns:
        Recording -> its row, of those that have one; and how many rows name none.

    Raises:
        BadInput: no row names a recording, or one names several, or two the same.
    """
    exact = set(recordings)
    short: dict[str, list[str]] = {}
    for name in exact:
        file, hash_, item = name.partition("#")
        short.setdefault(str(PurePosixPath(file).with_suffix("")) + hash_ + item, []).append(name)
    found, unknown = {}, 0
    for number, (named, row) in enumerate(rows.items(), 2):
        meant = [named] if named in exact else short.get(named, [])
        if len(meant) > 1 or (meant and meant[0] in found):
            told = "a name that several recordings have" if len(meant) > 1 else "a recording that an earlier row names"
            raise BadInput(f"{table} row {number}", told, "one recording a row", "write paths with their suffix")
        if meant:
            found[meant[0]] = row
        unknown += not meant
    if not found:
        expected = "paths of recordings below the folder, with or without their suffix"
        raise BadInput(f"{table}, {RECORDING}", "no name of a recording that is here", expected, "correct the column")
    return found, unknown


def _number(text: str, where: str) -> float | None:
    text = text.strip()
    if text.lower() in _UNKNOWN:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        expected = "a number, or nothing where it is not known"
        raise BadInput(where, "no number", expected, "write classes as 0 and 1, one column each")
    return value
