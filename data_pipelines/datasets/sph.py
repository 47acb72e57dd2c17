"""Shandong Provincial Hospital: 25,770 twelve-lead ECGs of 24,666 patients with AHA statements (Liu et al. 2022)."""

from functools import cached_property
from pathlib import Path

from data_pipelines.datasets.source import Entry, Source, number, read_table, sorted_entries, table_columns
from data_pipelines.errors import BadInput
from data_pipelines.recording import Recording


class SPH(Source):
    """`metadata.csv` and `records/A00001.h5` (or the files beside the table).

    Labels: "aha/<code>" 0/1 for each primary statement (what follows a "+" in a code only modifies it), age, sex.
    """

    name = "sph"
    mains = 50.0
    licence = "CC BY 4.0"
    citation = "Liu H, et al. A large-scale multi-label 12-lead electrocardiogram database. Sci Data 9:272, 2022."
    download = "figshare collection 5779802: metadata.csv, code.csv and records.tar; tar -xf records.tar"
    columns = ("ECG_ID", "AHA_Code", "Patient_ID", "Age", "Sex")

    @staticmethod
    def recognises(folder: Path) -> bool:
        return set(SPH.columns) <= set(table_columns(folder / "metadata.csv"))

    @cached_property
    def _rows(self) -> dict[str, dict[str, str]]:
        rows = read_table(self.root / "metadata.csv", self.columns, unique="ECG_ID")
        found = {row["ECG_ID"].strip().removesuffix(".h5"): row for row in rows}
        if len(found) < len(rows):
            where = self.root / "metadata.csv"
            raise BadInput(where, "an ECG_ID both with and without .h5", "each once", "use the original file")
        return found

    @cached_property
    def _codes(self) -> list[str]:
        return sorted({code for row in self._rows.values() for code in _primary(row["AHA_Code"])})

    def entries(self) -> list[Entry]:
        folder = "records/" if (self.root / "records").is_dir() else ""
        entries = [Entry(row["Patient_ID"].strip(), name, "", f"{folder}{name}.h5") for name, row in self._rows.items()]
        return sorted_entries(entries, self.root / "metadata.csv")

    def labels(self, entry: Entry, recording: Recording) -> dict[str, float]:
        row = self._rows[entry.study]
        present = set(_primary(row["AHA_Code"]))
        sex = {"M": 0.0, "F": 1.0}.get(row["Sex"].strip(), float("nan"))
        return {f"aha/{code}": float(code in present) for code in self._codes} | {"age": number(row["Age"]), "sex": sex}


def _primary(codes: str) -> list[str]:
    return [code.split("+")[0].strip() for code in codes.split(";") if code.split("+")[0].strip().isdigit()]
