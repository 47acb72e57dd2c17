"""Any folder of recordings, in whatever formats `data_pipelines.formats` reads."""

import re
from pathlib import Path

from data_pipelines import formats
from data_pipelines.datasets import site_labels
from data_pipelines.datasets.source import Entry, Source, sorted_entries


class RecordingFolder(Source):
    """One source named after the folder; subjects are hashed with the site's own key, alike in all of its folders.

    A patient id in a file (a header's comment "Patient ID: ...", EDF's patient field, DICOM's PatientID) tells the
    person; without one, each recording counts as one. A table of the site's own may tell persons, splits and labels.

    Args:
        table: a CSV file of labels (`site_labels.read_labels`), here or elsewhere; None: those that files tell alone.
    """

    public = False
    people = "site"  # a patient of two folders must not be in training in one and in test in the other

    def __init__(self, root: Path, table: Path | None = None):
        super().__init__(root)
        self._table = table
        self.name = re.sub(r"[^A-Za-z0-9_.-]+", "_", self.root.name) or "recordings"

    def entries(self) -> list[Entry]:
        rows = site_labels.read_labels(self._table) if self._table else {}  # before every file is opened
        found, unknown = formats.find(self.root, without=self._table)
        entries, notes = [Entry(person or path, path, "", path) for path, person in found], []
        if self._table:
            entries, notes = site_labels.labelled(found, rows, self.root, self._table)
        if nameless := sum(entry.subject == entry.path for entry in entries):
            notes.append(
                f"{nameless} of {len(entries)} files name no patient: each of these recordings counts as a person, "
                "and two of one patient may come to lie in different splits"
            )
        notes += formats.left_out_notes(unknown, self.root)
        self.note = "; ".join(notes)
        return sorted_entries(entries, self.root)
