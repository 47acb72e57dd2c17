"""How alike the layers of two encoders see the same test windows: linear CKA of every layer with every other."""

import jax
import numpy as np
from flax import nnx

from csfm_jax.evaluation.features import reading
from csfm_jax.evaluation.similarity import MinibatchCKA
from csfm_jax.loaded_encoder import LoadedEncoder
from csfm_jax.spread import OverDevices
from data_pipelines.config import WindowConfig
from data_pipelines.store import Store

_WINDOWS = 4096  # looked at, the first ones of the stores
_BATCH = 128


def layer_means(encoder: LoadedEncoder, stores: list[Store], window: WindowConfig) -> dict[tuple, np.ndarray]:
    """(store, recording, start) of test windows -> [L, D] float32, every layer's mean over the window's tokens."""
    graphdef, state = nnx.split(encoder.encoder)
    means = jax.jit(lambda state, batch: nnx.merge(graphdef, state).layers(batch).pooled)
    network = OverDevices(means, state, encoder.config.tokens)
    found: dict[tuple, np.ndarray] = {}
    with reading(encoder, stores, "test", window) as (table, batches):
        for batch, pooled in network.over(batches):
            for row, slot in zip(*np.nonzero(batch.window >= 0)):
                number = batch.window[row, slot]
                key = int(table.store[number]), int(table.recording[number]), float(table.start[number])
                found[key] = pooled[:, row, slot]
            if len(found) >= _WINDOWS:
                break
    return found


def compare(
    first: LoadedEncoder, second: LoadedEncoder, stores: list[Store], window: WindowConfig
) -> np.ndarray | None:
    """[layers of the first, layers of the second] float64, on the windows that both have seen; None with too few.

    Args:
        stores: whose test windows are read. window: of the task.
    """
    means = [layer_means(encoder, stores, window) for encoder in (first, second)]
    common = sorted(means[0].keys() & means[1].keys())
    if len(common) < 4:
        return None
    table = MinibatchCKA(*(len(next(iter(one.values()))) for one in means))
    for at in range(0, len(common), _BATCH):
        some = common[at : at + _BATCH]
        if len(some) >= 4:
            table.add(*(np.stack([one[key] for key in some], axis=1) for one in means))
    return table.values()
