"""PhysioNet/CinC Challenges 2020 and 2021: twelve-lead ECGs of several hospitals with SNOMED CT codes."""

import re
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from data_pipelines.datasets.source import Entry, Source, read_table, sorted_entries
from data_pipelines.recording import Recording

_MAPPINGS = ("dx_mapping_scored.csv", "dx_mapping_unscored.csv")
# The 30 SNOMED CT codes that the Challenge of 2021 scores, by its abbreviations; those of one line it scores as one
# diagnosis (Reyna et al. 2021; dx_mapping_scored.csv).
SCORED = {
    "AF": ("164889003",), "AFL": ("164890007",), "BBB": ("6374002",), "Brady": ("426627000",),
    "IAVB": ("270492004",), "IRBBB": ("713426002",), "LAD": ("39732003",), "LAnFB": ("445118002",),
    "LBBB": ("733534002", "164909002"),  # complete left bundle branch block, left bundle branch block
    "LPR": ("164947007",), "LQRSV": ("251146004",), "LQT": ("111975006",), "NSIVCB": ("698252002",),
    "NSR": ("426783006",),
    "PAC": ("284470004", "63593006"),  # premature atrial contraction, supraventricular premature beats
    "PR": ("10370003",), "PRWP": ("365413008",),
    "PVC": ("427172004", "17338001"),  # premature ventricular contractions, ventricular premature beats
    "QAb": ("164917005",), "RAD": ("47665007",),
    "RBBB": ("713427006", "59118001"),  # complete right bundle branch block, right bundle branch block
    "SA": ("427393009",), "SB": ("426177001",), "STach": ("427084000",), "TAb": ("164934002",),
    "TInv": ("59931005",),
}  # fmt: skip


class CinC2021(Source):
    """All headers below the folder. The Challenge publishes no patients: each record counts as one person.

    That is known to be wrong for two of its databases: INCART's 74 records (`I...`) are of 32 persons, and PTB has
    several of many (`S...`); `note` says so.

    The Challenge's copy of PTB-XL (`HR...`) is left out: its patients are split by fold in PTB-XL itself, and would
    otherwise be in training here and in test there. Labels: age, sex, "dx/<code>" 0/1 for codes of the mapping files
    and of the record, and "scored/<abbreviation>" 0/1 for the 26 diagnoses of `SCORED`, where a record has a code.
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
        labels = {f"dx/{code}": 0.0 for code in self._codes} | recording.labels
        coded = {name for name in recording.labels if name.startswith("dx/")}
        scored = {name: float(any(f"dx/{code}" in coded for code in codes)) for name, codes in SCORED.items()}
        return labels | {f"scored/{name}": value for name, value in scored.items() if coded}

    def read(self, entry: Entry) -> Recording:
        recording = super().read(entry)
        # Georgia (E...) is the one hospital with 60 Hz mains; the others are in China, Germany and Russia
        return replace(recording, mains=60.0) if entry.study.startswith("E") else recording
