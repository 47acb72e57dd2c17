"""PhysioNet/CinC Challenges 2020 and 2021: twelve-lead ECGs of several hospitals with SNOMED CT codes."""

import re
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from data_pipelines.datasets.source import Entry, Source, read_table, sorted_entries
from data_pipelines.recording import Recording

_MAPPINGS = ("dx_mapping_scored.csv", "dx_mapping_unscored.csv")


class CinC2021(Source):
    """All headers below the folder. The Challenge publishes no patients: each record counts as one person.

    That is known to be wrong for two of its databases: INCART's 74 records (`I...`) are of 32 persons, and PTB has
    several of many (`S...`); `note` says so.

    The Challenge's copy of PTB-XL (`HR...`) is left out: its patients are split by fold in PTB-XL itself, and would
    otherwise be in training here and in test there. Codes of the mapping files are 0/1 labels "dx/<code>".
    """

    name = "cinc2021"
    mains = 50.0
    licence = "CC BY 4.0"
    citation = "Reyna MA, et al. Will Two Do? Varying Dimensions in Electrocardiography. CinC 2021."
    download = "wget -r -N -c -np https://physionet.org/files/challenge-2021/1.0.3/"
    note = "persons are not published: two recordings of one person may come to lie in different splits"

    @staticmethod
    def recognises(folder: Path) -> bool:
        return (folder / _MAPPINGS[0]).is_file()

    def entries(self) -> list[Entry]:
        headers = (path for path in self.root.rglob("*.hea") if not re.fullmatch(r"HR\d+", path.stem))
        entries = [Entry(path.stem, path.stem, "", path.relative_to(self.root).as_posix()) for path in headers]
        return sorted_entries(entries, self.root)

    @cached_property
    def _codes(self) -> list[str]:
        tables = (self.root / name for name in _MAPPINGS)
        return sorted(
            {row["SNOMEDCTCode"] for path in tables if path.is_file() for row in read_table(path, ["SNOMEDCTCode"])}
        )

    def labels(self, entry: Entry, recording: Recording) -> dict[str, float]:
        return {f"dx/{code}": 0.0 for code in self._codes} | recording.labels

    def read(self, entry: Entry) -> Recording:
        recording = super().read(entry)
        # Georgia (E...) is the one hospital with 60 Hz mains; the others are in China, Germany and Russia
        return replace(recording, mains=60.0) if entry.study.startswith("E") else recording
