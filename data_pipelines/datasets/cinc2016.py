"""PhysioNet/CinC Challenge 2016: heart sounds, normal or abnormal, of six databases (Liu et al. 2016)."""

import re
from functools import cached_property
from pathlib import Path

from data_pipelines.datasets.source import Entry, Source, read_table, sorted_entries, table_columns
from data_pipelines.errors import BadInput
from data_pipelines.recording import Recording

_FOLDERS = "training-[a-f]"


class CinC2016(Source):
    """`training-a` ... `training-f`, each with WAV files and a `REFERENCE.csv` (1 abnormal, -1 normal), or one folder
    of WAV files with a `records.csv`.

    The Challenge does not say which recordings are of one person: each counts as one. In `training-a` a header beside
    the WAV file adds the ECG. Label: "abnormal" 0/1.
    """

    name = "cinc2016"
    licence = "ODC-BY 1.0"
    citation = "Liu C, et al. An open access database for the evaluation of heart sound algorithms. Physiol Meas 2016."
    download = "wget -r -N -c -np https://physionet.org/files/challenge-2016/1.0.0/"
    note = "persons are not published: two recordings of one person may come to lie in different splits"

    @staticmethod
    def recognises(folder: Path) -> bool:
        if {"record", "label_abnormal"} <= set(table_columns(folder / "records.csv")):
            return True
        return any((part / "REFERENCE.csv").is_file() for part in folder.glob(_FOLDERS))

    @cached_property
    def _abnormal(self) -> dict[str, float]:
        """Path of a recording, relative to the root -> 1.0 abnormal, 0.0 normal."""
        if (self.root / "records.csv").is_file():
            rows = read_table(self.root / "records.csv", ("record", "label_abnormal"))
            return {f"{row['record']}.wav": float(row["label_abnormal"] == "1") for row in rows}
        found = {}
        for table in sorted(self.root.glob(f"{_FOLDERS}/REFERENCE.csv")):
            for line in table.read_text(errors="replace").split():
                match = re.fullmatch(r"([a-f]\d{4,5}),(-1|1)(?:,.*)?", line)
                if not match:
                    expected = "lines such as a0001,1"
                    raise BadInput(table, "a line of another form", expected, "use the original file")
                found[f"{table.parent.name}/{match[1]}.wav"] = float(match[2] == "1")
        return found

    def entries(self) -> list[Entry]:
        names = ((Path(path).stem, path) for path in self._abnormal)
        return sorted_entries([Entry(name, name, "", path) for name, path in names], self.root)

    def labels(self, entry: Entry, recording: Recording) -> dict[str, float]:
        return {"abnormal": self._abnormal[entry.path]}
