"""A million recordings: writing them through `prepare`'s writer, then index, plan and first batch in a fresh process.

The recordings are small (ten seconds of respiration at 25 Hz), so that what is measured is what grows with their
number. The rate of writing is that of whole shards, first tenth against last tenth.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECORDINGS, SHARDS = 1_000_000, 256


def write(folder: Path, recordings: int = RECORDINGS) -> dict:
    """Writes the store: seconds of each shard, of the end, and the process's peak in bytes."""
    import numpy as np

    from data_pipelines.preprocess import SPECS, PreparedRecording
    from data_pipelines.signals import CHANNEL_ID
    from data_pipelines.store_writer import StoredRecording, StoreWriter

    each = recordings // SHARDS
    samples = np.random.default_rng(0).integers(-2000, 2000, (each, 250)).astype(np.int16)
    channels = np.array([CHANNEL_ID["RESP"]], np.int32)

    def made(shard):
        for i in range(each):
            number = shard * each + i
            labels = {"age": float(i % 90), f"code/{i % 50}": 1.0}
            yield StoredRecording(
                f"{number // 2:016x}", f"{number:016x}", ("train", "train", "validation", "test")[shard % 4],
                PreparedRecording(channels, [samples[i]], 10.0, []), labels=labels,
            )  # fmt: skip

    writer = StoreWriter(folder, name="million", spec=SPECS["csfm-jax"], shards=SHARDS)
    times = []
    for shard in range(SHARDS):
        began = time.perf_counter()
        writer.write_shard(shard, made(shard))
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    writer.finish()
    finished = time.perf_counter() - began
    tenth = SHARDS // 10
    return {
        "first": tenth * each / sum(times[:tenth]),
        "last": tenth * each / sum(times[-tenth:]),
        "finish": finished,
        "peak": _peak(),
    }


def begin(folder: Path) -> dict:
    """Opens the store, plans an epoch and makes its first batch, as a training process does: seconds and peak."""
    began = time.perf_counter()
    from data_pipelines.config import DataConfig, TokenConfig
    from data_pipelines.loader import make_loader
    from data_pipelines.store import open_stores

    stores = open_stores(str(folder))
    opened = time.perf_counter() - began
    tokens = TokenConfig(modalities=("resp",), text_length=0)
    data = DataConfig(rows=8, row_tokens=1024, row_visible=384, row_windows=96)
    with tempfile.TemporaryDirectory() as plans:
        batch = next(make_loader(stores, tokens, data, plans_dir=Path(plans)))
    windows = int((batch.window >= 0).sum())
    return {"opened": opened, "seconds": time.perf_counter() - began, "windows": windows, "peak": _peak()}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run() -> list[tuple[str, float, str, str]]:
    """(name, value, unit, note) of each figure."""
    with tempfile.TemporaryDirectory() as folder:
        made, begun = (
            json.loads(
                subprocess.run(
                    [sys.executable, "-m", "benchmarks.million", name, f"{folder}/million"],
                    capture_output=True, text=True, check=True,
                ).stdout
            )
            for name in ("write", "begin")
        )  # fmt: skip
    return [
        ("a million recordings: index, plan and first batch", begun["seconds"], "s", "goal < 30; a fresh process"),
        ("  of it, opening and verifying the store", begun["opened"], "s", "SHA-256 of every file"),
        ("  its peak memory", begun["peak"] / 1e9, "GB", f"goal < 2; {begun['windows']} windows in the batch"),
        ("writing, first tenth of the shards", made["first"], "recordings/s", ""),
        ("writing, last tenth over first", made["last"] / made["first"], "x", "goal: no less than 1"),
        ("  merging the tables", made["finish"], "s", ""),
        ("  its peak memory", made["peak"] / 1e9, "GB", "does not grow with the store"),
    ]


if __name__ == "__main__":
    print(json.dumps({"write": write, "begin": begin}[sys.argv[1]](Path(sys.argv[2]))))
