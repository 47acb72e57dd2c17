"""Predictions of a study in the columns of its tasks, and the figure that a task is ranked by."""

from collections.abc import Callable

import numpy as np

from csfm_jax.evaluation import task_figures
from csfm_jax.evaluation.prediction_files import Read
from csfm_jax.evaluation.study import TaskSetup
from csfm_jax.evaluation.task_figures import Figures, OverFolds


def in_order(read: Read, setup: TaskSetup) -> Read | None:
    """The labelled recordings of a file, in the order of the study's labels; None where it lacks one of them."""
    names = setup.resolved.labels
    outputs = setup.task.outputs(names)
    if not set(outputs) <= set(read.outputs) or not set(names) <= set(read.labels_of):
        return None
    columns = [read.outputs.index(name) for name in outputs], [read.labels_of.index(name) for name in names]
    known = ~np.isnan(read.labels[:, columns[1]]).all(axis=1)
    chosen = read._replace(outputs=outputs, labels_of=names, values=read.values[:, columns[0]],
                           labels=read.labels[:, columns[1]])  # fmt: skip
    return chosen.rows(known)


def figures(setup: TaskSetup, test: Read, validation: Read) -> OverFolds:
    """Every figure of test cases, at thresholds and temperatures of the validation cases of the same fold."""

    def of_fold(fold: int, rows: np.ndarray) -> Figures:
        here, chosen = test.rows(rows), validation.rows(validation.fold == fold)
        by = chosen.values, chosen.labels
        return task_figures.all_of(setup.task, test.outputs, here.values, here.labels, by, setup.resolved.scale)

    return OverFolds(test.fold, of_fold)


def main_figure(setup: TaskSetup, test: Read) -> Callable[[np.ndarray], np.ndarray]:
    """The figure that a task is ranked by, under weights [R, n]."""
    name = task_figures.MAIN[setup.task.kind]

    def of_fold(fold: int, rows: np.ndarray) -> Figures:
        here = test.rows(rows)
        if name != "z_error":
            return task_figures.judged_by(setup.task, test.outputs, here.values, here.labels)
        scale = np.asarray(setup.resolved.scale)
        return Figures([lambda w: {name: task_figures.metrics.z_error(here.values, here.labels, scale, w).value}])

    ready = OverFolds(test.fold, of_fold)
    return lambda weights: ready.under(weights)[name]
