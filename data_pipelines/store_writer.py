"""Writing a store shard by shard, so that a run killed at any moment goes on where it stopped.

While it is being written, a store has no manifest. A finished shard lies under its final name, and `.partial/` holds
its rows, its size and its SHA-256; whatever else is found there is a torn attempt and is written over. `finish` merges
the rows, writes the manifest last, and removes `.partial/`. Every step writes beside and renames.
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipelines.errors import BadInput
from data_pipelines.preprocess import PreparedRecording, Spec
from data_pipelines.signals import CHANNELS, modality_of
from data_pipelines.store import SPLITS, Store
from data_pipelines.store_format import (
    CHUNK_SECONDS,
    FORMAT,
    INDEX_SCHEMA,
    MANIFEST,
    WORK,
    chunk_count,
    file_sha256,
    manifest_bytes,
    record_count,
    shard_name,
    vocabulary_digest,
)


@dataclass(frozen=True)
class StoredRecording:
    """One recording as it goes into a store: hashes of 16 hex digits, a split of `SPLITS`, and what `prepare` gave."""

    subject: str
    study: str
    split: str
    prepared: PreparedRecording
    report: str | None = None
    labels: dict[str, float] = field(default_factory=dict)


class StoreWriter:
    """Writes a store.

    Args:
        path: the store's folder; an unfinished one made with the same `plan` goes on.
        name: the store's name. spec: how its recordings were prepared. shards: how many files at most.
        plan: what the store is made of, as plain values; kept in the manifest, and compared before going on.

    Raises:
        BadInput: the folder holds a store, or an unfinished one, made of something else; the message says which part.
    """

    def __init__(self, path: str | Path, *, name: str, spec: Spec, shards: int = 1, plan: dict | None = None):
        self.path, self.work = Path(path), Path(path) / WORK
        self.name, self.spec, self.shards = name, spec, shards
        self.plan = plan or {"name": name, "spec": str(spec), "shards": shards}
        self.work.mkdir(parents=True, exist_ok=True)
        (self.path / "shards").mkdir(exist_ok=True)
        self._check_plan()

    def _check_plan(self):
        file = self.work / "plan.json"
        try:
            found = json.loads(file.read_bytes())
        except (OSError, ValueError):
            write_file(file, json.dumps(self.plan, sort_keys=True).encode())
        else:
            compare_plans(self.path, found, self.plan)

    def locked(self):
        """Context: no second run writes here meanwhile (BadInput); the lock ends with the process."""
        return _lock(self.work / "lock", self.path)

    def finished(self, shard: int) -> dict | None:
        """The notes of a shard that is whole (its file's SHA-256 is compared), else None."""
        part = self._part(shard)
        if part is None:
            return None
        file = self.path / shard_name(shard, self.shards)
        if part["file"] and not (
            file.is_file()
            and file.stat().st_size == part["file"]["size"]
            and file_sha256(file) == part["file"]["sha256"]
        ):
            return None
        return part["notes"]

    def _part_path(self, shard):
        return self.work / f"shard-{shard:05d}.json"

    def _part(self, shard):
        try:
            data = self._part_path(shard).read_bytes()
            part = json.loads(data)
            return part if data == manifest_bytes(part) else None
        except (OSError, ValueError, AttributeError, TypeError, LookupError):
            return None

    def write_shard(self, shard: int, recordings: Iterable[StoredRecording], notes: dict | None = None) -> None:
        """Writes one shard whole, or, killed meanwhile, nothing that counts.

        Args:
            recordings: consumed one by one. notes: plain values kept with the shard until `finish`; may be filled
                while `recordings` are consumed.

        Raises:
            OSError: ENOSPC where the disk is full; finished shards stay.
        """
        rows: list[dict] = []
        temporary = self.work / f"writing-{shard:05d}-{os.getpid()}"
        try:
            count = _write_records(temporary, _chunks(recordings, rows))
            entry = None
            if rows:
                entry = {"size": temporary.stat().st_size, "sha256": file_sha256(temporary), "count": count}
                os.replace(temporary, self.path / shard_name(shard, self.shards))
            part = {"file": entry, "rows": rows, "notes": notes or {}}
            write_file(self._part_path(shard), manifest_bytes(part))
        finally:
            temporary.unlink(missing_ok=True)

    def finish(self, *, quarantine: list[dict] = (), key: str = "", about: dict | None = None, tokenizer=None) -> Store:
        """Writes index, labels, quarantine list, reports and, last, the manifest.

        Args:
            quarantine: plain dicts, one a recording that could not be read. key: fingerprint of the hashing key.
            about: plain values for the manifest (licence, citation, summary).
            tokenizer: None, or a function (texts, subjects) -> text of `tokenizer.json`, called with the reports of
                train subjects where there are any.

        Raises:
            BadInput: a shard is missing, or no recording was stored.
        """
        parts = [self._part(shard) for shard in range(self.shards)]
        if None in parts:
            raise BadInput(str(self.path), f"shard {parts.index(None)} unfinished", "every shard", "prepare again")
        rows = [{**row, "shard": shard} for shard, part in enumerate(parts) for row in part["rows"]]
        if not rows:
            raise BadInput(str(self.path), "no recording to store", "at least one", "look at what was quarantined")
        sets = sorted({tuple(row["channels"]) for row in rows})
        _write_index(self.path / "index.parquet", rows, sets)
        _write_labels(self.path / "labels.parquet", rows)
        lines = "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in quarantine)
        write_file(self.path / "quarantine.jsonl", lines.encode())
        names = {shard_name(i, self.shards): part["file"] for i, part in enumerate(parts) if part["file"]}
        counts = {"index.parquet": len(rows), "labels.parquet": len(rows), "quarantine.jsonl": len(quarantine)}
        counts.update(self._write_texts(rows, tokenizer))
        for name, count in counts.items():
            file = self.path / name
            names[name] = {"size": file.stat().st_size, "sha256": file_sha256(file), "count": count}
        manifest = {
            **(about or {}),
            "format": FORMAT,
            "name": self.name,
            "spec": self.spec.to_dict(),
            "vocabulary": {"channels": len(CHANNELS), "digest": vocabulary_digest(len(CHANNELS))},
            "key": key,
            "shards": self.shards,
            "channel_sets": [list(s) for s in sets],
            "totals": totals(rows),
            "plan": self.plan,
            "files": names,
        }
        write_file(self.path / MANIFEST, manifest_bytes(manifest))
        self.clear()
        return Store.open(self.path, verify="size")

    def clear(self) -> None:
        """Removes what only an unfinished store needs, also what killed runs left."""
        for torn in self.path.glob(".*.[0-9]*"):
            torn.unlink()
        shutil.rmtree(self.work, ignore_errors=True)

    def _write_texts(self, rows, tokenizer) -> dict[str, int]:
        reports = [(i, row["report"]) for i, row in enumerate(rows) if row["report"]]
        if not reports:
            return {}
        columns = {"recording": np.array([i for i, _ in reports], np.int32), "text": [text for _, text in reports]}
        _write_parquet(self.path / "reports.parquet", columns, {"recording": "int32", "text": "string"})
        counts = {"reports.parquet": len(reports)}
        train = [(text, rows[i]["subject"]) for i, text in reports if rows[i]["split"] == "train"]
        if tokenizer and train:
            write_file(self.path / "tokenizer.json", tokenizer(*map(list, zip(*train))).encode())
            counts["tokenizer.json"] = 1
        return counts


def compare_plans(path: Path, found: dict, expected: dict) -> None:
    """Raises BadInput naming what differs between what a folder was made of and what is asked for."""
    differing = sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
    if differing:
        raise BadInput(
            str(path),
            "a store made with another " + ", ".join(differing),
            "the one asked for",
            "choose another --output, or remove this folder",
        )


def totals(rows: list[dict]) -> dict:
    """Recordings, subjects, by split and in hours by modality (a recording counts once for each it holds)."""
    milliseconds: dict[str, int] = {}
    for row in rows:
        for modality in {modality_of(c).name for c in row["channels"]}:
            milliseconds[modality] = milliseconds.get(modality, 0) + row["milliseconds"]
    return {
        "recordings": len(rows),
        "subjects": len({row["subject"] for row in rows}),
        "splits": {split: sum(row["split"] == split for row in rows) for split in SPLITS},
        "hours": {m: round(ms / 3.6e6, 6) for m, ms in sorted(milliseconds.items())},
    }


def _chunks(recordings, rows):
    """Yields each recording's records, and appends its row once they are out."""
    first = 0
    for r in recordings:
        milliseconds, channels = r.prepared.milliseconds, [int(c) for c in r.prepared.channels]
        chunks = chunk_count(milliseconds)
        spans = [modality_of(c).rate * CHUNK_SECONDS for c in channels]
        for i in range(chunks):
            parts = (s[i * n : (i + 1) * n].astype("<i2", copy=False) for s, n in zip(r.prepared.samples, spans))
            yield b"".join(p.tobytes() for p in parts)
        rows.append(
            {
                "subject": r.subject,
                "study": r.study,
                "split": r.split,
                "milliseconds": milliseconds,
                "channels": channels,
                "first": first,
                "chunks": chunks,
                "report": r.report,
                "labels": {k: float(v) for k, v in r.labels.items() if not math.isnan(v)},
            }
        )
        first += chunks


def _write_records(path, records) -> int:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer, count = None, 0
    try:
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for record in records:
            writer.write(record)
            count += 1
        writer.close()
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        if record_count(path) != count:  # a write that failed without an error
            raise RuntimeError("the file is not whole")
    except RuntimeError as error:  # the C++ writer's only kind
        free = os.statvfs(path.parent)
        if "No space left" in str(error) or free.f_bavail * free.f_frsize < 1 << 22:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent.parent)) from error
        raise
    return count


def _write_index(path, rows, sets):
    of_set = {channels: i for i, channels in enumerate(sets)}
    derived = {
        "split": [SPLITS.index(row["split"]) for row in rows],
        "channel_set": [of_set[tuple(row["channels"])] for row in rows],
        "has_report": [bool(row["report"]) for row in rows],
    }
    _write_parquet(path, {n: derived.get(n) or [row[n] for row in rows] for n in INDEX_SCHEMA}, INDEX_SCHEMA)


def _write_labels(path, rows):
    names = sorted({name for row in rows for name in row["labels"]})
    columns = {n: np.array([row["labels"].get(n, np.nan) for row in rows], np.float32) for n in names}
    number = {"recording": np.arange(len(rows), dtype=np.int32)}
    _write_parquet(path, number | columns, {"recording": "int32"} | dict.fromkeys(names, "float32"))


def _write_parquet(path, columns, types):
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"float32": pa.float32(), "bool": pa.bool_()}
    schema = pa.schema([(n, kinds.get(t) or pa.type_for_alias(t)) for n, t in types.items()])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), sink)
    write_file(path, sink.getvalue().to_pybytes())


def write_file(path: Path, data: bytes) -> None:
    """Writes beside, then renames: under its name a file is whole or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def _lock(file, where):
    with open(file, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(
                str(where), "another run writing here", "one at a time", "wait until it has ended"
            ) from error
        yield
