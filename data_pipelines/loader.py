"""Stores -> batches of packed, masked rows: `make_loader` for training, `evaluation_batches`, `pack_windows`.

Element i of the training data set is the i-th batch after the start state: a pure function of (plan, row numbers), so
worker processes, hosts and restarts change nothing. Grain gives random access, worker processes and prefetch; it is
imported inside `Loader` only, since it pulls JAX in.
"""

import dataclasses
import os
import signal
import sys
import threading
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines import masking, packing, text, windows
from data_pipelines.batch import TokenBatch
from data_pipelines.config import DataConfig, TokenConfig
from data_pipelines.errors import BadInput
from data_pipelines.pairs import Pairs
from data_pipelines.plans import Plans
from data_pipelines.rows import Change, RowRandom, RowWriter, WindowChanges, empty_batch, signal_tokens
from data_pipelines.text import Reports

_ENDLESS = 1 << 40  # batches; Grain wants a length


class Rows:
    """Reads rows of planned epochs. Picklable: a worker process opens stores and plans by their paths.

    Args:
        stores, tokens, data, split: as in `make_loader`.
        plans_dir: folder of the plans.
        hide: False makes every token visible and none a target.
        strategy: one mask strategy for every window; None draws by weight.
        label_names: columns of `TokenBatch.labels`; of `Pairs`, the channels that are asked for, whose means and
            deviations are there then. Pairs say themselves what is hidden.
        training: windows are augmented as `data` says, and recordings that have none of the labels are left out.
        among: as of `make_loader`.
    """

    def __init__(
        self, stores, tokens, data, split, plans_dir, hide=True, strategy=None, label_names=(), training=False,
        among=None,
    ):  # fmt: skip
        windows.check(tokens, data)
        if hide:
            masking.check(data.mask, tokens)
        if strategy not in (None, *masking.STRATEGIES):
            raise BadInput("strategy", repr(strategy), "one of " + ", ".join(masking.STRATEGIES), "correct the name")
        if split not in windows.SPLITS:
            raise BadInput("split", repr(split), "one of " + ", ".join(windows.SPLITS), "correct the name")
        self.stores, self.tokens, self.data, self.strategy = list(stores), tokens, data, strategy
        self.tokenizer = text.choose_tokenizer(self.stores, tokens, data.tokenizer)
        self.reports = Reports(self.stores, tokens, self.tokenizer)
        paired = any(isinstance(store, Pairs) for store in self.stores)
        self._mask = data.mask if hide and not paired else None
        self._augment = data.augment if training and data.augment.changes else None
        self._labels = [] if paired else [_label_table(store, label_names) for store in self.stores]
        taken = [~np.isnan(table).all(axis=1) for table in self._labels] if training and label_names else None
        taken = None if paired else taken
        if among is not None:
            taken = list(among) if taken is None else [a & b for a, b in zip(taken, among, strict=True)]
        self.plans = Plans(plans_dir, self.stores, tokens, data, split, self.reports, hide or paired, taken)
        self._label_count = len(label_names) * (1 + paired)

    def batch(self, epoch: int, rows: Sequence[int]) -> TokenBatch:
        """Rows of an epoch; a number beyond the last row gives an empty row, which weighs nothing."""
        plan = self.plans.get(epoch)
        batch = empty_batch(len(rows), self.plans.capacities, self.tokens, self._label_count)
        random, added = RowRandom(), RowRandom()
        changes = self._augment and WindowChanges(self._augment)
        for position, row in enumerate(rows):
            rng = random.at(self.data.seed, epoch, row)
            writer = RowWriter(batch, position, self.tokens, self._mask, rng, self.strategy)
            for window in plan.row(row):
                change = changes and changes.of(self.data.seed, epoch, row, int(window))
                self._add(writer, plan, int(window), change, epoch, added)
        return batch

    def _add(self, writer: RowWriter, plan, window: int, change: Change | None, epoch: int, added: RowRandom) -> None:
        store, recording = int(plan.store[window]), int(plan.recording[window])
        start, seconds = float(plan.start[window]), float(plan.seconds[window])
        if isinstance(self.stores[store], Pairs):
            # of the window, not of its place in a row: what is added to a recording does not depend on the others
            name = zlib.crc32(self.stores[store].name.encode())
            rng = added.at(self.data.seed, epoch, name, recording, round(start * 1000))
            pair = self.stores[store].read_pair(recording, start, seconds, rng)
            nothing = np.zeros(0, np.int32)
            writer.add(pair.given, nothing, window, pair.reference, seconds, change, pair.asked)
            return
        blocks = self.stores[store].read_blocks(recording, start, seconds)
        labels = self._labels[store][recording] if self._label_count else None
        writer.add(blocks, self.reports.ids(store, recording), window, labels, seconds, change)


def _label_table(store, names) -> np.ndarray:
    """float32 [recordings, K], NaN where a store does not have the label."""
    known = store.labels() if names else {}
    table = np.full((len(store.index.seconds), len(names)), np.nan, np.float32)
    for column, name in enumerate(names):
        if name in known:
            table[:, column] = known[name]
    return table


class _LocalBatches:
    """Grain's random-access source: element i is this host's part of the i-th global batch after the start."""

    def __init__(self, rows: Rows, epoch: int, row: int, host: int, hosts: int):
        self._rows, self._host, self._hosts = rows, host, hosts
        self._epoch, self._row = epoch, row
        self._ends = []  # batches up to the end of the first epoch, of the second, ...
        self._lock = threading.Lock()

    def __getstate__(self):
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state):
        self.__dict__.update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, i: int) -> TokenBatch:
        epoch, row = self.locate(int(i))
        local = self._rows.data.rows // self._hosts
        begin = row + self._host * local
        return self._rows.batch(epoch, range(begin, begin + local))

    def locate(self, i: int) -> tuple[int, int]:
        """Epoch and first row of a global batch; walks the row counts of the epochs from the start."""
        size = self._rows.data.rows
        with self._lock:
            while not self._ends or self._ends[-1] <= i:
                epoch = self._epoch + len(self._ends)
                rows = self._rows.plans.get(epoch).rows - (0 if self._ends else self._row)
                self._ends.append((self._ends[-1] if self._ends else 0) + -(-rows // size))
            turn = bisect_right(self._ends, i)
        before = self._ends[turn - 1] if turn else 0
        return self._epoch + turn, (i - before) * size + (0 if turn else self._row)


class Loader:
    """Endless batches over the epochs of a split; see `make_loader`."""

    def __init__(self, rows: Rows, host: int, hosts: int, state: dict | None):
        if rows.data.rows % hosts:
            raise BadInput("config.data.rows", str(rows.data.rows), f"a multiple of {hosts} hosts", "change data.rows")
        self._rows, self.plans, self.tokenizer = rows, rows.plans, rows.tokenizer
        self._epoch, self._row = self._start(state)
        self._source = _LocalBatches(rows, self._epoch, self._row, host, hosts)
        self._planned = self._epoch
        self._iterator = iter(_grain_dataset(self._source, rows.data.workers))
        self._taken = 0

    def _start(self, state) -> tuple[int, int]:
        if state is None:
            return 0, 0
        if state["digest"] != self.plans.digest:
            raise BadInput(
                "the data state of the checkpoint",
                "a position in plans of other stores or other tokens, data or seed settings",
                "the stores and settings that the run began with",
                "restore them, or start a new run in another --workdir from this checkpoint's parameters",
            )
        epoch, row = int(state["epoch"]), int(state["row"])
        return (epoch + 1, 0) if row >= self.plans.get(epoch).rows else (epoch, row)

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        batch = next(self._iterator)
        epoch, row = self._source.locate(self._taken)
        self._taken += 1
        if epoch >= self._planned:
            self._planned = epoch + 1
            # Hosts may share the folder, and another one may still read the last rows of the epoch before.
            self.plans.forget_before(epoch - 1)
            threading.Thread(target=self._plan_ahead, args=(epoch + 1,), daemon=True).start()
        row += self._rows.data.rows
        self._epoch, self._row = (epoch + 1, 0) if row >= self.plans.get(epoch).rows else (epoch, row)
        return batch

    def _plan_ahead(self, epoch: int) -> None:
        try:
            self.plans.get(epoch)
        except (BadInput, OSError):
            pass  # raised again, where it can be seen, by the first batch that needs the plan

    def state(self) -> dict:
        """{"epoch", "row", "digest"} of the next batch: a new loader given it goes on exactly, with any number of
        hosts, workers and rows a batch."""
        return {"epoch": self._epoch, "row": self._row, "digest": self.plans.digest}

    @property
    def plan_digest(self) -> str:
        """Digest of the current epoch's rows; equal on all hosts, or they would train on different batches."""
        return self.plans.get(self._epoch).packing.digest

    def close(self) -> None:
        """Ends worker processes and frees their shared memory; to be called before the interpreter exits."""
        self._iterator.close()


def _grain_dataset(source, workers: int):
    """Random access -> ordered, prefetched iteration; element order does not depend on the number of workers."""
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain's workers read flags, which scripts and notebooks never parse
        flags.FLAGS(["csfm"])
    # more threads or a deeper buffer only cost memory: a batch is large, and reading holds the interpreter's lock
    dataset = grain.MapDataset.source(source).to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=1 if workers else 2)
    )
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_in_worker)
    return dataset


def _in_worker(worker: int, workers: int) -> None:
    """Keeps a worker process off the accelerator, and leaves Ctrl-C, which reaches the whole group, to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # Grain has imported it, and it has read the environment
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def make_loader(
    stores,
    tokens: TokenConfig,
    data: DataConfig,
    *,
    split: str = "train",
    plans_dir,
    host: int = 0,
    hosts: int = 1,
    state: dict | None = None,
    hide: bool = True,
    label_names: Sequence[str] = (),
    among: Sequence[np.ndarray] | None = None,
) -> Loader:
    """Batches for training, without end.

    Args:
        stores: opened `store.Store`s.
        tokens, data: `data.rows` is of the global batch; each host gets rows // hosts of it.
        split: "train", "validation" or "test"; windows of train alone are augmented.
        plans_dir: a folder for plans, of this host or shared.
        host, hosts: which slice of every global batch.
        state: of an earlier loader; None starts at epoch 0.
        hide: False makes every token visible and none a target (V = T), for supervised training.
        label_names: labels to deliver, in this order; train recordings that have none of them are left out.
        among: of every store, bool [recordings], which are read at all; None: all of the split.

    Raises:
        BadInput: bad config, no window, a window larger than a row, or a state of other stores or settings.
    """
    training = split == "train"
    rows = Rows(stores, tokens, data, split, plans_dir, hide, label_names=label_names, training=training, among=among)
    return Loader(rows, host, hosts, state)


def evaluation_batches(
    stores,
    tokens: TokenConfig,
    data: DataConfig,
    split: str,
    *,
    plans_dir,
    strategy: str | None = None,
    hide: bool = True,
    host: int = 0,
    hosts: int = 1,
    label_names: Sequence[str] = (),
) -> Iterator[TokenBatch]:
    """Every window of a split once, with fixed starts and fixed masks; the same batches at every call.

    Args:
        strategy: masks of this kind only; None draws them by `data.mask.weights`.
        hide: False makes every token visible and none a target (V = T), for embedding.
        Others: as in `make_loader`. Mixture weights, augmentation and `data.seed` are ignored.
    """
    fixed = dataclasses.replace(data, weights={}, seed=0, window=dataclasses.replace(data.window, random_start=False))
    if data.rows % hosts:
        raise BadInput("config.data.rows", str(data.rows), f"a multiple of {hosts} hosts", "change data.rows")
    rows = Rows(stores, tokens, fixed, split, plans_dir, hide, strategy, label_names)
    return _one_epoch(rows, host, hosts)


def _one_epoch(rows: Rows, host: int, hosts: int) -> Iterator[TokenBatch]:
    local = rows.data.rows // hosts
    for row in range(0, rows.plans.get(0).rows, rows.data.rows):
        begin = row + host * local
        yield rows.batch(0, range(begin, begin + local))


def pack_windows(
    recordings: Sequence[Sequence[tuple[int, np.ndarray]]],
    tokens: TokenConfig,
    *,
    rows: int,
    row_tokens: int,
    row_windows: int,
    texts: Sequence[np.ndarray] | None = None,
) -> list[TokenBatch]:
    """Packs windows that are at hand instead of in a store; every token visible, none a target.

    Args:
        recordings: for each window its (channel id, samples [n]) pairs: int16 with INVALID, or float with NaN, after
            preprocessing and at the modality's rate.
        tokens: what is read.
        rows, row_tokens, row_windows: shape of the batches; V = T.
        texts: for each window its token ids, at most `tokens.text_length` of them.

    Returns:
        Batches with the same tokens that a store of these samples would give; `window` is the position in
        `recordings`. A window without a valid token appears in none of them.

    Raises:
        BadInput: a window larger than a row.
    """
    texts = [np.zeros(0, np.int32)] * len(recordings) if texts is None else texts
    texts = [np.asarray(t, np.int32)[: tokens.text_length] for t in texts]
    blocks = [[((channel,), np.asarray(x)[None]) for channel, x in window] for window in recordings]
    sizes = np.ones((len(blocks), 3), np.int32)
    for i, (window, ids) in enumerate(zip(blocks, texts)):
        sizes[i, :2] = 1 + len(ids) + sum(len(channel) for channel, _, _ in signal_tokens(window, tokens))
    capacities = (row_tokens, row_tokens, row_windows)
    plan = packing.plan(sizes, capacities, seed=0, epoch=0)
    batches = []
    for first in range(0, plan.rows, rows):
        batch = empty_batch(rows, capacities, tokens)
        for row in range(first, min(first + rows, plan.rows)):
            writer = RowWriter(batch, row - first, tokens)
            for i in plan.row_windows[plan.row_offsets[row] : plan.row_offsets[row + 1]]:
                writer.add(blocks[i], texts[i], int(i))
        batches.append(batch)
    return batches
