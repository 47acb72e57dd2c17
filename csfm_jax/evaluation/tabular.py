"""Models that read a table of features: probes on frozen embeddings, trees on classical measurements.

One protocol for both: fitted on train subjects, tuned on validation subjects, asked about validation and test subjects.
Where recordings are read with fewer sensors, the model is fitted again on what these give, and the model that was
fitted on all sensors is asked as well.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import expit, softmax
from threadpoolctl import threadpool_limits

from csfm_jax.evaluation import probes
from csfm_jax.evaluation.predictions import Predictions
from csfm_jax.evaluation.probes import Cases
from csfm_jax.evaluation.protocol import Recordings
from csfm_jax.tasks.task import Task
from data_pipelines.errors import BadInput

_THREADED_CASES = 10_000
# train, validation and asked cases -> predictions of those asked, as `Supervised.predict` gives them
Fit = Callable[[Cases, Cases, Cases], np.ndarray]


class Table(NamedTuple):
    """Features of recordings: store, recording [n] int, windows [n] int, values [n, D]."""

    store: np.ndarray
    recording: np.ndarray
    windows: np.ndarray
    values: np.ndarray


class Known(NamedTuple):
    """A table with what the stores say of its recordings: subject [n], split [n], labels [n, K] float64."""

    table: Table
    subject: np.ndarray
    split: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, table: Table, stores, names: tuple[str, ...]) -> "Known":
        """names: of the task's labels; a label that a store lacks is NaN there."""
        found = Recordings.of(stores, table.store, table.recording)
        unknown = np.full(len(table.store), np.nan, np.float32)
        labels = np.stack([found.labels.get(name, unknown) for name in names], axis=1).astype(np.float64)
        return cls(table, found.subject, found.split, labels)

    def cases(self, rows: np.ndarray) -> Cases:
        return Cases(self.table.values[rows], self.labels[rows])

    def labelled(self, split: int) -> np.ndarray:
        """Rows of a split with one of the labels at least."""
        return np.flatnonzero((self.split == split) & ~np.isnan(self.labels).all(axis=1))

    def predicted(self, rows: np.ndarray, values: np.ndarray) -> Predictions:
        t = self.table
        return Predictions(t.store[rows], t.recording[rows], t.windows[rows], values, self.labels[rows])


def fitted(fit: Fit, on: Known, asked: list[Known], train: np.ndarray | None = None) -> list[list[Predictions]]:
    """Fits once and asks about the validation and the test recordings of several tables.

    Args:
        on: whose train recordings it is fitted on. asked: tables of the same columns.
        train: rows of `on` instead of all labelled train recordings.

    Returns:
        Of every table, predictions of validation and of test.
    """
    train = on.labelled(0) if train is None else train
    rows = [np.flatnonzero(table.split == split) for table in asked for split in (1, 2)]
    owner = [table for table in asked for _ in (1, 2)]
    every = [table.cases(r) for table, r in zip(owner, rows)]
    whole = Cases(*(np.concatenate([getattr(c, name) for c in every]) for name in ("features", "labels")))
    # threads that wait for one another cost more than they bring on few cases, and on a shared machine ruinously
    with threadpool_limits(None if len(train) >= _THREADED_CASES else 1, user_api="blas"):
        values = fit(on.cases(train), on.cases(on.labelled(1)), whole)
    parts = np.split(values, np.cumsum([len(r) for r in rows])[:-1])
    # in float64: a probe that is read on fewer sensors may be so sure of every recording that float32 has one value
    each = [table.predicted(r, part) for table, r, part in zip(owner, rows, parts)]
    return [each[i : i + 2] for i in range(0, len(each), 2)]


def train_subsets(on: Known, patients: list[np.ndarray]) -> list[np.ndarray]:
    """Labelled train rows of the table of each set of patients; of `label_budget.patients`, the largest first.

    Raises:
        BadInput: the table holds none of the patients of a set.
    """
    train = on.labelled(0)
    found = [train[np.isin(on.subject[train], chosen)] for chosen in patients]
    if not all(len(rows) for rows in found):
        where, told = "--label-fractions", "a fraction of the train patients without a recording that the model reads"
        raise BadInput(where, told, "recordings in each", "ask for fewer halvings")
    return found


def linear(task: Task) -> Fit:
    """The probe of a task's kind: logistic, ridge or Cox's regression.

    Raises:
        BadInput: a task of signals.
    """
    if task.kind == "signal":
        expected = "classes, values or survival times: a probe predicts no signals"
        raise BadInput(f"task {task.name}", "a task of signals", expected, "use finetuned, lora or scratch")

    def fit(train: Cases, validation: Cases, asked: Cases) -> np.ndarray:
        if task.kind == "regression":
            return probes.ridge(train, validation, asked).scores
        if task.kind == "survival":
            return probes.cox(train, validation, asked).scores
        scores = probes.logistic(train, validation, asked).scores
        return expit(scores) if task.kind == "multilabel" else softmax(scores, axis=1)

    return fit


def boosted(task: Task, seed: int) -> Fit:
    """Gradient-boosted trees of a task's kind.

    Raises:
        BadInput: a survival task, or one of signals.
    """
    if task.kind in ("signal", "survival"):
        found, others = ("a task of signals", "") if task.kind == "signal" else ("a survival task", "linear, ")
        expected, remedy = "classes or values, which trees predict", f"use {others}finetuned, lora or scratch"
        raise BadInput(f"task {task.name}", found, expected, remedy)
    from csfm_jax.baselines import trees

    def fit(train: Cases, validation: Cases, asked: Cases) -> np.ndarray:
        if task.kind == "regression":
            return trees.values(train, validation, asked, seed).scores
        if task.kind == "multilabel":
            return expit(trees.labels(train, validation, asked, seed).scores)
        given = [Cases(c.features, _class_of(c.labels)) for c in (train, validation, asked)]
        return np.exp(trees.classes(*given, train.labels.shape[1], seed).scores)

    return fit


def _class_of(labels: np.ndarray) -> np.ndarray:
    known = ~np.isnan(labels).any(axis=1) & (np.nansum(labels, axis=1) == 1)
    return np.where(known, np.nan_to_num(labels).argmax(axis=1), np.nan)[:, None]
