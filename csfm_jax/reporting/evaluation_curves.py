"""Curves of a study's page: ROC as a mean over labels, reliability over all labels together."""

import numpy as np

from csfm_jax.evaluation import calibration, task_figures
from csfm_jax.evaluation.study_results import Group

_GRID = np.linspace(0, 1, 101)
_BINS = 10


def roc(group: Group) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """model -> (1 - specificity, sensitivity), the mean over labels with both classes at equal specificity."""
    from sklearn.metrics import roc_curve

    found = {}
    for word, judged in group.models.items():
        each = []
        for k in range(judged.test.values.shape[1]):
            known = ~np.isnan(judged.test.labels[:, k])
            truth = judged.test.labels[known, k] > 0.5
            if 0 < truth.sum() < len(truth):
                false, true, _ = roc_curve(truth, judged.test.values[known, k])
                each.append(np.interp(_GRID, false, true))
        if each:
            found[word] = (_GRID, np.mean(each, axis=0))
    return found


def reliability(group: Group, scaled: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """model -> (mean probability, share of positives) of bins that hold equally many cases; scaled: by temperatures."""
    found, task = {}, group.setup.task
    for word, judged in group.models.items():
        values, labels = judged.test.values, judged.test.labels
        if scaled:
            both = judged.validation.values, judged.validation.labels
            values = task_figures.scaled_probabilities(task, values, both)
        labels = task_figures.exclusive_or_any(task, labels)
        known = ~np.isnan(labels)
        if known.any():
            curve = calibration.reliability(values[known], labels[known] > 0.5, _BINS, equal_mass=True)
            there = curve.cases > 0
            found[word] = (curve.probability[there], curve.positives[there])
    return found
