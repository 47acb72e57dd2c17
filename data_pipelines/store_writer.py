"""Writing a store shard by shard, so that a run killed at any moment goes on where it stopped.

While it is being written, a store has no manifest. A finished shard's files lie under their final names, and
`.partial/` holds its rows, and each file's size and SHA-256; whatever else is found there is a torn attempt: every
file is begun there and renamed. `finish` goes through the shards one after the other, so that its memory does not grow
with the store, writes the manifest last, and removes `.partial/`.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.errors import BadInput
from data_pipelines.preprocess import PreparedRecording, Spec
from data_pipelines.quality import Quality
from data_pipelines.recording import Event
from data_pipelines.signals import CHANNELS, modality_of
from data_pipelines.store import Store
from data_pipelines.store_format import (
    CHUNK_SECONDS,
    FORMAT,
    MANIFEST,
    WORK,
    chunk_count,
    file_sha256,
    manifest_bytes,
    quality_name,
    record_count,
    shard_name,
    vocabulary_digest,
)
from data_pipelines.store_tables import (
    EventTable,
    IndexTable,
    LabelTable,
    Merged,
    ReportTable,
    TableWriter,
    write_quality,
)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@dataclass(frozen=True)
class StoredRecording:
    """One recording as it goes into a store: hashes of 16 hex digits, a split of `SPLITS`, and what `prepare` gave."""

    subject: str
    study: str
    split: str
    prepared: PreparedRecording
    report: str | None = None
    labels: dict[str, float] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    derived: bool = False
    quality: Quality | None = None


class StoreWriter:
    """Writes a store.

    Args:
        path: the store's folder; an unfinished one made with the same `plan` goes on.
        name: the store's name. spec: how its recordings were prepared. shards: how many files at most.
        plan: what the store is made of, as plain values; kept in the manifest, and compared before going on.

    Raises:
        BadInput: the folder holds a store, or an unfinished one, made of something else (the message says which part),
            or other files.
    """

    def __init__(self, path: str | Path, *, name: str, spec: Spec, shards: int = 1, plan: dict | None = None):
        self.path, self.work = Path(path), Path(path) / WORK
        self.name, self.spec, self.shards = name, spec, shards
        self.plan = plan or {"name": name, "spec": str(spec), "shards": shards}
        self._check_folder()
        self.work.mkdir(parents=True, exist_ok=True)
        (self.path / "shards").mkdir(exist_ok=True)
        self._check_plan()

    def _check_folder(self):
        try:
            others = not self.work.is_dir() and any(self.path.iterdir())
        except FileNotFoundError:
            return
        # asked again: of jobs that begin at one moment, another may have made `.partial/` meanwhile
        if others and not self.work.is_dir() and not (self.path / MANIFEST).is_file():
            found = "a folder with other files"
            raise BadInput(str(self.path), found, "an empty folder or a store", "choose another --output, or empty it")

    def _check_plan(self):
        file = self.work / "plan.json"
        try:
            found = json.loads(file.read_bytes())
        except (FileNotFoundError, ValueError):
            write_file(file, json.dumps(self.plan, sort_keys=True).encode(), self.work)
        else:
            compare_plans(self.path, found, self.plan)

    def locked(self, shared: bool = False):
        """Context: no second run writes here meanwhile (BadInput), but for others that say `shared` too.

        The lock ends with the process.
        """
        return _lock(self.work / "lock", self.path, shared)

    def finished(self, shard: int) -> bool:
        """Whether a shard is whole: its rows are there, and its files have the right size and SHA-256."""
        part = self._part(shard)
        if part is None:
            return False
        return all(
            (self.path / name).is_file()
            and (self.path / name).stat().st_size == entry["size"]
            and file_sha256(self.path / name) == entry["sha256"]
            for name, entry in part["files"].items()
        )

    def notes(self, shard: int) -> dict | None:
        """What `write_shard` kept with a shard; None where the shard has not been written."""
        part = self._part(shard)
        return part["notes"] if part else None

    def _part_path(self, shard):
        return self.work / f"shard-{shard:05d}.json"

    def _part(self, shard):
        try:
            body, _, digest = self._part_path(shard).read_bytes().rpartition(b"\n")
        except FileNotFoundError:
            return None
        return json.loads(body) if hashlib.sha256(body).hexdigest().encode() == digest else None

    def write_shard(self, shard: int, recordings: Iterable[StoredRecording], notes: dict | None = None) -> None:
        """Writes one shard whole, or, killed meanwhile, nothing that counts.

        Args:
            recordings: consumed one by one. notes: plain values kept with the shard until `finish`; may be filled
                while `recordings` are consumed.

        Raises:
            OSError: ENOSPC where the disk is full; finished shards stay.
        """
        rows: list[dict] = []
        qualities: list[tuple[int, Quality]] = []
        files: dict[str, dict] = {}
        temporary = self.work / f"writing-{shard:05d}-{uuid.uuid4().hex}"  # machines that share a disk share no pids
        try:
            count = _write_records(temporary, _chunks(recordings, rows, qualities))
            if rows:
                name = shard_name(shard, self.shards)
                files[name] = {"size": temporary.stat().st_size, "sha256": file_sha256(temporary), "count": count}
                os.replace(temporary, self.path / name)
            if len(qualities):
                (self.path / "quality").mkdir(exist_ok=True)
                name = quality_name(shard, self.shards)
                count = write_quality(self.path / name, temporary, qualities)
                file = self.path / name
                files[name] = {"size": file.stat().st_size, "sha256": file_sha256(file), "count": count}
            part = {"files": files, "rows": rows, "notes": notes or {}}
            body = json.dumps(part).encode()
            write_file(self._part_path(shard), body + b"\n" + hashlib.sha256(body).hexdigest().encode(), self.work)
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
        merged = Merged()
        for shard in range(self.shards):
            merged.survey(self._part_or_refuse(shard))
        if not merged.recordings:
            raise BadInput(str(self.path), "no recording to store", "at least one", "look at what was quarantined")
        self._write_tables(merged, tokenizer)
        lines = "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in quarantine)
        write_file(self.path / "quarantine.jsonl", lines.encode(), self.work)
        files = dict(merged.files)
        counts = {"quarantine.jsonl": len(quarantine), **merged.table_counts}
        for name, count in counts.items():
            file = self.path / name
            files[name] = {"size": file.stat().st_size, "sha256": file_sha256(file), "count": count}
        manifest = {
            **(about or {}),
            "format": FORMAT,
            "name": self.name,
            "spec": self.spec.to_dict(),
            "vocabulary": {"channels": len(CHANNELS), "digest": vocabulary_digest(len(CHANNELS))},
            "key": key,
            "shards": self.shards,
            "channel_sets": [list(s) for s in sorted(merged.sets)],
            "totals": merged.totals(),
            "plan": self.plan,
            "files": files,
        }
        write_file(self.path / MANIFEST, manifest_bytes(manifest), self.work)
        self.clear()
        return Store.open(self.path, verify="size")

    def _part_or_refuse(self, shard):
        part = self._part(shard)
        if part is None:
            raise BadInput(str(self.path), f"shard {shard} unfinished", "every shard", "prepare again")
        return part

    def _write_tables(self, merged, tokenizer) -> None:
        """The tables of one row a recording, by groups of shards."""
        tables = {"index.parquet": IndexTable(merged), "labels.parquet": LabelTable(merged)}
        if merged.reports:
            tables["reports.parquet"] = ReportTable()
        if merged.events:
            tables["events.parquet"] = EventTable()
        writers = {
            name: TableWriter(self.path / name, self.work / f"writing-{name}", table.types)
            for name, table in tables.items()
        }
        train: list[tuple[str, str]] = []
        first = 0
        try:
            for shard in range(self.shards):
                rows = [{**row, "shard": shard} for row in self._part_or_refuse(shard)["rows"]]
                for name, table in tables.items():
                    writers[name].add(table.columns(rows, first))
                if tokenizer:
                    train += [(r["report"], r["subject"]) for r in rows if r["report"] and r["split"] == "train"]
                first += len(rows)
            merged.table_counts = {name: writer.close() for name, writer in writers.items()}
        finally:
            for writer in writers.values():
                writer.abandon()
        if tokenizer and train:
            write_file(self.path / "tokenizer.json", tokenizer(*map(list, zip(*train))).encode(), self.work)
            merged.table_counts["tokenizer.json"] = 1

    def clear(self) -> None:
        """Removes what only an unfinished store needs, also what killed runs left."""
        with contextlib.suppress(OSError):
            (self.path / "shards").rmdir()  # empty where nothing was usable
        shutil.rmtree(self.work, ignore_errors=True)


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


def _chunks(recordings, rows, qualities):
    """Yields each recording's records, and appends its row and its quality once they are out."""
    first = 0
    for r in recordings:
        milliseconds, channels = r.prepared.milliseconds, [int(c) for c in r.prepared.channels]
        chunks = chunk_count(milliseconds)
        digest = hashlib.blake2b(repr(channels).encode(), digest_size=8)
        spans = [modality_of(c).rate * CHUNK_SECONDS for c in channels]
        for i in range(chunks):
            parts = (s[i * n : (i + 1) * n].astype("<i2", copy=False) for s, n in zip(r.prepared.samples, spans))
            chunk = b"".join(p.tobytes() for p in parts)
            digest.update(chunk)
            yield chunk
        if r.quality is not None:
            qualities.append((len(rows), r.quality))
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
                "events": [[float(e.time), float(e.seconds), e.code] for e in r.events],
                "derived": r.derived,
                "digest": digest.hexdigest(),
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
        full = next((code for code in _FULL if os.strerror(code) in str(error)), None)
        if full is None and free.f_bavail * free.f_frsize < 1 << 22:
            full = errno.ENOSPC
        if full is None:
            raise
        raise OSError(full, os.strerror(full), str(path.parent.parent)) from error
    return count


def write_file(path: Path, data: bytes, work: Path) -> None:
    """Writes in the folder `work`, then renames: under its name a file is whole or not there."""
    temporary = work / f"writing-{path.name}-{uuid.uuid4().hex}"
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
def _lock(file, where, shared):
    with open(file, "w") as handle:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(
                str(where), "another run writing here", "one at a time", "wait until it has ended"
            ) from error
        yield
