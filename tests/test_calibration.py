"""Calibration against scikit-learn and against data whose temperature is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from csfm_jax.evaluation import calibration
from data_pipelines.errors import BadInput


def _drawn(seed, n, levels=None):
    rng = np.random.default_rng(seed)
    probability = rng.random(n) if levels is None else rng.integers(0, levels + 1, n) / levels
    return probability, rng.random(n) < probability, rng.integers(0, 3, (3, n)).astype(float)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 60), st.sampled_from([None, 1, 3]), st.booleans())
def test_curve_and_error_equal_scikit_learn_with_ties(seed, n, levels, equal_mass):
    probability, positive, weights = _drawn(seed, n, levels)
    if not 0 < positive.sum() < n:
        return  # scikit-learn wants both classes
    curve = calibration.reliability(probability, positive, bins=6, equal_mass=equal_mass)
    strategy = "quantile" if equal_mass else "uniform"
    share, said = calibration_curve(positive, probability, n_bins=6, strategy=strategy)
    there = curve.cases > 0
    assert curve.positives[there] == pytest.approx(share, abs=1e-9)
    assert curve.probability[there] == pytest.approx(said, abs=1e-9)
    assert curve.cases.sum() == n and np.isnan(curve.positives[~there]).all()
    want = (curve.cases[there] * np.abs(share - said)).sum() / n
    (got,) = calibration.calibration_error(probability, positive, bins=6, equal_mass=equal_mass)
    assert got == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("levels", [None, 4])
def test_weights_count_cases(levels):
    probability, positive, weights = _drawn(5, 80, levels)
    error = calibration.calibration_error(probability, positive, weights, bins=8)
    score = calibration.brier(probability, positive, weights)
    for r, w in enumerate(weights.astype(int)):
        repeated = np.repeat(probability, w), np.repeat(positive, w)
        assert error[r] == pytest.approx(calibration.calibration_error(*repeated, bins=8)[0], abs=1e-9)
        assert score[r] == pytest.approx(brier_score_loss(positive, probability, sample_weight=w), abs=1e-9)
    assert np.isnan(calibration.brier(probability, positive, np.zeros((1, 80))))


def test_bins_of_equal_mass_hold_equally_many_cases():
    probability, positive, _ = _drawn(0, 600)
    assert calibration.reliability(probability**4, positive, 10, equal_mass=True).cases.tolist() == [60] * 10
    assert calibration.reliability(probability**4, positive, 10).cases[0] > 300


def test_what_is_no_probability_is_refused():
    for wrong in (np.array([0.2, 1.5]), np.array([0.2, np.nan])):
        with pytest.raises(BadInput, match="probability"):
            calibration.calibration_error(wrong, np.array([True, False]))
    with pytest.raises(BadInput, match="bins"):
        calibration.bin_edges(np.array([0.5]), 0)


def test_temperatures_of_labels_are_found_and_make_them_calibrated():
    rng = np.random.default_rng(1)
    honest = rng.normal(0, 2, (20_000, 3))
    labels = (rng.random(honest.shape) < expit(honest)).astype(float)
    labels[:, 2] = 1  # one class only: nothing can be learnt
    labels[:100, 0] = np.nan
    said = honest * np.array([3.0, 0.5, 7.0])
    fitted = calibration.fit_temperatures(said, labels)
    assert fitted.value == pytest.approx([3.0, 0.5, 1.0], rel=0.06)
    after = fitted.probabilities(said)
    for k in (0, 1):
        rows = ~np.isnan(labels[:, k])
        positive = labels[rows, k] > 0.5
        before = calibration.calibration_error(expit(said[rows, k]), positive)[0]
        assert calibration.calibration_error(after[rows, k], positive)[0] < 0.02 < 0.07 < before
    assert (np.argsort(after[:, 0], kind="stable") == np.argsort(said[:, 0], kind="stable")).mean() > 0.99


def test_temperature_of_exclusive_classes_is_the_best_by_cross_entropy():
    rng = np.random.default_rng(2)
    honest = rng.normal(0, 1.5, (4000, 4))
    truth = np.argmax(honest + rng.gumbel(size=honest.shape), axis=1)  # drawn from their softmax
    truth[:50] = -1
    fitted = calibration.fit_temperature(honest * 2.5, truth)
    assert fitted.value == pytest.approx([2.5], rel=0.06)

    def loss(t):
        scaled = calibration.Temperature(np.array([t]), True).probabilities(honest[50:] * 2.5)
        return log_loss(truth[50:], scaled)

    (t,) = fitted.value
    assert loss(t) < min(loss(t * 1.01), loss(t / 1.01))
    assert fitted.probabilities(honest).sum(1) == pytest.approx(1.0)
    with pytest.raises(BadInput, match="validation"):
        calibration.fit_temperature(honest, np.full(4000, -1))


def test_classes_that_separate_end_at_a_bound_and_not_in_an_error():
    x = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    fitted = calibration.fit_temperatures(x, np.array([[0.0], [0.0], [1.0], [1.0]]))
    assert 0.005 < fitted.value[0] < 0.05 and np.isfinite(fitted.probabilities(x * 100)).all()
