"""A site's own labels for a folder of recordings: a CSV file with a row a recording."""

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from data_pipelines import formats
from data_pipelines.datasets.source import Entry, read_table, table_columns
from data_pipelines.errors import BadInput
from data_pipelines.store import SPLITS

RECORDING, SUBJECT, SPLIT = _OWN = ("recording", "subject", "split")
_LABEL = re.compile(r"[\w.%/-]+")  # what the words of a task can name
_UNKNOWN = {"", "nan", "na", "n/a", "null"}
# names of columns that tell who somebody is: as labels they would lie in stores unhashed
_PERSONAL = re.compile(r"(?i)((patient|subject|person|case|record|study|exam)[_-]?)?(id|name)|mrn|pid|patient|person")
_REMEDY = "correct the table"


@dataclass(frozen=True)
class Row:
    """What a table says of one recording.

    Attributes:
        where: the table and the row, for messages. subject, split: "" = nothing. labels: by name, NaN = not known.
    """

    where: str
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
        BadInput: no such table, a column twice or with a name that is none or a person's, a recording twice, a field
            that is no number, or a split of another name; by row and column, without what the field holds.
    """
    columns = table_columns(path)
    rows = read_table(path, (RECORDING,), unique=RECORDING, remedy=_REMEDY)
    labels = [name for name in columns if name not in _OWN]
    if not labels:
        raise BadInput(path, "no column of labels", f"columns beside {', '.join(_OWN)}", _REMEDY)
    for name in labels:
        if not _LABEL.fullmatch(name):  # and not shown: after a stray quote it is a part of the table
            found_ = f"column {columns.index(name) + 1} with a name of other characters"
            expected = "names of letters, digits, _ - . % and /, such as af or rhythm/af"
            raise BadInput(path, found_, expected, "rename it")
        if name.lower() in _OWN or _PERSONAL.fullmatch(name):
            expected = f"labels; of persons the column {SUBJECT}, which is hashed"
            raise BadInput(path, f"a column named {name!r}", expected, f"name it {SUBJECT}, or leave it out")
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise BadInput(path, f"the column {twice[0]!r} twice", "each once", _REMEDY)
    found = {}
    for number, row in enumerate(rows, 2):
        where = f"{path} row {number}"
        if None in row or None in row.values():
            raise BadInput(where, "another number of fields than columns", f"{len(columns)} fields", _REMEDY)
        split = (row.get(SPLIT) or "").strip()
        if split and split not in SPLITS:
            raise BadInput(f"{where}, {SPLIT}", "another word", f"{', '.join(SPLITS)}, or nothing", _REMEDY)
        values = {name: _number(row[name], f"{where}, {name}") for name in labels}
        named = PurePosixPath(row[RECORDING].strip()).as_posix()
        found[named] = Row(where, (row.get(SUBJECT) or "").strip(), split, values)
    return found


def labelled(
    found: list[tuple[str, str]], table: dict[str, Row], root: Path, where: Path
) -> tuple[list[Entry], list[str]]:
    """The recordings of a folder with what a table says of them.

    A person whom a file and the table name differently is one; the table's name stands, for all recordings of that
    person, and so does a split that it gives to one of them.

    Args:
        found: path and person ("" = not told) of each recording, as of `formats.find` of the folder `root`.
        table: as of `read_labels`. where: for messages.

    Returns:
        An entry each, and notes for `Source.note`.

    Raises:
        BadInput: no row names a recording, one names several, or two the same; a file's person
            under two subjects, or a subject in two splits.
    """
    rows, unknown = _by_recording(table, [path for path, _ in found], root, where)
    subjects = _subjects(found, rows)
    splits: dict[str, str] = {}
    for path, row in rows.items():
        if row.split and splits.setdefault(subjects[path], row.split) != row.split:
            found_, expected = "another split than that of the same person above", "one split a person"
            raise BadInput(f"{row.where}, {SPLIT}", found_, expected, _REMEDY)
    entries = [
        Entry(subjects[path], path, splits.get(subjects[path], ""), path,
              tuple(rows[path].labels.items()) if path in rows else ())
        for path, _ in found
    ]  # fmt: skip
    names = ", ".join(next(iter(rows.values())).labels)
    notes = [f"{where.name} tells {names} of {len(rows)} of {len(found)} recordings"]
    if unknown:
        notes.append(f"it names {unknown} that are not here: their labels are not used")
    by_table = sum(bool(row.subject) for row in rows.values())
    if 0 < by_table < len(found):
        notes.append(
            f"it tells the subject of {by_table}: a patient whom it and other files name differently counts as two"
        )
    return entries, notes


def _by_recording(rows: dict[str, Row], paths: list[str], root: Path, where: Path) -> tuple[dict[str, Row], int]:
    """Path -> its row, of those that have one; and how many rows name none."""
    exact, short = set(paths), {}
    for path in paths:
        file, item = formats.split_item(root / path)
        name = file.relative_to(root).as_posix().removesuffix(file.suffix)
        short.setdefault(f"{name}#{item}" if item else name, []).append(path)
    found, unknown = {}, 0
    for named, row in rows.items():
        meant = [named] if named in exact else short.get(named, [])
        if len(meant) > 1 or (meant and meant[0] in found):
            told = "a name that several recordings have" if len(meant) > 1 else "a recording that an earlier row names"
            raise BadInput(row.where, told, "one recording a row", "write paths with their suffix")
        if meant:
            found[meant[0]] = row
        unknown += not meant
    if not found:
        expected = "paths of recordings below the folder, with or without their suffix (of WFDB records, .hea)"
        raise BadInput(f"{where}, {RECORDING}", "no name of a recording that is here", expected, _REMEDY)
    return found, unknown


def _subjects(found: list[tuple[str, str]], rows: dict[str, Row]) -> dict[str, str]:
    """Path -> subject: the table's, also where it names another recording of the person whom the file names."""
    of_person: dict[str, str] = {}
    for path, person in found:
        row = rows.get(path)
        if person and row and row.subject and of_person.setdefault(person, row.subject) != row.subject:
            told = "another subject than above for the person whom the files name"
            raise BadInput(f"{row.where}, {SUBJECT}", told, "one subject a person", "correct the table, or the files")
    return {
        path: (rows[path].subject if path in rows else "") or of_person.get(person, person) or path
        for path, person in found
    }


def _number(text: str, where: str) -> float:
    text = text.strip()
    if text.lower() in _UNKNOWN:
        return math.nan
    try:
        value = float(text.replace("_", "?"))  # which Python would take for a separator of thousands
    except ValueError:
        value = math.inf
    if not abs(value) <= float(np.finfo(np.float32).max):  # as stores keep them
        expected = "a number, or nothing where it is not known"
        raise BadInput(where, "no number", expected, "write classes as 0 and 1, one column each")
    return value
