"""VTaC: 5,037 ventricular tachycardia alarms of ICU monitors, judged by experts (Lehman et al. 2023)."""

from functools import cached_property
from pathlib import Path

from data_pipelines.datasets.source import Entry, Source, read_table, sorted_entries, table_columns
from data_pipelines.recording import Recording

_SPLITS = {"train": "train", "val": "validation", "test": "test"}


class VTaC(Source):
    """`event_labels.csv` (record, event, decision), `benchmark_data_split.csv`, `waveforms/<record>/<event>.hea`.

    A record is a patient, an event one alarm: five minutes before it and one after it, 250 Hz. Label: "true_alarm".
    """

    name = "vtac"
    mains = 60.0
    ends = 300.0  # the alarm
    licence = "CC BY-SA 4.0"
    citation = "Lehman LW, et al. VTaC: A Benchmark Dataset of Ventricular Tachycardia Alarms. NeurIPS D&B 2023."
    download = "wget -r -N -c -np https://physionet.org/files/vtac/1.0/"
    columns = ("record", "event", "decision")

    @staticmethod
    def recognises(folder: Path) -> bool:
        return set(VTaC.columns) <= set(table_columns(folder / "event_labels.csv"))

    @cached_property
    def _decisions(self) -> dict[str, str]:
        rows = read_table(self.root / "event_labels.csv", self.columns)
        return {row["event"]: row["decision"].strip().lower() for row in rows}

    def entries(self) -> list[Entry]:
        splits = read_table(self.root / "benchmark_data_split.csv", ("record", "event", "split"))
        split = {row["event"]: _SPLITS.get(row["split"].strip().lower(), "") for row in splits}
        rows = read_table(self.root / "event_labels.csv", self.columns)
        entries = [
            Entry(row["record"], event := row["event"], split.get(event, ""), f"waveforms/{row['record']}/{event}.hea")
            for row in rows
        ]
        return sorted_entries(entries, self.root / "event_labels.csv")

    def labels(self, entry: Entry, recording: Recording) -> dict[str, float]:
        decision = self._decisions.get(entry.study)
        return {"true_alarm": float(decision == "true")} if decision in ("true", "false") else {}
