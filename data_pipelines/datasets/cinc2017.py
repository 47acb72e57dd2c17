"""PhysioNet/CinC Challenge 2017: 8,528 recordings of lead I, 9 to 61 s, with a class each (Clifford et al. 2017)."""

import re
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from data_pipelines.datasets.source import Entry, Source, sorted_entries, table_columns, unknown_rows
from data_pipelines.errors import BadInput
from data_pipelines.recording import Recording

CLASSES = {"N": "normal", "A": "AF", "O": "other", "~": "noise"}
_TABLES = ("REFERENCE-v3.csv", "REFERENCE.csv")
_PLACES = ("", "training2017/", "training/")
_RECORDS = (*(f"{place}A*.hea" for place in _PLACES), "A[0-9][0-9]/A*.hea", "training/A[0-9][0-9]/A*.hea")
_NAME, _LINE = re.compile(r"A\d{5}"), re.compile(r"(A\d{5}),([NAO~])")


class CinC2017(Source):
    """`A00001.hea` and `.mat`, 300 Hz, in the folder, in `training2017/`, or in `training/A00/` ...

    The reference is one of the tables without a heading `REFERENCE-v3.csv` and `REFERENCE.csv`, in the folder or beside
    the records: A00001,N and so on. Version 3 is the last; earlier ones differ in some hundred records. The folder
    `validation` holds copies of 300 of these records, and is not read.

    Labels: of "cinc2017/normal", "cinc2017/AF", "cinc2017/other" (rhythm) and "cinc2017/noise" (too much to tell) one
    is 1. The Challenge publishes no patients: each record counts as one person. The device gives lead I, which is
    upside down where it was held the other way round; headers say "ECG".
    """

    name = "cinc2017"
    licence = "ODC-BY 1.0"
    citation = "Clifford GD, et al. AF Classification from a Short Single Lead ECG Recording. CinC 2017."
    download = "wget -r -N -c -np https://physionet.org/files/challenge-2017/1.0.0/"
    note = "persons are not published: two recordings of one person may come to lie in different splits"

    @staticmethod
    def recognises(folder: Path) -> bool:
        table = _reference(folder)
        return table is not None and _LINE.fullmatch(",".join(table_columns(table))) is not None

    @cached_property
    def _classes(self) -> dict[str, str]:
        """Record -> its class."""
        table, found = _reference(self.root), {}
        for line in table.read_text(errors="replace").split():
            match = _LINE.fullmatch(line)
            if not match or match[1] in found:
                expected = "lines such as A00001,N, each record once"
                raise BadInput(table, "a line of another form, or a record twice", expected, "use the original file")
            found[match[1]] = CLASSES[match[2]]
        return found

    def entries(self) -> list[Entry]:
        paths = (path for pattern in _RECORDS for path in self.root.glob(pattern) if _NAME.fullmatch(path.stem))
        entries = [Entry(path.stem, path.stem, "", path.relative_to(self.root).as_posix()) for path in paths]
        unknown = unknown_rows(_reference(self.root), self._classes, (entry.study for entry in entries))
        self.note = "; ".join(filter(None, (type(self).note, unknown)))
        return sorted_entries(entries, self.root)

    def signals(self, entry: Entry) -> Recording:
        recording = super().signals(entry)
        return replace(recording, channels=tuple(channel._replace(name="I") for channel in recording.channels))

    def labels(self, entry: Entry, recording: Recording) -> dict[str, float]:
        ours = self._classes.get(entry.study)
        return {} if ours is None else {f"{self.name}/{name}": float(name == ours) for name in CLASSES.values()}


def _reference(folder: Path) -> Path | None:
    return next((path for name in _TABLES for place in _PLACES if (path := folder / place / name).is_file()), None)
