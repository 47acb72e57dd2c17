"""PhysioNet/CinC Challenge 2018: 1,985 polysomnographies with stages, apnoeas and arousals (Ghassemi et al. 2018)."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path

from data_pipelines.datasets.source import Entry, Source, number, read_table, sorted_entries, unknown_rows
from data_pipelines.formats.wfdb_annotations import read_annotations
from data_pipelines.inside import inside
from data_pipelines.recording import Recording

_PEOPLE = "age-sex.csv"


class CinC2018(Source):
    """`training/tr03-0005/tr03-0005.hea` with `.mat` signals and `.arousal` annotations, `test/te...` without them.

    One night a person. `age-sex.csv` ("Record", "Age", "Sex") gives the labels age and sex where it is there. The
    annotations of the test records were never published, so they are in no split of their own: hash decides, as for
    all others.
    """

    name = "cinc2018"
    mains = 60.0
    licence = "ODC-BY 1.0"
    citation = (
        "Ghassemi MM, et al. You Snooze, You Win: the PhysioNet/Computing in Cardiology Challenge 2018. CinC 2018."
    )
    download = "wget -r -N -c -np https://physionet.org/files/challenge-2018/1.0.0/"

    @staticmethod
    def recognises(folder: Path) -> bool:
        return next(folder.glob("training/tr[0-9][0-9]-[0-9]*/tr*.hea"), None) is not None

    @cached_property
    def _people(self) -> dict[str, dict[str, str]]:
        table = self.root / _PEOPLE
        rows = read_table(table, ("Record", "Age", "Sex")) if table.is_file() else []
        return {row["Record"].strip(): row for row in rows}

    def entries(self) -> list[Entry]:
        headers = (p for part in ("training/tr", "test/te") for p in self.root.glob(f"{part}[0-9][0-9]-[0-9]*/*.hea"))
        entries = [Entry(path.stem, path.stem, "", path.relative_to(self.root).as_posix()) for path in headers]
        self.note = unknown_rows(self.root / _PEOPLE, self._people, (entry.study for entry in entries))
        return sorted_entries(entries, self.root)

    def signals(self, entry: Entry) -> Recording:
        recording = super().signals(entry)
        file = inside(self.file_of(entry).with_suffix(".arousal"), self.root)
        if not file.is_file() and entry.path.startswith("test/"):
            return recording
        return replace(recording, events=read_annotations(file, recording.channels[0].rate, recording.seconds))

    def labels(self, entry: Entry, recording: Recording) -> dict[str, float]:
        row = self._people.get(entry.study)
        if row is None:
            return {}
        sex = {"M": 0.0, "F": 1.0}.get(row["Sex"].strip()[:1].upper(), float("nan"))
        return {"age": number(row["Age"]), "sex": sex}
