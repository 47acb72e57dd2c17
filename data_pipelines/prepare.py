"""Recordings -> store, on one machine: shard by shard, resumable, with the same bytes however it ran.

A subject's shard is a hash of the subject, so shards are independent work and subjects never straddle two of them.
Killed at any moment, the same call goes on: shards whose SHA-256 is right are kept. What cannot be read goes to the
store's quarantine list, under hashes, and the run goes on.

A recording is filtered whole, forward and backward in time. Where a task may not look ahead (an alarm must be judged
from what came before it), the source must cut the recording before it gets here.
"""

import hashlib
import hmac
import multiprocessing
import os
import re
import secrets
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines import preprocess
from data_pipelines.datasets import Entry, Source
from data_pipelines.errors import BadInput
from data_pipelines.preprocess import SPECS, PreparedRecording
from data_pipelines.recording import Recording
from data_pipelines.signals import standard_name
from data_pipelines.store import SPLITS, Store
from data_pipelines.store_format import MANIFEST, WORK, read_manifest
from data_pipelines.store_writer import StoredRecording, StoreWriter, compare_plans

# Published datasets are hashed alike everywhere, so that stores made at two places can be compared and merged.
PUBLIC_KEY = b"csfm_jax: subjects of published datasets"
RECORDINGS_PER_SHARD, MOST_SHARDS = 64, 1024


@dataclass(frozen=True)
class Summary:
    """What a run of `prepare` did; `str()` gives the lines that a person reads.

    Attributes:
        path: the store. already: it was complete, and has only been verified.
        totals: as in the manifest: recordings, subjects, by split, hours by modality.
        quarantined: recordings that could not be read or had no usable channel.
        unknown: channel name -> recordings in which it was not known, and left out or, by its unit, kept ("x as y").
        dropped: reason -> channels left out because of it.
        seconds: time taken.
    """

    path: Path
    already: bool
    totals: dict
    quarantined: int
    unknown: dict[str, int]
    dropped: dict[str, int]
    seconds: float

    def __str__(self) -> str:
        splits = ", ".join(f"{n} {split}" for split, n in self.totals["splits"].items())
        hours = ", ".join(f"{m} {h:.2f}" for m, h in self.totals["hours"].items())
        lines = [
            f"{self.path}: {self.totals['recordings']} recordings of {self.totals['subjects']} subjects ({splits})",
            f"  hours: {hours}",
            f"  quarantined: {self.quarantined}" + (" (see quarantine.jsonl)" if self.quarantined else ""),
        ]
        if self.unknown:
            lines.append("  channels unknown by name: " + _counts(self.unknown))
        if self.dropped:
            lines.append("  channels left out: " + _counts(self.dropped))
        done = "complete already, verified" if self.already else "written"
        return "\n".join([*lines, f"  {done} in {self.seconds:.1f} s"])


def _counts(of: dict[str, int]) -> str:
    return ", ".join(f"{name} ({n})" for name, n in sorted(of.items(), key=lambda item: (-item[1], item[0])))


def prepare(
    source: Source,
    output: str | Path,
    *,
    spec: str = "csfm-jax",
    keep_reports: bool = False,
    shards: int | None = None,
    key: bytes | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Makes a store of a source, goes on with an unfinished one, or verifies a finished one.

    Args:
        source: what to read. output: the store's folder.
        spec: name of a preprocessing in `preprocess.SPECS`.
        keep_reports: store the reports, and a vocabulary trained on those of train subjects.
        shards: files of the store; None: about 64 recordings each. The bytes of a store depend on it.
        key: the site's secret for hashing subjects; not used for a public source.
        workers: processes; the store's bytes do not depend on it.
        progress: called with (recordings done, recordings in all).

    Raises:
        BadInput: no key for a source that is not public, nothing usable in the source, or an output folder that holds
            a store of something else.
        OSError: the disk is full; the same call goes on later.
    """
    began = time.monotonic()
    if workers < 1:
        raise BadInput("--workers", str(workers), "at least 1", "leave it out for one")
    job, work = _plan(source, Path(output), spec, keep_reports, shards, key)
    progress = progress or (lambda done, total: None)
    total = sum(map(len, work.values()))
    if (job.output / MANIFEST).is_file():
        compare_plans(job.output, read_manifest(job.output)["plan"], job.plan)
        store = Store.open(job.output, verify="full")
        if (job.output / WORK).exists():  # killed after its last step
            job.writer().clear()
        progress(total, total)
        return _summary(store, already=True, began=began)
    writer = job.writer()
    with writer.locked():
        todo = {shard: entries for shard, entries in work.items() if writer.finished(shard) is None}
        progress(total - sum(map(len, todo.values())), total)
        _run(job, todo, workers, progress, total)
        return _finish(job, writer, source, began)


def _finish(job, writer, source, began):
    notes = [writer.finished(shard) for shard in range(job.shards)]
    quarantine = sorted((q for n in notes for q in n["quarantine"]), key=lambda q: q["ordinal"])
    if not sum(n["stored"] for n in notes):
        reason, times = Counter(q["reason"] for q in quarantine).most_common(1)[0]
        writer.clear()  # so that the next try reads the files again
        found = f"no usable recording ({times} of {len(quarantine)}: {reason})"
        raise BadInput(source.name, found, "at least one", "correct what the reason says, then try again")
    about = {
        "licence": source.licence,
        "citation": source.citation,
        "unknown": _sum(n["unknown"] for n in notes),
        "dropped": _sum(n["dropped"] for n in notes),
    }
    tokenizer = _train_tokenizer if job.keep_reports else None
    store = writer.finish(quarantine=quarantine, key=job.plan["key"], about=about, tokenizer=tokenizer)
    return _summary(store, already=False, began=began)


def _sum(counts) -> dict[str, int]:
    return dict(sum(map(Counter, counts), Counter()))


def _train_tokenizer(texts, subjects):
    from data_pipelines.text import train_tokenizer

    return train_tokenizer(texts, subjects).to_str()


def _summary(store: Store, *, already: bool, began: float) -> Summary:
    m = store.manifest
    quarantined = m["files"]["quarantine.jsonl"]["count"]
    return Summary(store.path, already, m["totals"], quarantined, m["unknown"], m["dropped"], time.monotonic() - began)


@dataclass(frozen=True)
class _Job:
    """What a worker process needs; picklable."""

    source: Source
    output: Path
    spec: str
    shards: int
    keep_reports: bool
    key: bytes = field(repr=False)
    plan: dict

    def writer(self) -> StoreWriter:
        return StoreWriter(
            self.output, name=self.source.name, spec=SPECS[self.spec], shards=self.shards, plan=self.plan
        )


def _plan(source, output, spec, keep_reports, shards, key):
    """The job, and shard -> [(ordinal, entry)] for every shard."""
    if spec not in SPECS:
        raise BadInput("--spec", repr(spec), " or ".join(SPECS), "choose one of them")
    if shards is not None and shards < 1:
        raise BadInput("--shards", str(shards), "at least 1", "leave it out to have it chosen")
    if source.public:
        key = PUBLIC_KEY
    elif key is None:
        raise BadInput(
            source.name,
            "no key to hash its subjects with",
            "the site's own key (only published datasets have a public one)",
            "add --new-key=FILE to make one, keep that file, and give it as --key-file=FILE from then on",
        )
    entries = source.entries()
    if not entries:
        raise BadInput(source.name, "no recording", "at least one", "check the folder")
    splits = {(entry.subject, entry.split) for entry in entries}
    if len({subject for subject, _ in splits}) != len(splits) or not {s for _, s in splits} <= {"", *SPLITS}:
        raise BadInput(
            source.name,
            "a subject in two splits, or an unknown split",
            "one of each subject",
            "correct the source's list",
        )
    if shards is None:
        shards = min(MOST_SHARDS, -(-len(entries) // RECORDINGS_PER_SHARD))
    listing = "\n".join("\t".join((e.study, e.subject, e.split, e.path)) for e in entries)
    plan = {
        "source": source.name,
        "recordings listed": _keyed(key, "listing", listing).hexdigest(),
        "spec": str(SPECS[spec]),
        "keep_reports": keep_reports,
        "shards": shards,
        "key": hashlib.sha256(key).hexdigest()[:16],
    }
    work: dict[int, list[tuple[int, Entry]]] = {shard: [] for shard in range(shards)}
    for ordinal, entry in enumerate(entries):
        work[int(hashed(key, _people(source), entry.subject), 16) % shards].append((ordinal, entry))
    return _Job(source, output, spec, shards, keep_reports, key, plan), work


def _keyed(key: bytes, *parts: str):
    return hmac.new(key, "\0".join(parts).encode(), hashlib.sha256)


def _people(source: Source) -> str:
    return source.people or source.name


def hashed(key: bytes, source: str, of: str) -> str:
    """16 hex digits that stand for a subject or a study of a source in every store made with the same key."""
    return _keyed(key, source, of).hexdigest()[:16]


def split_of(key: bytes, source: str, subject: str) -> str:
    """Split of a subject without an official one: by keyed hash, 80 % train, 10 % validation, 10 % test."""
    share = int(_keyed(key, source, subject, "split").hexdigest()[:8], 16) / 2**32
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def _run(job, todo, workers, progress, total):
    done = total - sum(map(len, todo.values()))
    if workers == 1:
        for shard, entries in todo.items():
            _write_shard(job, shard, entries, lambda n, done=done: progress(done + n, total))
            done += len(entries)
        return
    # spawn: a forked child would inherit the threads and readers of whoever calls this
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupt) as pool:
        futures = {pool.submit(_write_shard, job, shard, entries): len(entries) for shard, entries in todo.items()}
        try:
            for future in as_completed(futures):
                future.result()
                done += futures[future]
                progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what has begun ends, nothing new begins
            raise


def _ignore_interrupt():
    """Ctrl-C reaches the whole process group; the parent decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_shard(job, shard, entries, tell=lambda n: None):
    notes = {"stored": 0, "quarantine": [], "unknown": {}, "dropped": {}}
    job.writer().write_shard(shard, _recordings(job, entries, notes, tell), notes)


def _recordings(job, entries, notes, tell) -> Iterator[StoredRecording]:
    """Reads and prepares; what cannot be used is noted, under hashes, and passed over."""
    source, key = job.source, job.key
    for n, (ordinal, entry) in enumerate(entries, start=1):
        study = hashed(key, source.name, "study\0" + entry.study)
        stored, reason = _read(job, entry, study, notes)
        if stored:
            notes["stored"] += 1
            yield stored
        else:
            notes["quarantine"].append({"ordinal": ordinal, "study": study, "reason": _anonymous(reason, entry)})
        tell(n)


def _read(job, entry, study, notes):
    """(recording, None), or (None, why not)."""
    try:
        recording = job.source.read(entry)
        prepared = prepare_recording(recording, spec=job.spec)
    except BadInput as error:
        return None, f"found {error.found}; expected {error.expected}"
    except OSError as error:
        return None, error.strerror or "cannot be read"
    except Exception as error:  # a damaged file may raise anything; its text may hold values of the signal
        return None, f"cannot be read ({type(error).__name__})"
    _note_channels(prepared, notes)
    if not len(prepared.channels):
        reasons = Counter(r["reason"] for r in prepared.report)
        return None, "no usable channel: " + (_counts(reasons) or "it has none")
    subject = hashed(job.key, _people(job.source), entry.subject)
    split = entry.split or split_of(job.key, _people(job.source), entry.subject)
    report = recording.report if job.keep_reports else None
    return StoredRecording(subject, study, split, prepared, report, recording.labels), None


def prepare_recording(recording: Recording, *, spec: str) -> PreparedRecording:
    """`preprocess.prepare` of a whole recording, with its own mains frequency."""
    channels = [(c.name, c.rate, c.unit, c.start, c.signal) for c in recording.channels]
    return preprocess.prepare(channels, spec=SPECS[spec], mains=recording.mains)


def _note_channels(prepared, notes):
    for channel in prepared.report:
        standard, name = channel["channel"], channel["name"].strip()[:32]
        if standard_name(name, "") is None:  # the unit alone may have told the modality
            kept = f"{name} as {standard}" if channel["status"] == "kept" else name
            notes["unknown"][kept] = notes["unknown"].get(kept, 0) + 1
        if standard is not None and channel["status"] == "dropped":
            notes["dropped"][channel["reason"]] = notes["dropped"].get(channel["reason"], 0) + 1


def _anonymous(reason: str, entry: Entry) -> str:
    """The reason without the subject, the study, or any part of the file's name (which may be a patient's)."""
    words = {entry.subject, entry.study, entry.path, *re.split(r"[/.]", entry.path), *re.split(r"[/.]", entry.study)}
    for word in sorted(filter(None, words), key=len, reverse=True):
        reason = re.sub(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", "<hidden>", reason)
    return reason


def new_key(path: Path) -> bytes:
    """Makes a site's key: 64 random hex digits in a file that only its owner can read; BadInput if it exists."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
    except FileExistsError:
        raise BadInput(f"--new-key={path}", "an existing file", "a new one", "use it with --key-file") from None
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"--new-key={path}", "no such folder", "a file in an existing folder", "correct it") from None
    return read_key(path)


def read_key(path: Path) -> bytes:
    """A site's key; BadInput if the file is not there or too short to keep ids from being guessed."""
    try:
        key = Path(path).read_bytes().strip()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise BadInput(f"--key-file={path}", "no such file", "a key", "make one with --new-key") from None
    if len(key) < 32:
        raise BadInput(f"--key-file={path}", f"{len(key)} bytes", "32 or more", "make one with --new-key")
    return key
