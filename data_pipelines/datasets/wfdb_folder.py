"""Any folder of WFDB records."""

import re
from pathlib import Path

from data_pipelines.datasets.source import Entry, Source, sorted_entries
from data_pipelines.errors import BadInput
from data_pipelines.formats.wfdb_header import read_header

_PERSON = ("patient id", "subject id", "patient", "subject")


class WFDBFolder(Source):
    """One source named after the folder; subjects are hashed with the site's own key, alike in all of its folders.

    A header's comment "Patient ID: ..." (or "Subject ID") tells the person; without one, each record counts as one.
    Segments of a multi-segment record are read through it, and are not listed themselves.
    """

    public = False
    people = "site"  # a patient of two folders must not be in training in one and in test in the other

    def __init__(self, root: Path):
        super().__init__(root)
        self.name = re.sub(r"[^A-Za-z0-9_.-]+", "_", self.root.name) or "wfdb"

    def entries(self) -> list[Entry]:
        entries, segments = {}, set()
        for path in sorted(self.root.rglob("*.hea")):
            study = path.relative_to(self.root).with_suffix("").as_posix()
            person = study
            try:
                header = read_header(path)
                fields = header.fields()
                person = next((fields[key] for key in _PERSON if fields.get(key)), study)
                segments.update(path.with_name(f"{name}.hea") for name, _ in header.segments)
            except BadInput:
                pass  # listed all the same: reading it raises, and the bulk run writes the reason down
            entries[path] = Entry(person, study, "", f"{study}.hea")
        kept = [entry for path, entry in entries.items() if path not in segments]
        if nameless := sum(entry.subject == entry.study for entry in kept):
            self.note = (
                f"{nameless} of {len(kept)} headers name no patient: each of these recordings counts as a person, "
                "and two of one patient may come to lie in different splits"
            )
        return sorted_entries(kept, self.root)
