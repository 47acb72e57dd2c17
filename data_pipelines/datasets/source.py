"""Source and Entry: what a dataset tells about its recordings before any of them is read."""

import csv
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipelines import formats
from data_pipelines.errors import BadInput
from data_pipelines.inside import inside
from data_pipelines.recording import Recording


@dataclass(frozen=True)
class Entry:
    """One recording of a source, listed without reading a signal.

    Attributes:
        subject: id within the source, as published; equal for all recordings of one person.
        study: id of the recording within the source, unique.
        split: "train", "validation", "test", or "" where the source has no official split.
        path: of its file, relative to the source's root; "file#item" where a file holds several recordings.
        labels: name and value of those that a table of the site's own tells, NaN = not known, whatever its file says.
    """

    subject: str
    study: str
    split: str
    path: str
    labels: tuple[tuple[str, float], ...] = ()


class Source(ABC):
    """A dataset; subclasses say which records, whose, and what is known about them.

    Those that `open_sources` knows by their files also have `recognises(folder) -> bool`.

    Attributes:
        root: the dataset's folder.
        name: goes into stores, and into the hash of every subject where `people` is "".
        people: whose ids the subjects are. Sources with equal `people` share their persons, hence hashes and splits.
        public: whether subjects are hashed with the fixed public key (published datasets), not the site's own.
        hashed: whether subjects and studies of its entries are hashes already, of the same key.
        key: fingerprint of that key, where `hashed`; "" = not told.
        mains: powerline frequency in Hz where it was recorded; None = not known.
        ends: seconds at which every recording ends; None = at its own end. What follows an alarm tells whether it was
            true, and filters would carry some of it back.
        licence, citation: for model cards. download: how people with credentials get it.
        with_reports: whether `read` adds reports, which may be a large table of their own.
        note: what a user should be told about this copy of the dataset, once it is listed; "" = nothing.
    """

    name = "wfdb"
    people = ""
    public = True
    hashed = False
    key = ""
    mains: float | None = None
    ends: float | None = None
    licence = ""
    citation = ""
    download = ""
    note = ""
    with_reports = True

    def __init__(self, root: Path):
        self.root = Path(root)

    @abstractmethod
    def entries(self) -> list[Entry]:
        """All recordings, sorted by study; also those whose files turn out to be missing when they are read."""

    def labels(self, entry: Entry, recording: Recording) -> dict[str, float]:
        """Labels of one recording; by default those that its file tells, and the entry's own."""
        return recording.labels | dict(entry.labels)

    def report(self, entry: Entry) -> str | None:
        """Free text of one recording, if the source has any."""
        return None

    def file_of(self, entry: Entry) -> Path:
        """The entry's path below the root; BadInput if a table or a link leads out of it."""
        path = self.root / entry.path
        try:
            if ".." not in path.parts:
                return inside(path, self.root)
        except BadInput:
            pass
        raise BadInput(self.root, "a record outside the dataset's folder", "records inside it", "correct the table")

    def signals(self, entry: Entry) -> Recording:
        """The entry's file as it is; what the dataset knows besides is added by `read`."""
        return formats.read(self.file_of(entry), root=self.root)

    def read(self, entry: Entry) -> Recording:
        """Reads one recording with its labels and report; BadInput where its files are missing or wrong."""
        recording = self.signals(entry)
        if self.ends is not None:
            recording = recording.until(self.ends)
        return replace(
            recording, subject=entry.subject, study=entry.study, source=self.name,
            report=self.report(entry) if self.with_reports else None,
            labels=self.labels(entry, recording), split=entry.split,
            mains=recording.mains if self.mains is None else self.mains,
        )  # fmt: skip


def sorted_entries(entries: list[Entry], where: Path) -> list[Entry]:
    """Sorts by study; BadInput if there is no entry, or two have the same study."""
    if not entries:
        raise BadInput(where, "no recording", "at least one", "check the folder, or complete the download")
    entries = sorted(entries, key=lambda entry: entry.study)
    if any(a.study == b.study for a, b in zip(entries, entries[1:])):
        raise BadInput(where, "two recordings of one name", "unique names", "remove the copy")
    return entries


def read_table(
    path: Path, columns: Sequence[str], unique: str | None = None, remedy: str = "use the original file"
) -> list[dict[str, str]]:
    """Reads a CSV file.

    Args:
        columns: those that must be there. unique: one whose fields must differ from row to row. remedy: what to do
            about a table that is wrong.

    Returns:
        Column -> field of every row.

    Raises:
        BadInput: it cannot be read, it or one of its rows lacks one of `columns`, or two rows have one id.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = sorted(set(columns) - set(reader.fieldnames or ()))
            rows = [] if missing else list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(
            path, f"a table that cannot be read ({type(error).__name__})", "a CSV file", "replace it"
        ) from None
    if missing:
        raise BadInput(path, f"no column {', '.join(missing)}", f"columns {', '.join(columns)}", remedy)
    if short := next((i for i, row in enumerate(rows, 2) if any(row[name] is None for name in columns)), None):
        raise BadInput(path, f"row {short} cut off", f"columns {', '.join(columns)}", remedy)
    if unique is not None and len({row[unique].strip() for row in rows}) < len(rows):
        found = f"rows of one {unique}"  # which of them is right, nobody can tell
        raise BadInput(path, found, f"a {unique} of its own in every row", remedy)
    return rows


def unknown_rows(table: Path, named: Iterable[str], there: Iterable[str]) -> str:
    """A note on the recordings that a table of labels names and the dataset has not, for `Source.note`; "" if none."""
    count = len(set(named) - set(there))
    return f"{table.name} names {count} recordings that are not here: their labels are not used" if count else ""


def number(text: str) -> float:
    """A CSV field's number; NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def table_columns(path: Path) -> list[str]:
    """The columns of a CSV file; none if there is no such file."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
