"""MIT-BIH Arrhythmia Database: 44 of its 48 half-hour two-lead ECGs, every beat annotated (Moody & Mark 2001)."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from data_pipelines.datasets.source import Entry, Source, sorted_entries
from data_pipelines.formats.wfdb_annotations import BEATS, read_annotations
from data_pipelines.inside import inside
from data_pipelines.recording import Recording

# de Chazal et al. 2004: the division that most of the literature uses
_DS1 = "101 106 108 109 112 114 115 116 118 119 122 124 201 203 205 207 208 209 215 220 223 230".split()
_DS2 = "100 103 105 111 113 117 121 123 200 202 210 212 213 214 219 221 222 228 231 232 233 234".split()


class MITDB(Source):
    """Records `100` to `234`, `.atr` annotations as events, and "beats/N" etc.: the number of beats of each kind.

    Records 201 and 202 are of one person, whom de Chazal's division has on both sides: here 202 is in training with
    201, so that the test set has one record less than in the literature. The four records of people with pacemakers
    (102, 104, 107, 217), which ANSI/AAMI EC57 leaves out, are in neither part, and are left out here.
    """

    name = "mitdb"
    mains = 60.0
    licence = "ODC-BY 1.0"
    citation = "Moody GB, Mark RG. The impact of the MIT-BIH Arrhythmia Database. IEEE EMB Mag 20(3):45-50, 2001."
    download = "wget -r -N -c -np https://physionet.org/files/mitdb/1.0.0/"

    @staticmethod
    def recognises(folder: Path) -> bool:
        return (folder / "100.atr").is_file() and (folder / "100.hea").is_file()

    def entries(self) -> list[Entry]:
        names = [path.stem for path in self.root.glob("[12][0-9][0-9].hea")]
        person = {"202": "201"}
        split = dict.fromkeys(_DS1, "train") | dict.fromkeys(_DS2, "test") | {"202": "train"}
        entries = [Entry(person.get(name, name), name, split[name], f"{name}.hea") for name in names if name in split]
        return sorted_entries(entries, self.root)

    def signals(self, entry: Entry) -> Recording:
        recording = super().signals(entry)
        file = inside(self.file_of(entry).with_suffix(".atr"), self.root)
        return replace(recording, events=read_annotations(file, recording.channels[0].rate, recording.seconds))

    def labels(self, entry: Entry, recording: Recording) -> dict[str, float]:
        beats = Counter(event.code for event in recording.events if event.code in BEATS)
        return recording.labels | {f"beats/{code}": float(n) for code, n in beats.items()}
