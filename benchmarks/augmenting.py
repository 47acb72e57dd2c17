"""What augmentation costs the loader: windows a second, twelve leads of 10 s, each step on half of the windows."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

WINDOWS, ROWS, TURNS = 160, 8, 6


def _store(folder: Path):
    import numpy as np

    from data_pipelines.preprocess import PreparedRecording, get_spec
    from data_pipelines.store_writer import StoredRecording, StoreWriter

    rng, writer = np.random.default_rng(0), StoreWriter(folder, name="noise", spec=get_spec("csfm-jax"), shards=1)
    made = []
    for i in range(WINDOWS):
        samples = list(rng.integers(-2000, 2000, (12, 2500)).astype(np.int16))
        prepared = PreparedRecording(np.arange(1, 13, dtype=np.int32), samples, 10.0, [])
        made.append(StoredRecording(f"{i:016x}", f"{i + 10**6:016x}", "train", prepared, None, {}))
    writer.write_shard(0, made)
    return writer.finish(tokenizer=None)


def run() -> list[tuple[str, float, str, str]]:
    """(name, value, unit, note) of each figure."""
    from data_pipelines.augment import AugmentConfig
    from data_pipelines.config import DataConfig, TokenConfig
    from data_pipelines.loader import Rows

    amounts = dict(shift_seconds=0.5, scale=0.3, noise=0.2, powerline=0.1, drop=0.2, cutout_seconds=0.5)
    kinds = {"off": AugmentConfig(), "all": AugmentConfig(crop_seconds=8.0, **amounts)}
    kinds |= {name: AugmentConfig(**{name: amount}) for name, amount in amounts.items()}
    data = DataConfig(rows=ROWS, row_tokens=1280, row_visible=1280, row_windows=1)
    tokens = TokenConfig(modalities=("ecg",), text_length=0)
    with tempfile.TemporaryDirectory(prefix="csfm-augmenting-") as folder:
        stores = [_store(Path(folder, "store"))]
        plans = Path(folder, "plans")
        made = {
            kind: Rows(stores, tokens, replace(data, augment=how), "train", plans, hide=False, training=True)
            for kind, how in kinds.items()
        }
        spent = {kind: [] for kind in kinds}
        for turn in range(TURNS):  # one after the other, so that a busy machine is as busy for all
            for kind, rows in made.items():
                begin = time.process_time()
                rows.batch(0, range(ROWS * turn, ROWS * (turn + 1)))
                spent[kind].append(time.process_time() - begin)
    best = {kind: min(times) for kind, times in spent.items()}
    return [
        (f"windows a second of one core, {kind}", ROWS / seconds, "", f"{seconds / best['off']:.2f} times off")
        for kind, seconds in best.items()
    ]
