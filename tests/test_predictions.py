"""Figures of a task on recordings: against scikit-learn and pairs counted one by one."""

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, roc_auc_score

from csfm_jax import tasks
from csfm_jax.evaluation.predictions import Predictions, concordance, figures
from csfm_jax.tasks.task import LOSSES, METRICS, Task


def predictions(values, labels):
    number = np.arange(len(values))
    return Predictions(number, number, number, np.asarray(values, np.float32), np.asarray(labels, np.float32))


def test_concordance_counts_comparable_pairs():
    rng = np.random.default_rng(0)
    risk, time = rng.integers(0, 5, 40) / 2.0, rng.integers(1, 9, 40).astype(float)
    event = (rng.random(40) < 0.5).astype(float)
    right = pairs = 0.0
    for i in range(40):
        for j in range(40):
            if event[i] and (time[j] > time[i] or (time[j] == time[i] and not event[j])):
                pairs += 1
                right += 1.0 if risk[i] > risk[j] else 0.5 * (risk[i] == risk[j])
    assert concordance(risk, event, time) == pytest.approx(right / pairs) and 0.2 < right / pairs < 0.8
    unknown = [np.append(x, np.nan) for x in (risk, event, time)]
    assert concordance(*unknown) == pytest.approx(right / pairs)
    assert np.isnan(concordance(risk, np.zeros(40), time)) and concordance(-time, np.ones(40), time) == 1


def test_figures_of_each_kind():
    rng = np.random.default_rng(1)
    labels = (rng.random((30, 3)) < 0.4).astype(float)
    values = rng.random((30, 3))
    labels[0, 0], labels[:, 2] = np.nan, 0  # not labelled; a label with one class only
    names = ("a", "b", "c")
    found = figures(Task("t", "", names, "multilabel"), names, predictions(values, labels))
    one, two = roc_auc_score(labels[1:, 0], values[1:, 0]), roc_auc_score(labels[:, 1], values[:, 1])
    assert found["auroc/a"] == pytest.approx(one) and np.isnan(found["auroc/c"])
    assert found["macro_auroc"] == pytest.approx((one + two) / 2)

    truth = rng.integers(0, 3, 30)
    chosen = np.eye(3)[truth]
    found = figures(Task("t", "", names, "multiclass"), names, predictions(values, chosen))
    assert found["accuracy"] == pytest.approx((values.argmax(1) == truth).mean())
    each = [roc_auc_score(chosen[:, i], values[:, i]) for i in range(3)]
    assert found["macro_auroc"] == pytest.approx(np.mean(each))

    rate = rng.normal(70, 10, (30, 1))
    guess = rate + rng.normal(0, 3, (30, 1))
    found = figures(Task("t", "", ("r",), "regression"), ("r",), predictions(guess, rate))
    assert found["mean_absolute_error/r"] == pytest.approx(mean_absolute_error(rate, guess), rel=1e-4)
    assert 0.7 < found["r2/r"] < 1


def test_every_task_is_of_a_known_kind_and_reads_known_sensors():
    from data_pipelines.signals import MODALITIES

    for name, task in tasks.TASKS.items():
        assert task.name == name and task.kind in LOSSES.keys() & METRICS.keys() and task.labels and task.about
        assert set(task.sensors) <= MODALITIES.keys() and task.crops > 0
        assert not task.end or task.end - task.begin >= task.seconds
        assert task.kind != "survival" or len(task.labels) == 2
