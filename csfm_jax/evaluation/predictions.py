"""Predictions of a task for recordings: every window of a split once, everything visible, crops averaged."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from csfm_jax import tasks
from csfm_jax.evaluation import task_figures
from csfm_jax.tasks.resolve import read_stores, read_tokens
from csfm_jax.tasks.task import MEASURED
from data_pipelines import loader, windows
from data_pipelines.batch import TokenBatch
from data_pipelines.store import Store

if TYPE_CHECKING:
    from csfm_jax.config import Config


class Predictions(NamedTuple):
    """One row a recording, in order of store and recording.

    Attributes:
        store, recording: int [n], position in the list of stores and row of that store's index.
        windows: int [n], crops that were averaged.
        values: [n, outputs], float32 as the objective's `predict` gives them, float64 of probes and trees.
        labels: [n, K], NaN = not labelled; of a signal task, windows in which each of the K channels was compared.
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

    Attributes:
        table: the window table, whose rows `TokenBatch.window` names.
    """

    def __init__(self, config: "Config", stores: list[Store], split: str, plans_dir: Path, number=0, parts=1):
        task = tasks.get(config.adaptation.task)
        window = task.crops_of(config.data.window)
        self._tokens, self._stores, self._split = read_tokens(config), read_stores(config, stores), split
        self._data = dataclasses.replace(config.data, weights={}, window=window)
        self._share, self._plans_dir, self._labels = (number, parts), plans_dir, config.adaptation.labels
        self.table = windows.epoch_windows(self._stores, self._tokens, self._data, split, 0)
        # other stores than those of the training may have more leads, hence longer windows
        if (longest := int(self.table.tokens.max())) > self._data.row_tokens:
            longest = windows.row_length(longest, self._data.row_windows)
            self._data = dataclasses.replace(self._data, row_tokens=longest, row_visible=longest)
        self._measured = task.kind == "signal"
        if self._measured and (seen := int(self.table.visible.max())) > self._data.row_visible:
            visible = min(windows.row_length(seen), self._data.row_tokens)
            self._data = dataclasses.replace(self._data, row_visible=visible)

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
        place = np.stack([self.table.store[rows], self.table.recording[rows]])
        (store, recording), first, member = np.unique(place, axis=1, return_index=True, return_inverse=True)
        count = np.bincount(member, minlength=len(store))
        if self._measured:  # a window that lacks a channel says nothing of it
            return _measured(store, recording, count, member, values)
        total = np.zeros((len(store), values.shape[1]))
        np.add.at(total, member, values)
        return Predictions(store, recording, count, (total / count[:, None]).astype(np.float32), labels[first])


def _measured(store, recording, count, member, values) -> Predictions:
    known = ~np.isnan(values)
    total, of = np.zeros((len(store), values.shape[1])), np.zeros((len(store), values.shape[1]))
    np.add.at(total, member, np.where(known, values, 0.0))
    np.add.at(of, member, known)
    of[of == 0] = np.nan
    return Predictions(store, recording, count, (total / of).astype(np.float32), of[:, :: len(MEASURED)])


def figures(
    task: tasks.Task, outputs: tuple[str, ...], predictions: Predictions, read=task_figures.judged_by
) -> dict[str, float]:
    """The task's metrics (`Task.metrics`), and each output's own where there are several; NaN where not defined.

    Args:
        outputs: names of the columns of `predictions.values`. read: `task_figures.judged_by`, or `validated_by`.
    """
    values, labels = predictions.values.astype(np.float64), predictions.labels.astype(np.float64)
    found = read(task, outputs, values, labels).under(None)
    return {name: float(value[0]) for name, value in found.items()}
