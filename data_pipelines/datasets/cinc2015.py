"""PhysioNet/CinC Challenge 2015: five minutes of ECG, PPG and pressure before an ICU alarm, true or false."""

import re
from pathlib import Path

from data_pipelines.datasets.source import Entry, Source, sorted_entries, table_columns
from data_pipelines.recording import Recording

ALARMS = ("Asystole", "Bradycardia", "Tachycardia", "Ventricular_Tachycardia", "Ventricular_Flutter_Fib")


class CinC2015(Source):
    """Records such as `a103l`: kind of alarm, number, and `l` (30 s after the alarm included) or `s`.

    From four hospitals in the USA and Europe (Clifford et al. 2015), so there is no one mains frequency; it, and all
    above 40 Hz, was removed before publication. Patients are not published; records of one number may be of one
    person, so the number is the subject.
    Labels: "true_alarm" 0/1 and "alarm/<kind>" 0/1, from the header's comments.
    """

    name = "cinc2015"
    ends = 300.0  # the alarm
    licence = "ODC-BY 1.0"
    citation = (
        "Clifford GD, et al. The PhysioNet/CinC Challenge 2015: Reducing False Arrhythmia Alarms in the ICU. CinC 2015."
    )

    download = "wget -r -N -c -np https://physionet.org/files/challenge-2015/1.0.0/"

    @staticmethod
    def recognises(folder: Path) -> bool:
        return (folder / "ALARMS").is_file() or "true_alarm" in table_columns(folder / "records.csv")

    def entries(self) -> list[Entry]:
        names = (re.fullmatch(r"[abtvf](\d+)[ls]\.hea", path.name) for path in self.root.glob("*.hea"))
        entries = [Entry(name[1], name[0].removesuffix(".hea"), "", name[0]) for name in names if name]
        return sorted_entries(entries, self.root)

    def labels(self, entry: Entry, recording: Recording) -> dict[str, float]:
        labels = {f"alarm/{kind}": 1.0 if kind in recording.comments else 0.0 for kind in ALARMS}
        for comment, truth in (("True alarm", 1.0), ("False alarm", 0.0)):
            if comment in recording.comments:
                labels["true_alarm"] = truth
        return labels
