"""EPHNOGRAM: simultaneous ECG and heart sounds of 24 adults at rest and during exercise (Kazemnejad et al. 2021)."""

import re
from functools import cached_property
from pathlib import Path

from data_pipelines.datasets.source import Entry, Source, read_table, sorted_entries


class EPHNOGRAM(Source):
    """`MAT/ECGPCG0003.mat` (or the same files in one folder); `ECGPCGSpreadsheet.csv` says whose they are.

    The spreadsheet's columns "Record Name" and "Subject ID" were not seen here; without it each record counts as a
    person, which is wrong for most, and `note` says so.
    """

    name = "ephnogram"
    mains = 50.0
    licence = "ODC-BY 1.0"
    citation = "Kazemnejad A, Gordany P, Sameni R. EPHNOGRAM 1.0.0. PhysioNet, doi:10.13026/tjtq-5911, 2021."
    download = "wget -r -N -c -np https://physionet.org/files/ephnogram/1.0.0/"
    _table = "ECGPCGSpreadsheet.csv"

    @staticmethod
    def recognises(folder: Path) -> bool:
        return any(next(folder.glob(pattern), None) for pattern in ("ECGPCG*.mat", "MAT/ECGPCG*.mat"))

    @cached_property
    def _people(self) -> dict[str, str]:
        if not (self.root / self._table).is_file():
            return {}
        rows = read_table(self.root / self._table, ("Record Name", "Subject ID"))
        return {row["Record Name"].strip(): row["Subject ID"].strip() for row in rows}

    def entries(self) -> list[Entry]:
        files = [path for path in self.root.rglob("ECGPCG*.mat") if re.fullmatch(r"ECGPCG\d{4}", path.stem)]
        if not self._people:
            self.note = f"no {self._table}: each record counts as a person, though 24 persons made 69 records"
        return sorted_entries(
            [
                Entry(self._people.get(path.stem, path.stem), path.stem, "", path.relative_to(self.root).as_posix())
                for path in files
            ],
            self.root,
        )
