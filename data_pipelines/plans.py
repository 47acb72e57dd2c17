"""Epochs' plans on disk: made once a host, mapped into memory by whoever reads rows, removed when all have done so."""

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data_pipelines import packing, storage, windows
from data_pipelines.config import DataConfig, TokenConfig
from data_pipelines.text import Reports

_FORMAT = 1
_COLUMNS = ("store", "recording", "start", "seconds")


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """One epoch, memory-mapped. `store`, `recording`, `start`, `seconds`: the window table's columns, [N] each."""

    packing: packing.PackingPlan
    store: np.ndarray
    recording: np.ndarray
    start: np.ndarray
    seconds: np.ndarray

    @property
    def rows(self) -> int:
        return self.packing.rows

    def row(self, number: int) -> np.ndarray:
        """int32: the windows of a row; none beyond the last row."""
        if number >= self.rows:
            return np.zeros(0, np.int32)
        begin, end = self.packing.row_offsets[number : number + 2]
        return self.packing.row_windows[begin:end]


class Plans:
    """The plans of one run: what is read, how, and where its plans lie.

    Args:
        folder: of plans; of this host, or shared by hosts.
        stores, tokens, data, split: what the plans are a function of, with the epoch.
        reports: decides the text tokens of each window.
        hide: False plans for windows that are seen whole (embedding): V = T.
        taken: as of `windows.epoch_windows`.

    Picklable; a worker process finds the plans where the host has put them, or makes them.
    """

    def __init__(
        self, folder, stores, tokens: TokenConfig, data: DataConfig, split: str, reports: Reports, hide=True, taken=None
    ):
        self.folder, self._stores, self._split = Path(folder), stores, split
        self._tokens, self._data, self._reports, self._hide, self._taken = tokens, data, reports, hide, taken
        T, V, S = windows.capacities(tokens, data)
        self.capacities = (T, V if hide else T, S)
        self.digest = self._inputs_digest()
        self._open = {}

    def __getstate__(self):
        return {**self.__dict__, "_open": {}}

    def _inputs_digest(self) -> str:
        data = dataclasses.asdict(self._data)
        # where the stores lie and who reads them decide nothing; neither do rows: a plan has rows, not batches; and
        # augmentation takes away at most
        for name in ("stores", "tokenizer", "rows", "workers", "verify", "augment"):
            del data[name]
        for name in ("begin", "end"):  # they came later: plans without them are what they were
            if not data["window"][name]:
                del data["window"][name]
        tokens = dataclasses.asdict(self._tokens)
        del tokens["text_vocabulary"]
        if tokens["layout"] == "channel":  # older than the choice: plans of before, and runs on them, go on
            del tokens["layout"]
        tokens["patch"] = {name: self._tokens.patch[name] for name in self._tokens.modalities}
        parts = {
            "format": _FORMAT,
            "stores": [[store.name, store.digest] for store in self._stores],
            "tokens": tokens,
            "data": data,
            "capacities": self.capacities,
            "split": self._split,
            "text": self._reports.digest,
        }
        if self._taken is not None:
            parts["taken"] = hashlib.sha256(b"".join(np.packbits(t).tobytes() for t in self._taken)).hexdigest()
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _folder(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch}-{self.digest[:16]}"

    def get(self, epoch: int) -> EpochPlan:
        """The plan of an epoch; made here if nobody on this host has made it yet, or if what lies there is torn."""
        plan = self._open.get(epoch)
        if plan is None:
            path = self._folder(epoch)
            plan = _open(path)
            if plan is None:
                with self._locked() as alone:
                    plan = _open(path)  # somebody may have made it while we waited
                    if plan is None:
                        self._make(epoch, path, alone)
                        plan = _open(path)
            # a removed file takes its room on the disk for as long as any worker has it mapped
            self._open = {e: p for e, p in self._open.items() if e >= epoch - 1} | {epoch: plan}
        return plan

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Whether the lock is held; not on a disk without locks, where several may make the same plan."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, also by a kill
                alone = True
            except OSError:
                alone = False
            yield alone

    def _make(self, epoch: int, path: Path, alone: bool) -> None:
        mine = f".planning-{socket.gethostname()}-"  # some network disks keep a lock within a host
        for torn in self.folder.glob(f"{mine}*") if alone else ():  # of killed processes: we hold the lock
            shutil.rmtree(torn, ignore_errors=True)
        table = self.windows(epoch)
        plan = plan_windows(table, self.capacities, self._hide, self._data.seed, epoch)
        temporary = Path(tempfile.mkdtemp(prefix=mine, dir=self.folder))
        try:
            for name in _COLUMNS:
                np.save(temporary / f"{name}.npy", getattr(table, name))
            plan.save(temporary)
            try:
                os.replace(temporary, path)
            except OSError:
                if _open(path) is None:  # a torn one lies there; else somebody was first, whose plan is the same
                    shutil.rmtree(path, ignore_errors=True)
                    os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def windows(self, epoch: int) -> windows.EpochWindows:
        """The window table of an epoch, with the text tokens that the reports really have."""
        counts = self._text_counts()
        return windows.epoch_windows(self._stores, self._tokens, self._data, self._split, epoch, counts, self._taken)

    def _text_counts(self) -> list[np.ndarray]:
        """Tokenising every report takes minutes for millions of them, so the counts (not the ids) are kept."""
        inputs = json.dumps([self._reports.digest, [store.digest for store in self._stores]])
        path = self.folder / f"text-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}.npy"
        sizes = [len(store.index.seconds) for store in self._stores]
        if path.is_file():
            counts = np.load(path)
            if len(counts) == sum(sizes):
                return np.split(counts, np.cumsum(sizes)[:-1])
        counts = self._reports.counts()
        with storage.whole(path) as temporary, open(temporary, "wb") as file:
            np.save(file, np.concatenate(counts))
        return counts

    def forget_before(self, epoch: int) -> None:
        """Removes plans of earlier epochs; a process that still has one mapped goes on reading it."""
        self._open = {e: p for e, p in self._open.items() if e >= epoch}
        for path in self.folder.glob(f"epoch-*-{self.digest[:16]}"):
            match = re.fullmatch(r"epoch-(\d+)-.*", path.name)
            if match and int(match[1]) < epoch:
                shutil.rmtree(path, ignore_errors=True)


def _open(path: Path) -> EpochPlan | None:
    """Maps a plan; None where there is none, or not a whole one."""
    try:
        plan = packing.PackingPlan.open(path)
        # plain views: indexing the memmap class itself costs microseconds a window
        columns = [np.load(path / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in _COLUMNS]
    except (OSError, ValueError, KeyError):
        return None
    whole = all(len(column) == len(plan.row_windows) for column in columns)
    return EpochPlan(plan, *columns) if whole else None


def plan_windows(
    table: windows.EpochWindows, capacities: tuple[int, int, int], hide: bool, seed: int, epoch: int
) -> packing.PackingPlan:
    """Packs an epoch's windows, keeping the windows of a group in one row.

    Args:
        hide: False counts every token as visible.
    """
    sizes = table.sizes()
    if not hide:
        sizes[:, 1] = sizes[:, 0]
    starts = table.group_starts()
    if len(starts) - 1 == len(table):
        return packing.plan(sizes, capacities, seed, epoch)
    return packing.expand(packing.plan(np.add.reduceat(sizes, starts[:-1]), capacities, seed, epoch), starts)
