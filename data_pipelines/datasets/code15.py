"""CODE-15% as WFDB records, in the layout of the 2025 Challenge: twelve-lead ECGs from Brazil (Ribeiro et al. 2020)."""

from pathlib import Path

from data_pipelines.datasets.source import Entry, Source, read_table, sorted_entries, table_columns
from data_pipelines.formats.wfdb_header import comment_fields
from data_pipelines.recording import Recording


class CODE15(Source):
    """`records.csv` says which patient a record is from; age, sex and the Chagas label stand in the header."""

    name = "code15"
    mains = 60.0
    licence = "CC BY 4.0"
    citation = "Ribeiro AH, et al. CODE-15%: a large scale annotated dataset of 12-lead ECGs. Zenodo 4916206, 2021."
    columns = ("record", "patient id", "chagas label")

    @staticmethod
    def recognises(folder: Path) -> bool:
        return set(CODE15.columns) <= set(table_columns(folder / "records.csv"))

    def entries(self) -> list[Entry]:
        rows = read_table(self.root / "records.csv", self.columns)
        entries = [Entry(row["patient id"].strip(), row["record"], "", f"{row['record']}.hea") for row in rows]
        return sorted_entries(entries, self.root / "records.csv")

    def labels(self, entry: Entry, recording: Recording) -> dict[str, float]:
        labels, chagas = recording.labels, comment_fields(recording.comments).get("chagas label", "").lower()
        return labels | ({"chagas": float(chagas == "true")} if chagas in ("true", "false") else {})
