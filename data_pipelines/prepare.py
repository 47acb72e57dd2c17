"""Recordings -> store: verified, split by patient, resumable, with the same bytes whoever wrote its shards.

A subject's shard is a hash of the subject, so shards are independent work and subjects never straddle two of them.
Killed at any moment, the same call goes on: shards whose SHA-256 is right are kept. What cannot be read goes to the
store's quarantine list, under hashes, and the run goes on.

A store for an object store is made in a folder here, and sent when it is whole (`store_upload.py`).

A recording is filtered whole, forward and backward in time. Where a task may not look ahead (an alarm must be judged
from what came before it), the source must cut the recording before it gets here.
"""

import copy
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipelines import storage, store_upload
from data_pipelines.channel_names import ChannelCount
from data_pipelines.datasets import Source
from data_pipelines.errors import BadInput
from data_pipelines.prepare_shard import ShardJob, people_of, subject_of
from data_pipelines.preprocess import SPECS
from data_pipelines.runners import RUNNERS, Work, run_beam, run_local, share_of
from data_pipelines.store import SPLITS, Store
from data_pipelines.store_format import MANIFEST, WORK, read_manifest
from data_pipelines.store_writer import StoreWriter, compare_plans
from data_pipelines.subjects import PUBLIC_KEY, fingerprint, keyed

RECORDINGS_PER_SHARD, MOST_SHARDS = 64, 1024
_REASONS_TOLD = 3


@dataclass(frozen=True)
class Summary:
    """What a run of `prepare` did; `str()` gives the lines that a person reads.

    Attributes:
        path: the store.
        state: "written", "verified" (it was complete already), or "partial" (other jobs have not written their share).
        totals: as in the manifest: recordings, subjects, by split, hours by modality; empty while partial.
        quarantined: of recordings that are listed and not stored, because they are not here, could not be read or had
            no usable channel: reason -> how many.
        channels: as in the manifest: of every name found, what it was taken for and what became of it.
        missing: shards that no job has written yet.
        seconds: time taken.
    """

    path: storage.Place
    state: str
    totals: dict
    quarantined: dict[str, int]
    channels: list[dict]
    missing: int
    seconds: float

    def __str__(self) -> str:
        if self.state == "partial" and not self.missing:
            return f"{self.path}: every shard is written; another job is finishing the store"
        if self.state == "partial":
            return (
                f"{self.path}: this share is written; {self.missing} shards of other jobs are not yet. The last job to "
                "end finishes the store; so does the same command without --shard"
            )
        splits = ", ".join(f"{n} {split}" for split, n in self.totals["splits"].items())
        hours = ", ".join(f"{m} {h:.2f}" for m, h in self.totals["hours"].items())
        quarantined, often = sum(self.quarantined.values()), Counter(self.quarantined).most_common()
        lines = [
            f"{self.path}: {self.totals['recordings']} recordings of {self.totals['subjects']} subjects ({splits})",
            f"  hours: {hours}",
            f"  quarantined: {quarantined}" + (" (see quarantine.jsonl)" if quarantined else ""),
        ]
        lines += [f"    {times}: {reason}" for reason, times in often[:_REASONS_TOLD]]
        if rest := sum(times for _, times in often[_REASONS_TOLD:]):
            lines.append(f"    {rest}: other reasons")
        if duplicates := self.totals.get("duplicates"):
            lines.append(f"  same samples as an earlier recording: {duplicates} (`csfm data overlap` lists them)")
        if mixed := self.totals.get("of both sexes"):
            lines.append(f"  subjects recorded as both sexes: {mixed} (two persons under one id, or a wrong entry)")
        if unknown := self.unknown:
            lines.append("  channels unknown by name: " + _counts(unknown))
        if dropped := self.dropped:
            lines.append("  channels left out: " + _counts(dropped))
        done = "complete already, verified" if self.state == "verified" else "written"
        return "\n".join([*lines, f"  {done} in {self.seconds:.1f} s"])

    @property
    def unknown(self) -> dict[str, int]:
        """Names that the vocabulary does not know -> recordings; "x as y" where the unit or a site's table told y."""
        found: Counter = Counter()
        for row in self.channels:
            if not row["known"]:
                n = row["kept"] + sum(row["left_out"].values())
                found[f"{row['name']} as {row['as']}" if row["as"] else row["name"]] += n
        return dict(found)

    @property
    def dropped(self) -> dict[str, int]:
        """Why channels of known kind were left out -> how many."""
        return dict(sum((Counter(row["left_out"]) for row in self.channels if row["as"]), Counter()))


def _counts(of: dict[str, int]) -> str:
    return ", ".join(f"{name} ({n})" for name, n in sorted(of.items(), key=lambda item: (-item[1], item[0])))


def prepare(
    source: Source,
    output: storage.Place,
    *,
    staging: Path | None = None,
    spec: str = "csfm-jax",
    keep_reports: bool = False,
    derive: bool = False,
    names: dict[str, str] | None = None,
    shards: int | None = None,
    key: bytes | None = None,
    workers: int = 1,
    runner: str = "local",
    share: tuple[int, int] = (0, 1),
    beam_options: list[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Makes a store of a source, goes on with an unfinished one, or verifies a finished one.

    Args:
        source: what to read. output: the store's folder, or its address in an object store.
        staging: where a store for an object store is made; kept afterwards. None: a folder in TMPDIR, removed
            afterwards. A killed run goes on in it.
        spec: name of a preprocessing in `preprocess.SPECS`.
        keep_reports: store the reports, and a vocabulary trained on those of train subjects.
        derive: add III, aVR, aVL and aVF where only I and II are stored.
        names: a site's channel names (`channel_names.read_channel_table`).
        shards: files of the store; None: about 64 recordings each. The bytes of a store depend on it.
        key: the site's secret for hashing subjects; not used for a public source.
        workers: processes of the local and shard runners; the store's bytes do not depend on it.
        runner: one of `runners.RUNNERS`; the store's bytes do not depend on it either. share: (i, n), what job i of n
            does, for the shard runner. beam_options: for the beam runner.
        progress: called with (recordings done, recordings in all); while a store is sent, with files.

    Raises:
        BadInput: no key for a source that is not public, nothing usable in the source, or an output that holds a store
            of something else.
        OSError: the disk is full; the same call goes on later.
    """
    began = time.monotonic()
    if workers < 1:
        raise BadInput("--workers", str(workers), "at least 1", "leave it out for one")
    if runner not in RUNNERS:
        raise BadInput("--runner", repr(runner), ", ".join(RUNNERS), "choose one of them")
    progress = progress or (lambda done, total: None)
    output = storage.place(output)
    make = {"workers": workers, "runner": runner, "share": share, "beam_options": beam_options, "began": began}
    plan = (spec, keep_reports, derive, names or {}, shards, key)
    if not storage.is_remote(output):
        if staging is not None:
            raise BadInput("--staging", str(staging), "an --output at s3:// or gs://", "leave it out")
        return _make(*_plan(source, output, *plan), progress, **make)
    if runner != "local" and staging is None:
        raise BadInput("--staging", "nothing", "a folder that all jobs share", f"add it: --runner={runner} needs it")
    job, work = _plan(source, store_upload.staging_folder(output, staging), *plan)
    return _make_and_send(job, work, output, progress, make, keep=staging is not None)


def _make_and_send(job, work, output, progress, make, keep) -> Summary:
    manifest = store_upload.claim(output, job.plan)  # before hours of work
    if manifest is not None:
        store_upload.check(output, manifest)
        summary = _summary(output, manifest, "verified", make["began"])
    else:
        summary = _make(job, work, progress, **make)
        if summary.state == "partial":
            return summary
        store_upload.send(job.output, output, progress)
        summary = replace(summary, path=output, state="written", seconds=time.monotonic() - make["began"])
    store_upload.release(output)
    if not keep:
        shutil.rmtree(job.output, ignore_errors=True)
    return summary


def _make(job: ShardJob, work: Work, progress, *, workers, runner, share, beam_options, began) -> Summary:
    """Makes a store in a folder."""
    if (job.output / MANIFEST).is_file():
        return _verified(job, progress, sum(map(len, work.values())), began)
    mine = {shard: work[shard] for shard in (share_of(work, share) if runner == "shard" else work)}
    writer = job.writer()
    with writer.locked(shared=runner == "shard"):
        todo = {shard: entries for shard, entries in mine.items() if not writer.finished(shard)}
        tell = _teller(progress, sum(map(len, mine.values())), sum(map(len, todo.values())))
        if runner == "beam":
            run_beam(job, todo, list(beam_options), tell)
        else:
            run_local(job, todo, workers, tell)
        if runner != "shard":
            return _finish(job, writer, began)
    return _finish_if_last(job, writer, began)


def _teller(progress, total, left):
    """A function that takes the recordings just done, and reports (done, total)."""
    done = total - left
    progress(done, total)

    def tell(more):
        nonlocal done
        done += more
        progress(done, total)

    return tell


def _verified(job, progress, total, began) -> Summary:
    compare_plans(job.output, read_manifest(job.output)["plan"], job.plan)
    store = Store.open(job.output, verify="full")
    if (job.output / WORK).exists():  # killed after its last step
        job.writer().clear()
    progress(total, total)
    return _summary(store.path, store.manifest, "verified", began)


def _finish_if_last(job, writer, began) -> Summary:
    """Of the jobs of an array, the last one to end finds every shard written."""
    missing = sum(writer.notes(shard) is None for shard in range(job.shards))
    if not missing:
        try:
            with writer.locked():
                return _finish(job, writer, began)
        except FileNotFoundError:
            pass  # another job has finished the store, and cleared what it needed for that
        except BadInput as error:
            if error.found != "another run writing here":
                raise
    if (job.output / MANIFEST).is_file():
        store = Store.open(job.output, verify="size")
        return _summary(store.path, store.manifest, "written", began)
    return Summary(job.output, "partial", {}, {}, [], missing, time.monotonic() - began)


def _finish(job: ShardJob, writer: StoreWriter, began: float) -> Summary:
    channels, quarantine, stored = ChannelCount(), [], 0
    for shard in range(job.shards):
        notes = writer.notes(shard)
        stored += notes["stored"]
        quarantine += notes["quarantine"]
        channels.merge(notes["channels"])
    quarantine.sort(key=lambda entry: entry["ordinal"])
    if not stored:
        reason, times = Counter(entry["reason"] for entry in quarantine).most_common(1)[0]
        writer.clear()  # so that the next try reads the files again
        found = f"no usable recording ({times} of {len(quarantine)}: {reason})"
        raise BadInput(job.source.name, found, "at least one", "correct what the reason says, then try again")
    about = {
        "licence": job.source.licence,
        "citation": job.source.citation,
        "channels": channels.table(),
        "rates": {modality: dict(sorted(rates.items())) for modality, rates in sorted(channels.rates.items())},
    }
    tokenizer = _train_tokenizer if job.keep_reports else None
    store = writer.finish(quarantine=quarantine, key=job.plan["key"], about=about, tokenizer=tokenizer)
    return _summary(store.path, store.manifest, "written", began)


def _train_tokenizer(texts, subjects):
    from data_pipelines.text import train_tokenizer

    return train_tokenizer(texts, subjects).to_str()


def _summary(path: storage.Place, manifest: dict, state: str, began: float) -> Summary:
    noted = storage.read_bytes(storage.join(path, "quarantine.jsonl")).splitlines()
    quarantined = dict(Counter(json.loads(line)["reason"] for line in noted))
    return Summary(path, state, manifest["totals"], quarantined, manifest["channels"], 0, time.monotonic() - began)


def _plan(source, output, spec, keep_reports, derive, names, shards, key) -> tuple[ShardJob, Work]:
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
    if source.key and source.key != fingerprint(key):
        found, expected = "subjects hashed with another key than the one given", "the key that they were hashed with"
        raise BadInput(source.name, found, expected, "give that one as --key-file=FILE")
    entries = source.entries()
    _check_entries(source, entries)
    if shards is None:
        shards = min(MOST_SHARDS, -(-len(entries) // RECORDINGS_PER_SHARD))
    listing = "\n".join("\t".join((e.study, e.subject, e.split, e.path)) for e in entries)
    plan = {
        "source": source.name,
        "people": people_of(source),
        "recordings listed": keyed(key, "listing", listing),
        "spec": str(SPECS[spec]),
        "keep_reports": keep_reports,
        "derived leads": derive,
        "channel names": keyed(key, "names", *map("\t".join, sorted(names.items()))) if names else "",
        "shards": shards,
        "key": fingerprint(key),
    }
    if any(entry.labels for entry in entries):
        plan["table of labels"] = keyed(key, "labels", *(repr((e.study, sorted(e.labels))) for e in entries))
    work: Work = {shard: [] for shard in range(shards)}
    for ordinal, entry in enumerate(entries):
        work[int(subject_of(source, key, entry), 16) % shards].append((ordinal, entry))
    source = copy.copy(source)
    source.with_reports = keep_reports
    return ShardJob(source, output, spec, shards, keep_reports, derive, names, key, plan), work


def _check_entries(source, entries) -> None:
    if not entries:
        raise BadInput(source.name, "no recording", "at least one", "check the folder")
    splits = {(entry.subject, entry.split) for entry in entries}
    if len({subject for subject, _ in splits}) != len(splits) or not {split for _, split in splits} <= {"", *SPLITS}:
        raise BadInput(
            source.name,
            "a subject in two splits, or an unknown split",
            "one of each subject",
            "correct the source's list",
        )
