"""Which train patients a model may learn from when labels are few: nested halves, the same for all of a study."""

from typing import TYPE_CHECKING

import numpy as np

from csfm_jax import tasks
from csfm_jax.evaluation.label_efficiency import nested_subsets
from csfm_jax.evaluation.protocol import Recordings
from csfm_jax.tasks.task import Task
from data_pipelines.pairs import channel_ids

if TYPE_CHECKING:
    from csfm_jax.config import Config


def patients(stores, labels: tuple[str, ...], task: Task, halvings: int, seed: int) -> list[np.ndarray]:
    """Hashed subjects [n] of all labelled train recordings, of half of them, a quarter ...; see `nested_subsets`.

    Args:
        labels: of the task in these stores. halvings: how often; 0 = all of them alone. seed: of the draw.
    """
    everyone, strata = Recordings.whole(stores), None
    if task.kind == "signal":
        known = _paired(stores, labels, task)
    else:
        unknown = np.full(len(everyone.subject), np.nan)
        values = np.stack([everyone.labels.get(name, unknown) for name in labels], axis=1).astype(np.float64)
        known = ~np.isnan(values).all(axis=1)
    rows = np.flatnonzero((everyone.split == 0) & known)
    if task.kind not in ("regression", "survival", "signal"):
        strata = values[rows]
    found = nested_subsets(everyone.subject[rows], strata, halvings, seed)
    return [np.unique(everyone.subject[rows[some.cases]]) for some in found]


def _paired(stores, channels: tuple[str, ...], task: Task) -> np.ndarray:
    """bool [recordings of all stores]: whether an input and one of these channels are there."""
    sides = channel_ids(task.inputs), channel_ids(channels)
    sets = [[all(side.intersection(held) for side in sides) for held in store.index.channel_sets] for store in stores]
    return np.concatenate([np.array(flags, bool)[store.index.channel_set] for flags, store in zip(sets, stores)])


def among(config: "Config", stores) -> list[np.ndarray] | None:
    """Of every store, bool [recordings]: whether a fine-tuning may learn from it; None: from all.

    Args:
        config: with the task's labels; `adaptation.halvings` of the train patients, drawn by `halvings_seed`.
    """
    ours = config.adaptation
    if not ours.halvings:
        return None
    read = [store for store in stores if config.data.weights.get(store.name, 1.0) > 0]
    chosen = patients(read, ours.labels, tasks.get(ours.task), ours.halvings, ours.halvings_seed)[-1]
    return [np.isin(store.index.subject, chosen) for store in stores]
