"""Predictions of a study in the columns of its tasks, and the figure that a task is ranked by."""

from collections.abc import Callable

import numpy as np

from csfm_jax.evaluation import task_figures
from csfm_jax.evaluation.prediction_files import Read
from csfm_jax.evaluation.study import TaskSetup


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


def main_figure(setup: TaskSetup, test: Read) -> Callable[[np.ndarray], np.ndarray]:
    """The figure that a task is ranked by, under weights [R, n]."""
    name = task_figures.MAIN[setup.task.kind]
    if name == "z_error":
        scale = np.asarray(setup.resolved.scale)
        return lambda weights: task_figures.metrics.z_error(test.values, test.labels, scale, weights).value
    ready = task_figures.judged_by(setup.task, test.outputs, test.values, test.labels)
    return lambda weights: ready.under(weights)[name]
