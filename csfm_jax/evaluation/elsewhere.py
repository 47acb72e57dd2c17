"""Other sources and devices: stores that a study's models are read on as they are; no label is learned there, nothing
chosen. (An encoder may have been pretrained on their train recordings: the page tells.)

Only their test subjects are read, as everywhere, so that it can be told that no weights have seen them.
"""

import numpy as np

from csfm_jax.evaluation.protocol import Recordings
from csfm_jax.tasks.resolve import cut
from csfm_jax.tasks.task import Task
from data_pipelines.errors import BadInput
from data_pipelines.store import SPLITS, Store

HEAD = "elsewhere/"  # of the name of a group of recordings: a store's name follows


def labelled(stores: tuple[Store, ...], task: Task, labels: tuple[str, ...]) -> tuple[Store, ...]:
    """Those with a test recording that has one of the labels, as stretches where the task is of these.

    Args:
        labels: those that the study's own stores teach.
    """
    return tuple(one for store in stores for one in _as_read(store, task) if _has(one, labels))


def _as_read(store: Store, task: Task) -> list[Store]:
    try:
        return [] if task.kind == "signal" else cut(task, [store])
    except BadInput:  # no event of the task's
        return []


def _has(store: Store, labels: tuple[str, ...]) -> bool:
    everyone = Recordings.whole([store])
    known = [~np.isnan(everyone.labels[name]) for name in labels if name in everyone.labels]
    return bool(np.any(known, axis=0)[everyone.split == SPLITS.index("test")].any()) if known else False
