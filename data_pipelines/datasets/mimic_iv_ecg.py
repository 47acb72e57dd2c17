"""MIMIC-IV-ECG: 800,035 diagnostic twelve-lead ECGs of 161,352 patients with machine reports (Gow et al. 2023)."""

import csv
from functools import cached_property
from pathlib import Path

from data_pipelines.datasets.source import Entry, Source, read_table, sorted_entries, table_columns
from data_pipelines.errors import BadInput
from data_pipelines.recording import Recording

_LINES = tuple(f"report_{i}" for i in range(18))


class MIMICIVECG(Source):
    """`record_list.csv`, `machine_measurements.csv`, `files/p1000/p10000032/s40689238/40689238.hea`.

    The stored order of the leads is I, II, III, aVR, aVF, aVL, V1 ...: whoever takes them by position swaps aVF and
    aVL. Here channels are known by name. The machine's report is its lines `report_0` to `report_17`, joined.
    """

    name = "mimic_iv_ecg"
    people = "mimic"  # subject_id is that of all of MIMIC-IV
    mains = 60.0
    licence = "ODbL 1.0"
    citation = "Gow B, et al. MIMIC-IV-ECG: Diagnostic Electrocardiogram Matched Subset 1.0. PhysioNet, 2023."
    download = "wget -r -N -c -np https://physionet.org/files/mimic-iv-ecg/1.0/"
    columns = ("subject_id", "study_id", "path")

    @staticmethod
    def recognises(folder: Path) -> bool:
        return set(MIMICIVECG.columns) <= set(table_columns(folder / "record_list.csv"))

    @cached_property
    def _reports(self) -> dict[str, str]:
        """Study -> the lines of its machine report; read as a stream, since the table has 800,000 rows of 33 fields."""
        path, reports = self.root / "machine_measurements.csv", {}
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                for row in csv.DictReader(file):
                    lines = (row.get(name) or "" for name in _LINES)
                    reports[row["study_id"]] = "; ".join(line.strip() for line in lines if line.strip())
        except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
            found = f"a table that cannot be read ({type(error).__name__})"
            raise BadInput(path, found, "machine_measurements.csv", "complete the download") from None
        return reports

    def entries(self) -> list[Entry]:
        rows = read_table(self.root / "record_list.csv", self.columns)
        return sorted_entries(
            [Entry(row["subject_id"], row["study_id"], "", f"{row['path']}.hea") for row in rows],
            self.root / "record_list.csv",
        )

    def labels(self, entry: Entry, recording: Recording) -> dict[str, float]:
        return {}

    def report(self, entry: Entry) -> str | None:
        return self._reports.get(entry.study) or None
