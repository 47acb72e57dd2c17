"""A store: a dataset prepared once, read by window, and never read unverified.

A store is a folder:

    manifest.json       format, name, preprocessing spec, channel vocabulary, key fingerprint, totals, and of every
                        other file its size, SHA-256 and record count; its own SHA-256 stands in it as "digest"
    index.parquet       one row a recording (`INDEX_SCHEMA`), sorted by shard, then by order in the shard
    labels.parquet      one float32 column a label, rows as in the index, NaN = not labelled
    quarantine.jsonl    what could not be read: hashed study, ordinal in the source's list, reason
    shards/shard-00000-of-00004.array_record
    quality/...         one Parquet file a shard: (recording in the shard, channel, segment of ten seconds) and, as 0 to
                        255, what `quality.MEASURES` says of it
    reports.parquet     only where reports are kept: (recording, text)
    events.parquet      only where there are any: (recording, time, seconds, code), beats, stages, apnoeas
    tokenizer.json      only where reports are kept: the vocabulary trained on train subjects' reports

One ArrayRecord record is one chunk: at most `CHUNK_SECONDS` of one recording, the int16 samples of its channels
(little endian), channel after channel in the order of its channel set. A recording of `milliseconds` has, of a channel
at `rate` Hz, milliseconds * rate // 1000 samples (`sample_count`), and chunk c holds those from
c * CHUNK_SECONDS * rate on. Subjects and studies stand in a store only as keyed hashes. Records are not compressed:
reading is three times as fast, for twice the disk.

A store may lie in a folder or, with the same names, in an object store (`store_files.py`, `store_cache.py`).
"""

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np

from data_pipelines import folds, storage
from data_pipelines.errors import BadInput
from data_pipelines.preprocess import INVALID, SPECS, Spec
from data_pipelines.quality import MEASURES
from data_pipelines.signals import modality_of
from data_pipelines.store_files import open_files
from data_pipelines.store_format import (
    CHUNK_SECONDS,
    INDEX_SCHEMA,
    MANIFEST,
    check_spec,
    chunk_samples,
    quality_name,
    read_manifest,
    shard_name,
)

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class StoreIndex:
    """One row a recording, as NumPy arrays.

    Attributes:
        subject, study: S16, keyed hashes. split: int8, position in `SPLITS`.
        milliseconds: int64, exact length. seconds: float32, the same in seconds.
        channel_set: int32 into `channel_sets`, tuples of ascending channel ids.
        shard, first, chunks: int32, where the chunks are. has_report: bool.
        derived: bool, whether some of the recording's leads were computed from others.
    """

    subject: np.ndarray
    study: np.ndarray
    split: np.ndarray
    milliseconds: np.ndarray
    seconds: np.ndarray
    channel_set: np.ndarray
    shard: np.ndarray
    first: np.ndarray
    chunks: np.ndarray
    has_report: np.ndarray
    derived: np.ndarray
    channel_sets: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.split)


class Store:
    """A verified store; get one with `Store.open`. Safe to read from many threads, and after a fork or unpickling."""

    def __init__(self, path: storage.Place, manifest: dict):
        self.path, self.manifest = path, manifest
        self._files = open_files(path, manifest)
        self.name: str = manifest["name"]
        self.spec = Spec.from_dict(manifest["spec"])
        self.digest: str = manifest["digest"]
        self.fold: folds.Fold | None = None
        self.index = _read_index(self._table("index.parquet"), manifest)
        self._layouts = [_layout(channels) for channels in self.index.channel_sets]

    @classmethod
    def open(cls, path: storage.Place, verify: str = "full") -> "Store":
        """Opens a store after checking it.

        Args:
            path: its folder, or its address in an object store (`s3://`, `gs://`).
            verify: "full" compares size, SHA-256 and record count of every file with the manifest; "size" leaves out
                the SHA-256. Of a remote store either compares the sizes, now, and the SHA-256 of each file when it is
                downloaded, at first use: nothing is downloaded only to be checked.

        Raises:
            BadInput: names the file that is missing, truncated or changed, or both versions of what does not fit
                (format, preprocessing, channel vocabulary).
        """
        if verify not in ("full", "size"):
            raise BadInput("data.verify", repr(verify), "'full' or 'size'", "correct the config")
        path = storage.place(path)
        manifest, where = read_manifest(path), str(storage.join(path, MANIFEST))
        if manifest["spec"].get("name") not in SPECS:
            name = str(manifest["spec"].get("name"))
            raise BadInput(where, f"preprocessing {name!r}", " or ".join(SPECS), "update the program")
        check_spec(manifest["spec"], SPECS[manifest["spec"]["name"]], where)
        open_files(path, manifest).verify(full=verify == "full")
        return cls(path, manifest)

    @property
    def people(self) -> str:
        """Whose ids its subjects are: part of their hash, as the key is."""
        return self.manifest["plan"].get("people", self.name)

    def on_fold(self, fold: folds.Fold) -> "Store":
        """The same recordings under other splits, see `folds.splits`; its digest is another one."""
        view = object.__new__(Store)  # not copied by way of `__reduce__`, which opens it anew
        view.__dict__.update(self.__dict__)
        view.index = dataclasses.replace(self.index, split=folds.splits(self.index.subject, fold))
        view.fold, view.digest = fold, hashlib.sha256(f"{self.digest} {fold}".encode()).hexdigest()
        return view

    def __reduce__(self):
        return (_reopen, (self.path, self.manifest["digest"], self.fold))

    def _table(self, name):
        import pyarrow.parquet as pq

        with self._files.opened(name) as file:
            return pq.ParquetFile(file).read()  # `read_table` imports pandas

    def read_window(self, recording: int, start: float, seconds: float) -> list[tuple[int, np.ndarray]]:
        """Samples of every channel between `start` and `start + seconds`.

        Args:
            recording: row of the index.
            start: seconds from the recording's start; seconds: length. Each channel's first sample is the one nearest
                to `start`, and it has round(seconds * rate) samples.

        Returns:
            (channel id, int16 samples, INVALID where absent) in the order of the channel set. Read-only arrays.

        Raises:
            ValueError: the window does not lie inside the recording (by more than rounding to a sample).
        """
        return [
            (channel, row)
            for channels, samples in self.read_blocks(recording, start, seconds)
            for channel, row in zip(channels, samples)
        ]

    def read_blocks(self, recording: int, start: float, seconds: float) -> list[tuple[tuple[int, ...], np.ndarray]]:
        """The same as `read_window`, as int16 [C, n] for each run of channels that share a rate: one array operation
        then serves twelve leads."""
        index = self.index
        milliseconds = int(index.milliseconds[recording])
        if not (0 <= start and 0 < seconds and (start + seconds) * 1000 <= milliseconds + 1.5):
            raise ValueError(f"window of {seconds} s at {start} s in a recording of {milliseconds / 1000} s")
        layout = self._layouts[index.channel_set[recording]]
        low = high = last = int(index.chunks[recording]) - 1
        if last:
            spans = [(_span(start, seconds, rate), CHUNK_SECONDS * rate) for _, rate in layout]
            low = min(last, *(first // chunk for (first, _), chunk in spans))
            high = min(last, max((stop - 1) // chunk for (_, stop), chunk in spans))
        record = int(index.first[recording])
        shard = self._files.shards.get(shard_name(int(index.shard[recording]), self.manifest["shards"]))
        read = shard.read(list(range(record + low, record + high + 1)))
        chunks = [_split_chunk(data, layout, milliseconds, low + i) for i, data in enumerate(read)]
        out = []
        for block, (channels, rate) in enumerate(layout):
            whole = chunks[0][block] if len(chunks) == 1 else np.concatenate([c[block] for c in chunks], axis=1)
            first, stop = _span(start, seconds, rate)
            at = low * CHUNK_SECONDS * rate
            part = whole[:, first - at : stop - at]
            if part.shape[1] < stop - first:  # the last sample's rounding, for slow channels
                part = np.pad(part, ((0, 0), (0, stop - first - part.shape[1])), constant_values=INVALID)
            out.append((channels, part))
        return out

    def reports(self) -> list[str | None]:
        """A report a recording, None where it has none or reports were not kept."""
        out: list[str | None] = [None] * len(self.index)
        if "reports.parquet" in self.manifest["files"]:
            table = self._table("reports.parquet")
            for recording, text in zip(table["recording"].to_numpy(), table["text"].to_pylist()):
                out[recording] = text
        return out

    def events(self) -> dict[str, np.ndarray]:
        """Columns "recording", "time" (s), "seconds" and "code", in order of recording and time."""
        if "events.parquet" not in self.manifest["files"]:
            return {name: np.zeros(0, kind) for name, kind in zip(("recording", "time", "seconds", "code"), "ifff")}
        table = self._table("events.parquet")
        return {name: table[name].to_numpy() for name in table.column_names}

    def quality(self) -> dict[str, np.ndarray]:
        """Columns "recording" (row of the index), "channel", "segment" and, uint8 for 0 to 1, `quality.MEASURES`.

        Empty arrays where the store was written without.
        """
        first = np.searchsorted(self.index.shard, np.arange(self.manifest["shards"]))
        names = [quality_name(shard, self.manifest["shards"]) for shard in range(self.manifest["shards"])]
        self._files.fetch([name for name in names if name in self.manifest["files"]])
        parts = []
        for shard, name in enumerate(names):
            if name in self.manifest["files"]:
                table = self._table(name)
                columns = {column: _numpy(table[column]) for column in table.column_names}
                parts.append(columns | {"recording": columns["recording"] + np.int32(first[shard])})
        names = ("recording", "channel", "segment", *MEASURES)
        return {n: np.concatenate([part[n] for part in parts]) if parts else np.zeros(0, np.uint8) for n in names}

    def read_file(self, name: str) -> bytes | None:
        """The content of one of the manifest's files; None where it has no such file."""
        if name not in self.manifest["files"]:
            return None
        with self._files.opened(name) as file:
            return file.read_bytes()

    def labels(self) -> dict[str, np.ndarray]:
        """Label name -> float32 [recordings], NaN = not labelled."""
        table = self._table("labels.parquet")
        return {name: _numpy(table[name]) for name in table.column_names if name != "recording"}


def _span(start: float, seconds: float, rate: int) -> tuple[int, int]:
    """The samples of a window: first, and one beyond the last."""
    first = int(start * rate + 0.5)
    return first, first + int(seconds * rate + 0.5)


def _layout(channels):
    """Runs of channels with equal rate: [(channel ids, rate)]."""
    runs: list[tuple[tuple[int, ...], int]] = []
    for channel in channels:
        rate = modality_of(channel).rate
        if runs and runs[-1][1] == rate:
            runs[-1] = ((*runs[-1][0], channel), rate)
        else:
            runs.append(((channel,), rate))
    return runs


def _split_chunk(data, layout, milliseconds, chunk):
    """One record's bytes -> int16 [C, n] a run, views on the bytes."""
    flat, at, out = np.frombuffer(data, "<i2"), 0, []
    for channels, rate in layout:
        n = chunk_samples(milliseconds, rate, chunk)
        out.append(flat[at : at + n * len(channels)].reshape(len(channels), n))
        at += n * len(channels)
    return out


def _read_index(table, manifest):
    columns = {name: _numpy(table[name]) for name in INDEX_SCHEMA if name not in ("subject", "study")}
    hashes = {name: np.array(table[name].to_pylist(), "S16") for name in ("subject", "study")}
    seconds = (columns["milliseconds"] / 1000).astype(np.float32)
    sets = tuple(tuple(s) for s in manifest["channel_sets"])
    return StoreIndex(**hashes, **columns, seconds=seconds, channel_sets=sets)


def _numpy(column) -> np.ndarray:
    """A column without nulls; `to_numpy` of pyarrow imports pandas, half a second of every start."""
    if boolean := str(column.type) == "bool":  # packed as bits
        column = column.cast("uint8")
    values = np.from_dlpack(column.combine_chunks())
    return values.view(bool) if boolean else values


def _reopen(path, digest, fold):
    """Unpickling in a worker: the parent has verified the files, here only that it is still the same store."""
    manifest = read_manifest(path)
    if manifest["digest"] != digest:
        raise BadInput(str(path), "another store than when the run began", "the same one", "start the run again")
    store = Store(path, manifest)
    return store.on_fold(fold) if fold else store


def stores_in(path: storage.Place) -> list[storage.Place]:
    """The finished stores at a place: itself, or those directly in it."""
    if storage.exists(storage.join(path, MANIFEST)):
        return [path]
    return [storage.place(str(manifest)[: -len(MANIFEST)]) for manifest in storage.glob(path, f"*/{MANIFEST}")]


def open_stores(where: str, verify: str = "full", fold: str = "") -> list[Store]:
    """Opens stores for one run.

    Args:
        where: a store, a folder of stores, or several of either separated by commas; local or remote.
        verify: as in `Store.open`. fold: as `DataConfig.fold`.

    Raises:
        BadInput: nothing there, two stores of one name, stores prepared in different ways, or no fold of that name.
    """
    chosen = folds.parse(fold)
    folders: list[storage.Place] = []
    for part in filter(None, (p.strip() for p in where.split(","))):
        path = storage.place(part)
        folders += stores_in(path) or [path]
    if not folders:
        raise BadInput("data.stores", "nothing", "a store or a folder of stores", "set data.stores")
    stores = [Store.open(folder, verify) for folder in folders]
    for i, store in enumerate(stores):
        if store.name in {s.name for s in stores[:i]}:
            raise BadInput(str(store.path), f"a second store named {store.name!r}", "one of each name", "leave one out")
        check_spec(store.spec, stores[0].spec, str(store.path))
    return [store.on_fold(chosen) for store in stores] if chosen else stores
