"""Any folder of recordings, in whatever formats `data_pipelines.formats` reads."""

import json
import re
from pathlib import Path

from data_pipelines import formats
from data_pipelines.datasets.site_labels import Row, by_recording, read_labels
from data_pipelines.datasets.source import Entry, Source, sorted_entries
from data_pipelines.recording import Recording


class RecordingFolder(Source):
    """One source named after the folder; subjects are hashed with the site's own key, alike in all of its folders.

    A patient id in a file (a header's comment "Patient ID: ...", EDF's patient field, DICOM's PatientID) tells the
    person; without one, each recording counts as one. What a table of the site's own labels tells comes before what
    files do.

    Args:
        table: a CSV file of labels (`site_labels.read_labels`), here or elsewhere; None: those that files tell alone.
    """

    public = False
    people = "site"  # a patient of two folders must not be in training in one and in test in the other

    def __init__(self, root: Path, table: Path | None = None):
        super().__init__(root)
        self._table, self._rows = table, {}
        self.name = re.sub(r"[^A-Za-z0-9_.-]+", "_", self.root.name) or "recordings"

    def entries(self) -> list[Entry]:
        found, unknown = formats.find(self.root)
        notes = []
        if self._table is not None:
            found = [(path, person) for path, person in found if self.root / path != self._table.resolve()]
            self._rows, nowhere = by_recording(read_labels(self._table), [path for path, _ in found], self._table)
            self.given = json.dumps({path: sorted(row.labels.items()) for path, row in sorted(self._rows.items())})
            found = [(path, self._row(path).subject or person) for path, person in found]
            notes.append(f"{self._table.name} has labels of {len(self._rows)} of {len(found)} recordings")
            if nowhere:
                notes.append(f"it names {nowhere} that are not here: their labels are not used")
        entries = [Entry(person or path, path, self._row(path).split, path) for path, person in found]
        if nameless := sum(not person for _, person in found):
            notes.append(
                f"{nameless} of {len(found)} files name no patient: each of these recordings counts as a person, "
                "and two of one patient may come to lie in different splits"
            )
        notes += formats.left_out_notes(unknown, self.root)
        self.note = "; ".join(notes)
        return sorted_entries(entries, self.root)

    def labels(self, entry: Entry, recording: Recording) -> dict[str, float]:
        return recording.labels | self._row(entry.path).labels

    def _row(self, path: str) -> Row:
        return self._rows.get(path, Row("", "", {}))
