"""Sleep-EDF Expanded: 197 whole-night polysomnographies with hypnograms (Kemp et al. 2000)."""

import re
from dataclasses import replace
from pathlib import Path

from data_pipelines.datasets.source import Entry, Source, sorted_entries
from data_pipelines.errors import BadInput
from data_pipelines.formats.edf import read_events
from data_pipelines.inside import inside
from data_pipelines.recording import Recording

_NIGHT = re.compile(r"(SC4|ST7)(\d\d)\d[A-Z]\w-PSG\.edf")


class SleepEDF(Source):
    """`sleep-cassette/SC4ssNE0-PSG.edf` and `sleep-telemetry/ST7ssNJ0-PSG.edf`: ss is the subject, N the night.

    The hypnogram's name differs in its eighth letter (`SC4001EC-Hypnogram.edf`). Events: "Sleep stage W" ... of
    Rechtschaffen and Kales, with their lengths; time counts from the recording's beginning, as in the hypnogram.
    """

    name = "sleep_edf"
    mains = 50.0
    licence = "ODC-BY 1.0"
    citation = "Kemp B, et al. Analysis of a sleep-dependent neuronal feedback loop. IEEE TBME 47(9):1185-1194, 2000."
    download = "wget -r -N -c -np https://physionet.org/files/sleep-edfx/1.0.0/"

    @staticmethod
    def recognises(folder: Path) -> bool:
        return any(
            next(folder.glob(f"{part}*-PSG.edf"), None) for part in ("sleep-cassette/SC4", "sleep-telemetry/ST7")
        )

    def entries(self) -> list[Entry]:
        found = ((path, _NIGHT.fullmatch(path.name)) for path in self.root.glob("sleep-*/*-PSG.edf"))
        entries = [
            Entry(f"{match[1]}{match[2]}", path.name.removesuffix("-PSG.edf"), "", f"{path.parent.name}/{path.name}")
            for path, match in found
            if match
        ]
        return sorted_entries(entries, self.root)

    def signals(self, entry: Entry) -> Recording:
        path = self.file_of(entry)
        found = path.parent.glob(f"{path.name[:7]}*-Hypnogram.edf")
        hypnogram = next((file for file in found if inside(file, self.root).is_file()), None)
        if hypnogram is None:
            raise BadInput(path.parent, "no hypnogram of a recording", "one for each", "complete the download")
        return replace(super().signals(entry), events=read_events(hypnogram))
