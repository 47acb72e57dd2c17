"""Figures of a task on recordings: against scikit-learn and pairs counted one by one."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    f1_score,
    mean_absolute_error,
    roc_auc_score,
)

from csfm_jax import tasks
from csfm_jax.evaluation import decisions, tabular, task_figures
from csfm_jax.evaluation.predictions import Predictions, figures
from csfm_jax.tasks.task import LOSSES, METRICS, Task
from data_pipelines.config import WindowConfig
from data_pipelines.errors import BadInput


def predictions(values, labels):
    number = np.arange(len(values))
    return Predictions(number, number, number, np.asarray(values, np.float32), np.asarray(labels, np.float32))


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

    time, event = rng.random(30), (rng.random(30) < 0.5).astype(float)
    names = ("death", "years")
    found = figures(Task("t", "", names, "survival"), names[:1], predictions(-time[:, None], np.c_[event, time]))
    assert found == {"concordance": 1.0}


def test_every_figure_of_a_task_against_its_definition():
    rng = np.random.default_rng(2)
    labels = (rng.random((200, 2)) < 0.3).astype(float)
    values = np.clip(0.3 * labels + 0.7 * rng.random((200, 2)), 0.01, 0.99)
    labels[:20, 1] = np.nan
    validation = values[:100], labels[:100]
    task = Task("t", "", ("a", "b"), "multilabel")
    every = task_figures.all_of(task, ("a", "b"), values[100:], labels[100:], validation, ())
    found = {name: float(value[0]) for name, value in every.under(None).items()}
    known = ~np.isnan(labels[100:, 1])
    assert found["average_precision/b"] == pytest.approx(
        average_precision_score(labels[100:, 1][known], values[100:, 1][known])
    )
    thresholds = decisions.choose_thresholds(*validation)
    called = values[100:] >= thresholds
    assert found["f1/a"] == pytest.approx(f1_score(labels[100:, 0], called[:, 0]))
    assert found["macro_f1"] == pytest.approx((found["f1/a"] + found["f1/b"]) / 2)
    assert found["brier/a"] == pytest.approx(brier_score_loss(labels[100:, 0], values[100:, 0]))
    assert found["calibration_error_scaled"] < found["calibration_error"]  # these probabilities are no frequencies
    assert found["macro_auroc"] == figures(task, ("a", "b"), predictions(values[100:], labels[100:]))["macro_auroc"]


def test_a_case_without_exactly_one_class_is_in_no_ranking():
    """Its class was left out of what is learned, say: it is no negative case of the others."""
    rng = np.random.default_rng(6)
    truth = rng.integers(0, 4, 120)  # the last one is left out
    labels = (truth[:, None] == np.arange(3)).astype(float)
    values = np.where(labels > 0, 0.6, 0.2) + 0.3 * rng.random((120, 3))
    values[truth == 3] = 0.9
    names, known = ("a", "b", "c"), truth < 3
    task, weights = Task("t", "", names, "multiclass"), rng.integers(0, 3, (5, 120)).astype(np.float32)
    told = task_figures.judged_by(task, names, values, labels)
    every = task_figures.all_of(task, names, values, labels, (values, labels), ())
    alone = task_figures.all_of(task, names, values[known], labels[known], (values[known], labels[known]), ())
    for drawn in (None, weights):
        expected = alone.under(None if drawn is None else drawn[:, known])
        for figure in ("macro_auroc", "macro_average_precision", "macro_sensitivity_at_specificity", "accuracy"):
            np.testing.assert_allclose(every.under(drawn)[figure], expected[figure], err_msg=figure)
        np.testing.assert_allclose(told.under(drawn)["macro_auroc"], expected["macro_auroc"])


def test_replicates_of_models_are_read_on_the_same_draws():
    rng = np.random.default_rng(3)
    labels = rng.normal(70, 10, (80, 1))
    task, none = Task("t", "", ("r",), "regression"), (np.zeros((0, 1)), np.zeros((0, 1)))
    good, shifted = (task_figures.all_of(task, ("r",), labels + noise, labels, none, (10.0,)) for noise in (3.0, 5.0))
    found = task_figures.replicate({"good": good, "shifted": shifted}, np.arange(80) // 2, 40, 0)
    difference = found["shifted"]["z_error"].drawn - found["good"]["z_error"].drawn
    assert difference.shape == (1, 40) and np.allclose(difference, 0.2)
    assert found["good"]["mean_absolute_error/r"].point[0] == pytest.approx(3.0)


def test_every_task_is_of_a_known_kind_and_reads_known_sensors():
    from data_pipelines.pairs import channel_ids
    from data_pipelines.signals import MODALITIES, modality_of

    for name, task in tasks.TASKS.items():
        assert task.name == name and task.kind in LOSSES.keys() & METRICS.keys() and task.about
        signal = task.kind == "signal"
        assert signal == (not task.labels) == bool(task.inputs) == bool(task.targets)
        if signal:
            assert {modality_of(c).name for c in channel_ids(task.inputs + task.targets)} == set(task.sensors)
        assert task.cut is None or (task.cut.names, task.cut.seconds) == (task.labels, task.seconds)
        assert set(task.sensors) <= MODALITIES.keys() and task.crops > 0
        assert not task.end or task.end - task.begin >= task.seconds
        assert task.kind != "survival" or len(task.labels) == 2


@pytest.mark.parametrize(
    "name, window, crops, most",
    [
        ("ptbxl_sex", WindowConfig(9.0), 8, 8),
        ("ptbxl_sex", WindowConfig(2.5), 8, 29),
        ("ptbxl_sex", WindowConfig(20.0), 8, 8),
        ("ptbxl_sex", WindowConfig(2.5, crops=4), 4, 29),
        ("ptbxl_sex", WindowConfig(9.0, crops=16), 16, 16),
        ("bidmc_spo2", WindowConfig(10.0), 48, 48),  # eight minutes
        ("mitdb_beats", WindowConfig(3.0, crops=4), 1, 1),
        ("ppg_to_ecg", WindowConfig(10.0), 0, 4),
    ],
)
def test_windows_whose_predictions_are_averaged(name, window, crops, most):
    found = tasks.get(name).crops_of(window)
    assert (found.crops, found.most_per_recording, found.random_start) == (crops, most, False)
    assert (found.seconds, found.begin, found.end) == (window.seconds, window.begin, window.end)


def test_exclusive_classes_are_calibrated_by_one_temperature():
    """Twice as certain as it should be: one temperature of two makes it right, in cases that have exactly one class."""
    rng = np.random.default_rng(4)
    logits = 2 * rng.normal(size=(3000, 3))
    truth = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    labels = np.eye(3)[truth]
    values = softmax(2 * logits, axis=1)
    labels[:50] = np.nan  # not labelled
    task, names = Task("t", "", ("a", "b", "c"), "multiclass"), ("a", "b", "c")
    validation = values[:1500], labels[:1500]
    found = task_figures.all_of(task, names, values[1500:], labels[1500:], validation, ()).under(None)
    scaled = task_figures.scaled_probabilities(task, values[1500:], validation)
    np.testing.assert_allclose(scaled, softmax(logits[1500:], axis=1), atol=0.03)
    np.testing.assert_allclose(scaled.sum(axis=1), 1)
    brier = [brier_score_loss(labels[1500:, k], values[1500:, k]) for k in range(3)]
    assert found["brier"][0] == pytest.approx(np.mean(brier)) and found["brier/b"][0] == pytest.approx(brier[1])
    assert found["calibration_error_scaled"][0] < 0.7 * found["calibration_error"][0]
    unlabelled = values[:50], labels[:50]
    np.testing.assert_allclose(task_figures.scaled_probabilities(task, values[50:60], unlabelled), values[50:60])


def test_validation_while_learning_tells_the_best_macro_f1():
    rng = np.random.default_rng(5)
    labels = (rng.random((40, 2)) < 0.4).astype(float)
    values = 0.2 * labels + 0.3 * rng.random((40, 2))  # none above one half
    names = ("a", "b")
    found = figures(Task("t", "", names, "multilabel"), names, predictions(values, labels), task_figures.validated_by)
    best = [max(f1_score(labels[:, k], values[:, k] >= at) for at in values[:, k]) for k in range(2)]
    assert found["macro_f1"] == pytest.approx(np.mean(best)) and found["macro_f1"] > 0.7
    assert set(found) == {"macro_auroc", "auroc/a", "auroc/b", "macro_f1"}
    chosen = np.eye(2)[(truth := rng.integers(0, 2, 40))]
    found = figures(Task("t", "", names, "multiclass"), names, predictions(values, chosen), task_figures.validated_by)
    assert found["macro_f1"] == pytest.approx(f1_score(truth, values.argmax(1), average="macro"))


def test_recordings_that_a_probe_is_sure_of_are_still_told_apart():
    log_odds = np.array([0.0, 1.0, 18.0, 20.0, 25.0])
    number, split = np.arange(5), np.array([0, 1, 2, 2, 2])
    table = tabular.Table(number * 0, number, number * 0 + 1, log_odds[:, None])
    known = tabular.Known(table, number, split, np.zeros((5, 1)))
    ((_, test),) = tabular.fitted(lambda train, validation, asked: expit(asked.features), known, [known])
    assert (np.diff(test.values[:, 0]) > 0).all()


@pytest.mark.parametrize(
    "fit, task, told",
    [
        (tabular.linear, "lead_to_twelve", "task of signals.*use finetuned, lora or scratch"),
        (lambda task: tabular.boosted(task, 0), "lead_to_twelve", "task of signals.*use finetuned, lora or scratch"),
        (lambda task: tabular.boosted(task, 0), "code15_mortality", "survival task.*use linear, finetuned, lora"),
    ],
)
def test_what_a_table_cannot_predict_is_told_in_one_line(fit, task, told):
    with pytest.raises(BadInput, match=told) as refused:
        fit(tasks.get(task))
    assert "\n" not in str(refused.value)
