"""MIMIC-III Waveform Database, matched subset: days of bedside waveforms of 10,282 ICU patients (Moody et al. 2020)."""

import re
from pathlib import Path

from data_pipelines.datasets.source import Entry, Source, sorted_entries
from data_pipelines.errors import BadInput

_RECORD = re.compile(r"p\d\d/(p\d{6})/(p\d{6}-\d{4}-\d\d-\d\d-\d\d-\d\d)")


class MIMIC3Waveform(Source):
    """`RECORDS-waveforms` lists multi-segment records, `p00/p000020/p000020-2183-04-28-17-47`; numerics are left out.

    Leads change within a record: its layout header names every channel that comes up, and what a segment lacks is
    absent there. "V" and "MCL1" are bedside leads of unknown place, not V1 to V6.
    """

    name = "mimic3_waveform"
    people = "mimic3"
    mains = 60.0
    licence = "ODbL 1.0"
    citation = "Moody B, et al. MIMIC-III Waveform Database Matched Subset 1.0. PhysioNet, 2020."
    download = "wget -r -N -c -np https://physionet.org/files/mimic3wdb-matched/1.0/"

    @staticmethod
    def recognises(folder: Path) -> bool:
        try:
            with open(folder / "RECORDS-waveforms", encoding="ascii") as file:
                return bool(_RECORD.fullmatch(file.readline().strip()))
        except (OSError, UnicodeDecodeError):
            return False

    def entries(self) -> list[Entry]:
        table, entries = self.root / "RECORDS-waveforms", []
        for line in table.read_text(encoding="ascii", errors="replace").split():
            match = _RECORD.fullmatch(line)
            if not match:
                expected = "p00/p000020/p000020-2183-04-28-17-47"
                raise BadInput(table, "a line of another form", expected, "use the original file")
            entries.append(Entry(match[1], match[2], "", f"{line}.hea"))
        return sorted_entries(entries, table)
