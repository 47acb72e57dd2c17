"""One shard of a store: its recordings read, prepared, and written; what cannot be used is noted and passed over.

A shard is the unit of work of every runner: which recordings it holds follows from the hashes of their subjects, and
its bytes from them and from nothing else.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines import preprocess
from data_pipelines.channel_names import ChannelCount, derive_leads
from data_pipelines.datasets import Entry, Source
from data_pipelines.errors import BadInput
from data_pipelines.preprocess import SPECS, PreparedRecording
from data_pipelines.quality import Quality, measure
from data_pipelines.recording import Recording
from data_pipelines.store_writer import StoredRecording, StoreWriter
from data_pipelines.subjects import anonymous, hashed, hashed_study, split_of


@dataclass(frozen=True)
class ShardJob:
    """All that a worker, on whatever machine, needs to write a shard; picklable.

    Attributes:
        source, output, spec, keep_reports, derive: as in `prepare.prepare`. key: hashes subjects and studies.
        shards: of the store. names: a site's channel names (`channel_names.read_channel_table`).
        plan: what the store is made of, as the manifest keeps it.
    """

    source: Source
    output: Path
    spec: str
    shards: int
    keep_reports: bool
    derive: bool
    names: dict[str, str]
    key: bytes = field(repr=False)
    plan: dict

    def writer(self) -> StoreWriter:
        return StoreWriter(
            self.output, name=self.source.name, spec=SPECS[self.spec], shards=self.shards, plan=self.plan
        )


def people_of(source: Source) -> str:
    """Whose ids a source's subjects are: part of their hash."""
    return source.people or source.name


def subject_of(source: Source, key: bytes, entry: Entry) -> str:
    """The hash of an entry's subject."""
    return entry.subject if source.hashed else hashed(key, people_of(source), entry.subject)


def study_of(source: Source, key: bytes, entry: Entry) -> str:
    """The hash of an entry's study."""
    return entry.study if source.hashed else hashed_study(key, source.name, entry.study)


def write_shard(
    job: ShardJob, shard: int, entries: list[tuple[int, Entry]], tell: Callable[[int], None] = lambda n: None
) -> None:
    """Writes one shard.

    Args:
        entries: (position in the source's list, entry) each. tell: called with the number of recordings done.

    Raises:
        OSError: the disk is full; whatever is wrong with a recording is noted instead.
    """
    notes = {"stored": 0, "quarantine": [], "channels": {}}
    job.writer().write_shard(shard, _recordings(job, entries, notes, tell), notes)


def prepare_recording(
    recording: Recording, *, spec: str, names: dict[str, str] | None = None
) -> tuple[PreparedRecording, Quality]:
    """`preprocess.prepare` of a whole recording, with its own mains frequency, and its quality as recorded."""
    channels = [(c.name, c.rate, c.unit, c.start, c.signal) for c in recording.channels]
    prepared = preprocess.prepare(channels, spec=SPECS[spec], mains=recording.mains, names=names)
    return prepared, measure(channels, prepared, recording.mains)


def _recordings(job, entries, notes, tell) -> Iterator[StoredRecording]:
    count = ChannelCount()
    for done, (ordinal, entry) in enumerate(entries, start=1):
        study = study_of(job.source, job.key, entry)
        stored, reason = _read(job, entry, study, count)
        if stored:
            notes["stored"] += 1
            yield stored
        else:
            reason = anonymous(reason, (entry.subject, entry.study, entry.path))
            notes["quarantine"].append({"ordinal": ordinal, "study": study, "reason": reason})
        tell(done)
    notes["channels"] = count.to_dict()


def _read(job: ShardJob, entry: Entry, study: str, count: ChannelCount):
    """(recording, None), or (None, why not)."""
    try:
        recording = job.source.read(entry)
        if job.derive:
            recording = derive_leads(recording)
        prepared, quality = prepare_recording(recording, spec=job.spec, names=job.names)
    except BadInput as error:
        return None, f"found {error.found}; expected {error.expected}"
    except OSError as error:
        return None, error.strerror or "cannot be read"
    except Exception as error:  # a damaged file may raise anything; its text may hold values of the signal
        return None, f"cannot be read ({type(error).__name__})"
    subject = subject_of(job.source, job.key, entry)
    count.add(prepared.report, subject)
    if not len(prepared.channels):
        reasons = Counter(channel["reason"] for channel in prepared.report)
        listed = ", ".join(f"{reason} ({n})" for reason, n in sorted(reasons.items(), key=lambda r: (-r[1], r[0])))
        return None, "no usable channel: " + (listed or "it has none")
    return StoredRecording(
        subject, study, entry.split or split_of(job.key, people_of(job.source), entry.subject), prepared,
        report=recording.report if job.keep_reports else None, labels=recording.labels, events=recording.events,
        derived=any(c.derived and r["status"] == "kept" for c, r in zip(recording.channels, prepared.report)),
        quality=quality,
    ), None  # fmt: skip
