"""Classical features of every recording of stores, measured in worker processes."""

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from csfm_jax.baselines import classical
from data_pipelines.errors import BadInput
from data_pipelines.preprocess import INVALID
from data_pipelines.signals import CHANNELS, modality_of
from data_pipelines.store import Store

_RECORDINGS = 16  # given to a worker at once


@dataclass(frozen=True)
class FeatureTable:
    """One row a recording, stores and recordings in order: `protocol.Recordings.of(stores, store, recording)` fits.

    Attributes:
        names: of the columns. values: [n, len(names)] float32, NaN where there is none.
        store, recording: [n] int. failures: group of features -> recordings on which its algorithm raised.
    """

    names: tuple[str, ...]
    values: np.ndarray
    store: np.ndarray
    recording: np.ndarray
    failures: dict[str, int]


def feature_table(stores: list[Store], workers: int = 0, seconds: float = 300.0, begin: float = 0.0) -> FeatureTable:
    """Measures `classical.FEATURES` of all recordings; about 0.3 s of one core each where there is an ECG.

    Args:
        stores: opened stores. workers: processes; 0 measures in this one.
        seconds: of a longer recording only so much is measured, from the second `begin` on.

    Raises:
        BadInput: a store of another preprocessing than "csfm-jax", whose samples may have lost their unit.
    """
    for store in stores:
        if store.spec.name != "csfm-jax":
            remedy = "prepare the store with --spec=csfm-jax"
            raise BadInput(str(store.path), f"preprocessing {store.spec.name!r}", "'csfm-jax'", remedy)
    work = [
        (i, np.arange(at, min(at + _RECORDINGS, len(store.index))), begin, seconds)
        for i, store in enumerate(stores)
        for at in range(0, len(store.index), _RECORDINGS)
    ]
    failures, values = Counter(), []
    for measured in _measured(stores, work, workers):
        values += [one.values for one in measured]
        failures.update(group for one in measured for group in one.failed)
    sizes = [len(s.index) for s in stores]
    return FeatureTable(
        classical.FEATURES,
        np.array(values, np.float32).reshape(-1, len(classical.FEATURES)),
        np.repeat(np.arange(len(sizes)), sizes),
        np.concatenate([np.arange(n) for n in sizes]) if sizes else np.zeros(0, np.int64),
        dict(failures),
    )


def sensors_of(store: Store, recording: int, seconds: float, begin: float = 0.0) -> dict[str, classical.Sensor]:
    """So many seconds of the recording from `begin` on, as physical samples, NaN where invalid; none where it ended."""
    length = min(seconds, int(store.index.milliseconds[recording]) / 1000 - begin)
    found = {}
    for channel, counts in store.read_window(recording, begin, length) if length > 0 else ():
        modality = modality_of(channel)
        samples = np.where(counts == INVALID, np.nan, counts * modality.step)
        found[CHANNELS[channel].name] = classical.Sensor(samples, modality.rate)
    return found


def _measured(stores, work, workers) -> Iterator[list[classical.Measured]]:
    if not workers:
        yield from (_measure(stores, *one) for one in work)
        return
    # a fresh process: one forked from a parent whose accelerator runtime has threads may never come back
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (stores,)) as pool:
        yield from pool.map(_measure_here, work)


def _begin(stores) -> None:
    global _stores
    _stores = stores


def _measure_here(work) -> list[classical.Measured]:
    return _measure(_stores, *work)


def _measure(stores, which, recordings, begin, seconds) -> list[classical.Measured]:
    return [classical.measure(sensors_of(stores[which], int(r), seconds, begin)) for r in recordings]
