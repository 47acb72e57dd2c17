"""BIDMC PPG and Respiration: 8-minute ICU recordings with ECG, PPG and impedance respiration (Pimentel et al. 2016)."""

import math
import re
import statistics
from functools import cached_property
from pathlib import Path

from data_pipelines.datasets.source import Entry, Source, number, read_table, sorted_entries
from data_pipelines.errors import BadInput
from data_pipelines.recording import Recording

_NUMERICS = {"HR": "heart_rate", "RESP": "respiration_rate", "SpO2": "spo2"}


class BIDMC(Source):
    """Records `bidmcNN`; each one's `*_Fix.txt` names the MIMIC-II subject: several records may be of one person.

    Labels: age, sex, and of `*_Numerics.csv` (one line a second), where it is there, the medians over the recording:
    "heart_rate" and "respiration_rate" (a minute), "spo2" (%).
    """

    name = "bidmc"
    mains = 60.0
    licence = "ODC-BY 1.0"
    citation = (
        "Pimentel MAF, et al. Toward a Robust Estimation of Respiratory Rate From Pulse Oximeters. IEEE TBME 2016."
    )

    download = "wget -r -N -c -np https://physionet.org/files/bidmc/1.0.0/"

    @staticmethod
    def recognises(folder: Path) -> bool:
        return next(folder.glob("bidmc[0-9][0-9].hea"), None) is not None

    @cached_property
    def _notes(self) -> dict[str, str]:
        """Record number -> text of its `*_Fix.txt`, which lies beside the records or in `bidmc_csv/`."""
        files = sorted(self.root.glob("bidmc_[0-9][0-9]_Fix.txt")) + sorted(
            self.root.glob("*/bidmc_[0-9][0-9]_Fix.txt")
        )
        return {path.name[6:8]: path.read_text(errors="replace") for path in files}

    def entries(self) -> list[Entry]:
        entries = []
        for path in self.root.glob("bidmc[0-9][0-9].hea"):
            person = re.search(r"^MIMIC II matched wdb ID:\s*(\w+)", self._notes.get(path.stem[5:], ""), re.MULTILINE)
            if not person:
                file = path.with_name(f"bidmc_{path.stem[5:]}_Fix.txt")
                remedy = "complete the download: without it, records of one person could not be kept together"
                raise BadInput(file, "no such file or no MIMIC II ID in it", "the record's Fix.txt", remedy)
            entries.append(Entry(person[1], path.stem, "", path.name))
        return sorted_entries(entries, self.root)

    def labels(self, entry: Entry, recording: Recording) -> dict[str, float]:
        text, labels = self._notes[entry.study[5:]], {}
        if age := re.search(r"^Age:\s*(\d+)", text, re.MULTILINE):
            labels["age"] = float(age[1])
        if sex := re.search(r"^Gender:\s*([MF])", text, re.MULTILINE):
            labels["sex"] = float(sex[1] == "F")
        return labels | self._numerics(entry.study[5:])

    def _numerics(self, record: str) -> dict[str, float]:
        name = f"bidmc_{record}_Numerics.csv"
        table = next((path for path in (self.root / name, *self.root.glob(f"*/{name}")) if path.is_file()), None)
        # the published tables have a space after each comma
        rows = [] if table is None else read_table(table, ("Time [s]", *(f" {name}" for name in _NUMERICS)))
        found = {}
        for name, label in _NUMERICS.items():
            values = [value for row in rows if math.isfinite(value := number(row[f" {name}"]))]
            if values:
                found[label] = statistics.median(values)
        return found
