"""Predictions of a task for recordings: every window of a split once, everything visible, crops averaged."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from csfm_jax import tasks
from csfm_jax.evaluation import metrics
from csfm_jax.tasks.resolve import read_tokens
from data_pipelines import loader, windows
from data_pipelines.batch import TokenBatch
from data_pipelines.store import Store

if TYPE_CHECKING:
    from csfm_jax.config import Config

_PAIRS = 1 << 22  # compared at once by `concordance`; bounds memory


class Predictions(NamedTuple):
    """One row a recording, in order of store and recording.

    Attributes:
        store, recording: int [n], position in the list of stores and row of that store's index.
        windows: int [n], crops that were averaged.
        values: float32 [n, outputs], as `Supervised.predict` gives them. labels: float32 [n, K], NaN = not labelled.
    """

    store: np.ndarray
    recording: np.ndarray
    windows: np.ndarray
    values: np.ndarray
    labels: np.ndarray


class Split:
    """The windows of one split as a task reads them.

    Args:
        config: of a fine-tuned model. stores: opened. split: its name. plans_dir: a folder for the plan.
        number, parts: which part of every batch's rows this process reads.
    """

    def __init__(self, config: "Config", stores: list[Store], split: str, plans_dir: Path, number=0, parts=1):
        task, window = tasks.get(config.adaptation.task), config.data.window
        # a model of shorter windows is judged on the same stretch as others
        crops = max(1, math.ceil(task.crops * task.seconds / window.seconds - 1e-6))
        window = dataclasses.replace(window, random_start=False, most_per_recording=crops)
        self._tokens, self._stores, self._split = read_tokens(config), stores, split
        self._data = dataclasses.replace(config.data, weights={}, window=window)
        self._share, self._plans_dir, self._labels = (number, parts), plans_dir, config.adaptation.labels
        self._table = windows.epoch_windows(stores, self._tokens, self._data, split, 0)
        # other stores than those of the training may have more leads, hence longer windows
        longest = -(-int(self._table.tokens.max()) // 128) * 128
        if longest > self._data.row_tokens:
            self._data = dataclasses.replace(self._data, row_tokens=longest, row_visible=longest)

    def batches(self) -> Iterator[TokenBatch]:
        """This process's part of every batch."""
        return loader.evaluation_batches(
            self._stores,
            self._tokens,
            self._data,
            self._split,
            plans_dir=self._plans_dir,
            hide=False,
            host=self._share[0],
            hosts=self._share[1],
            label_names=self._labels,
        )

    def averaged(self, found: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Predictions:
        """Windows -> recordings.

        Args:
            found: of every batch, predictions [B, S, outputs], labels [B, S, K] and window [B, S].
        """
        there = [window >= 0 for _, _, window in found]
        values, labels, rows = (np.concatenate([f[i][t] for f, t in zip(found, there)]) for i in range(3))
        place = np.stack([self._table.store[rows], self._table.recording[rows]])
        (store, recording), first, member = np.unique(place, axis=1, return_index=True, return_inverse=True)
        total, count = np.zeros((len(store), values.shape[1])), np.bincount(member, minlength=len(store))
        np.add.at(total, member, values)
        return Predictions(store, recording, count, (total / count[:, None]).astype(np.float32), labels[first])


def figures(task: tasks.Task, outputs: tuple[str, ...], predictions: Predictions) -> dict[str, float]:
    """The task's metrics (`Task.metrics`), and each output's own where there are several; NaN where not defined.

    Args:
        outputs: names of the columns of `predictions.values`.
    """
    values, labels = predictions.values.astype(np.float64), predictions.labels.astype(np.float64)
    if task.kind == "survival":
        return {"concordance": concordance(values[:, 0], labels[:, 0], labels[:, 1])}
    found: dict[str, float] = {}
    if task.kind == "regression":
        for name in task.metrics:
            each = [_known(getattr(metrics, name), values[:, i], labels[:, i]) for i in range(len(outputs))]
            found |= {f"{name}/{output}": value for output, value in zip(outputs, each)}
        return found
    if task.kind == "multiclass":
        whole = ~np.isnan(labels).any(axis=1) & (np.nansum(labels, axis=1) == 1)
        values, labels = values[whole], labels[whole]
        right = values.argmax(axis=1) == labels.argmax(axis=1)
        found["accuracy"] = float(right.mean()) if len(right) else float("nan")
    each = [_known(metrics.auroc, values[:, i], labels[:, i]) for i in range(len(outputs))]
    known = [value for value in each if value == value]
    found["macro_auroc"] = float(np.mean(known)) if known else float("nan")
    return found | {f"auroc/{output}": value for output, value in zip(outputs, each) if len(outputs) > 1}


def concordance(risk: np.ndarray, event: np.ndarray, time: np.ndarray) -> float:
    """Harrell's C: of pairs where it is known who had the event first, how often that one has the higher risk.

    Args:
        risk, event, time: [n]; a NaN leaves the case out. Ties of risk count half; ties of time with two events none.

    Returns:
        NaN where no pair can be compared.
    """
    known = ~(np.isnan(event) | np.isnan(time) | np.isnan(risk))
    risk, event, time = risk[known], event[known] > 0.5, time[known]
    first, right, pairs = np.flatnonzero(event), 0.0, 0
    step = max(1, _PAIRS // max(1, len(risk)))
    for at in range(0, len(first), step):
        some = first[at : at + step]
        later = (time[None] > time[some, None]) | ((time[None] == time[some, None]) & ~event[None])
        ahead = (risk[some, None] > risk[None]) + 0.5 * (risk[some, None] == risk[None])
        right, pairs = right + float((ahead * later).sum()), pairs + int(later.sum())
    return right / pairs if pairs else float("nan")


def _known(figure, values, labels) -> float:
    rows = ~np.isnan(labels)
    if not rows.any():
        return float("nan")
    truth = labels[rows]
    return float(figure(values[rows], truth > 0.5 if figure is metrics.auroc else truth)[0])
