"""CODE-15%: 345,779 twelve-lead ECGs of 233,770 patients from Brazil (Ribeiro et al. 2020, 2021)."""

import math
from functools import cached_property
from pathlib import Path

from data_pipelines.datasets.source import Entry, Source, number, read_table, sorted_entries, table_columns
from data_pipelines.errors import BadInput
from data_pipelines.formats.wfdb_header import comment_fields, read_header
from data_pipelines.inside import inside
from data_pipelines.recording import Recording

_ABNORMALITIES = ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF")
_HEADERS, _TOLD = ("*.hea", "exams_part*/*.hea"), {"exam id", "patient id", "chagas label"}


class CODE15(Source):
    """As WFDB records, in the layout of the 2025 Challenge.

    Its script writes headers whose comments tell exam, patient, age, sex and Chagas label, in one folder or in
    `exams_part0` ...; where a `records.csv` lists the records, it says whose they are.
    """

    name = "code15"
    mains = 60.0
    licence = "CC BY 4.0"
    citation = "Ribeiro AH, et al. CODE-15%: a large scale annotated dataset of 12-lead ECGs. Zenodo 4916206, 2021."
    download = "the 2025 Challenge's prepare_code15_data.py, from the files of zenodo.org/records/4916206"
    columns: tuple[str, ...] = ("record", "patient id", "chagas label")

    @staticmethod
    def recognises(folder: Path) -> bool:
        if set(CODE15.columns) <= set(table_columns(folder / "records.csv")):
            return True
        first = next((path for pattern in _HEADERS for path in folder.glob(pattern)), None)
        try:
            return first is not None and _TOLD <= comment_fields(read_header(first).comments).keys()
        except BadInput:
            return False

    def entries(self) -> list[Entry]:
        if not (self.root / "records.csv").is_file():
            paths = (path for pattern in _HEADERS for path in self.root.glob(pattern))
            return sorted_entries([self._entry(path) for path in paths], self.root)
        rows = read_table(self.root / "records.csv", self.columns, unique="record")
        entries = [Entry(row["patient id"].strip(), row["record"], "", f"{row['record']}.hea") for row in rows]
        return sorted_entries(entries, self.root / "records.csv")

    def _entry(self, path: Path) -> Entry:
        person = comment_fields(read_header(inside(path, self.root)).comments).get("patient id")
        if not person:
            expected = "the comment `Patient ID: ...` in every header"
            raise BadInput(self.root, "a record without one", expected, "make the records again, or remove it")
        return Entry(person, path.stem, "", path.relative_to(self.root).as_posix())

    def labels(self, entry: Entry, recording: Recording) -> dict[str, float]:
        labels, chagas = recording.labels, comment_fields(recording.comments).get("chagas label", "").lower()
        return labels | ({"chagas": float(chagas == "true")} if chagas in ("true", "false") else {})


class CODE15HDF5(Source):
    """As published: `exams.csv` and `exams_part0.hdf5` ... `exams_part17.hdf5` (datasets "tracings" and "exam_id").

    The whole CODE dataset has the same layout. Labels: "abnormality/1dAVb" ..., "death" and "followup_years" if
    follow-up tells (it does for the first exam of a person), "death_within_a_year" unless follow-up ended before that,
    age, sex. Zenodo's note on units is at odds with itself; the values are taken as mV, as the 2025
    Challenge does.
    """

    name = "code15"
    mains = 60.0
    licence = CODE15.licence
    citation = CODE15.citation
    download = "zenodo_get 4916206; unzip 'exams_part*.zip'"
    columns = ("exam_id", "patient_id", "age", "is_male", "trace_file")

    @staticmethod
    def recognises(folder: Path) -> bool:
        return set(CODE15HDF5.columns) <= set(table_columns(folder / "exams.csv"))

    @cached_property
    def _rows(self) -> dict[str, dict[str, str]]:
        rows = read_table(self.root / "exams.csv", self.columns, unique="exam_id")
        return {row["exam_id"].strip(): row for row in rows}

    def entries(self) -> list[Entry]:
        # parts that were not downloaded are no errors of 20,000 recordings each
        there = {path.name for path in self.root.glob("*.hdf5")}
        rows = {exam: row for exam, row in self._rows.items() if row["trace_file"] in there}
        if missing := {row["trace_file"] for row in self._rows.values()} - there:
            self.note = f"{len(missing)} of the files that exams.csv names are not here; their exams are left out"
        entries = [Entry(row["patient_id"], exam, "", f"{row['trace_file']}#{exam}") for exam, row in rows.items()]
        return sorted_entries(entries, self.root / "exams.csv")

    def labels(self, entry: Entry, recording: Recording) -> dict[str, float]:
        row = self._rows[entry.study]
        found = {f"abnormality/{name}": _truth(row[name]) for name in _ABNORMALITIES if name in row}
        male, death, years = _truth(row["is_male"]), _truth(row.get("death", "")), number(row.get("timey", ""))
        found |= {"death": death, "followup_years": years, "death_within_a_year": _within_a_year(death, years)}
        return found | {"age": number(row["age"]), "sex": 1.0 - male}


def _within_a_year(death: float, years: float) -> float:
    """1.0 died within a year, 0.0 lived for one at least, NaN where that is not known; years: to death, or observed."""
    if math.isnan(death) or math.isnan(years):
        return math.nan
    if death and years <= 1:
        return 1.0
    return 0.0 if years >= 1 else math.nan


def _truth(text: str) -> float:
    return {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}.get(
        text.strip().lower(), float("nan")
    )
