"""Whether two stores share subjects or signals, or one store holds a recording twice.

csfm data overlap STORE STORE [--output=pairs.json]
csfm data overlap STORE

Subjects are compared where both stores were hashed with one key; signals always: a fingerprint that survives another
sampling rate, other filters and a shift finds candidates, and the signals are then correlated. Exit code 1: a subject
or a signal lies in one split in one store and in another in the other, so that training on one would leak into
evaluation on the other.
"""

import dataclasses
import json
import sys
from pathlib import Path

from data_pipelines.errors import BadInput
from data_pipelines.store import SPLITS, Store


def run(places: list[str], output: Path | None, verify: str) -> int:
    from tqdm import tqdm

    from data_pipelines.overlap import find_overlap

    if not 1 <= len(places) <= 2:
        raise BadInput("csfm data overlap", f"{len(places)} stores", "one or two", "compare them two at a time")
    a = Store.open(places[0], verify)
    b = Store.open(places[1], verify) if len(places) == 2 else a
    total = len(a.index) + (len(b.index) if len(places) == 2 else 0)
    with tqdm(total=total, unit="rec", disable=not sys.stderr.isatty(), leave=False) as bar:
        found = find_overlap(a, b, bar.update)
    if len(places) == 2:
        subjects = f"{len(found.subjects)} ({found.crossing_subjects} of them in different splits)"
        print(f"subjects in both   {subjects if found.comparable else 'not comparable: other keys or other people'}")
    print(f"equal signals      {len(found.pairs)} pairs ({found.crossing_pairs} of them in different splits)")
    other = sum(a.index.subject[pair.first] != b.index.subject[pair.second] for pair in found.pairs)
    if (found.comparable or a is b) and other:
        print(f"                   {other} of them under two subjects")
    if output:
        _write(output, a, b, found)
    return 1 if found.crossing_subjects or found.crossing_pairs else 0


def _write(path: Path, a: Store, b: Store, found) -> None:
    def side(store, row):
        index = store.index
        return {"study": index.study[row].decode(), "subject": index.subject[row].decode(),
                "split": SPLITS[index.split[row]]}  # fmt: skip

    pairs = [
        dataclasses.asdict(pair) | {"first": side(a, pair.first), "second": side(b, pair.second)}
        for pair in found.pairs
    ]
    about = {"stores": [a.digest, b.digest], "subjects": found.subjects, "pairs": pairs}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(f"pairs written to   {path}")
