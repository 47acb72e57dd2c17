"""Store to masked, packed batch, beside a PyTorch DataLoader over the original files, and beside reading bytes.

The PyTorch side reads the same records with `wfdb` in two worker processes and prepares them with the same function.
All sides are warm (files in the page cache, workers started); rounds are interleaved, the best of each side counts.
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from data_pipelines import preprocess
from data_pipelines.config import DataConfig, TokenConfig
from data_pipelines.datasets import open_sources
from data_pipelines.prepare import prepare
from data_pipelines.signals import MODALITIES
from data_pipelines.store import Store

RECORDS, ROUNDS, SIGNAL_RATE = 192, 4, 500
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
SPEC = preprocess.SPECS["csfm-jax"]


def run() -> list[tuple[str, float, str, str]]:
    """Lines of (name, value, unit, note); the ratios to PyTorch are left out, with a line that says so, without it."""
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder))


def _measure(folder):
    names = write_records(folder / "records")
    prepare(open_sources(str(folder / "records"))[0], folder / "store", key=os.urandom(32))
    store = Store.open(folder / "store")
    sides = {"bytes": _read_bytes(store), "tokens": _read_tokens(store), "loader": _loader(store, folder / "plans")}
    try:
        sides["torch"] = _torch(folder / "records", names)
    except ImportError:
        pass
    best = dict.fromkeys(sides, 0.0)
    for _ in range(ROUNDS):
        for name, side in sides.items():
            began = time.perf_counter()
            best[name] = max(best[name], side() / (time.perf_counter() - began))
    lines = [
        ("reading the store's bytes, no work", best["bytes"], "windows/s", "12 leads, 10 s"),
        ("window read, z-scored, cut into patches", best["tokens"], "windows/s", "one process"),
        ("store to masked, packed batch", best["loader"], "windows/s", "the loader with 0 workers"),
        ("  share of reading bytes", best["loader"] / best["bytes"], "x", "ratio in one run"),
    ]
    if "torch" not in best:
        return [*lines, ("PyTorch DataLoader", "left out", "", "torch or wfdb is not installed")]
    note = "two workers, wfdb, same preprocessing"
    return [
        *lines,
        ("PyTorch DataLoader", best["torch"], "windows/s", note),
        ("  loader over PyTorch", best["loader"] / best["torch"], "x", "goal: at least 20"),
    ]


def write_records(folder) -> list[str]:
    """WFDB records (format 16) as PTB-XL has them: what they hold does not matter for the time they take."""
    folder.mkdir()
    rng, names = np.random.default_rng(0), [f"r{i:04d}" for i in range(RECORDS)]
    for name in names:
        digital = rng.integers(-40, 41, (10 * SIGNAL_RATE, len(LEADS))).cumsum(axis=0).astype("<i2")
        digital.tofile(folder / f"{name}.dat")
        sums = digital.astype(np.int64).sum(axis=0) & 0xFFFF
        sums = np.where(sums > 32767, sums - 65536, sums)
        lines = [f"{name} {len(LEADS)} {SIGNAL_RATE} {len(digital)}"] + [
            f"{name}.dat 16 1000(0)/mV 16 0 {digital[0, i]} {sums[i]} 0 {lead}" for i, lead in enumerate(LEADS)
        ]
        (folder / f"{name}.hea").write_text("\n".join(lines) + "\n")
    return names


def _order():
    return np.random.default_rng(1).permutation(RECORDS).tolist()


def _read_bytes(store):
    index, order = store.index, _order()

    def side():
        for i in order:
            store._reader(int(index.shard[i])).read([int(index.first[i])])
        return len(order)

    return side


def _read_tokens(store):
    order, ecg = _order(), MODALITIES["ecg"]

    def side():
        for i in order:
            for _, samples in store.read_blocks(i, 0.0, 10.0):
                preprocess.tokens(preprocess.normalise(samples), ecg.patch, ecg.rate)
        return len(order)

    return side


def _loader(store, plans):
    from data_pipelines.loader import make_loader

    # each recording sixteen times an epoch: a dataset has more than twelve batches between two epochs
    data = DataConfig(rows=8, row_tokens=2432, row_visible=640, row_windows=2, weights={store.name: 16.0})
    loader = make_loader([store], TokenConfig(modalities=("ecg",), text_length=0), data, plans_dir=plans)

    def side():
        return sum(int((next(loader).window >= 0).sum()) for _ in range(RECORDS // 16))

    side()
    return side


class _Records:
    """A map-style dataset, as anybody would write it for PyTorch."""

    def __init__(self, folder, names):
        self.folder, self.names = str(folder), names

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        import wfdb

        record = wfdb.rdrecord(f"{self.folder}/{self.names[i]}")
        channels = [(n, record.fs, u, 0.0, record.p_signal[:, j])
                    for j, (n, u) in enumerate(zip(record.sig_name, record.units))]  # fmt: skip
        return preprocess.normalise(np.stack(preprocess.prepare(channels, spec=SPEC).samples))


def _torch(folder, names):
    import torch
    import wfdb  # noqa: F401  (missing here, not in a worker)

    batches = torch.utils.data.DataLoader(
        _Records(folder, names), batch_size=16, shuffle=True, num_workers=2, persistent_workers=True
    )

    def side():
        return sum(len(batch) for batch in batches)

    side()
    return side
