"""Losses of tasks against scikit-learn, scipy and sums written out; what is not labelled leaves no trace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import expit, huber, log_softmax
from sklearn.metrics import log_loss

from csfm_jax.objectives import losses

# jitted: op by op, every one is compiled for itself
bce, asymmetric, focal, cross_entropy, huber_loss, squared, cox = (
    jax.jit(losses.BY_NAME[name]) for name in ("bce", "asymmetric", "focal", "cross_entropy", "huber", "squared", "cox")
)


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (6, 4, 3)).astype(np.float32)
    labels = (rng.random((6, 4, 3)) < 0.4).astype(np.float32)
    labels[rng.random(labels.shape) < 0.3] = np.nan
    return logits, labels


def mean(found):
    return float(found.value.sum() / found.count.sum())


def test_bce_is_the_log_loss_of_known_entries(case):
    logits, labels = case
    known = ~np.isnan(labels)
    found = bce(logits, labels)
    assert found.count.sum() == known.sum()
    assert mean(found) == pytest.approx(log_loss(labels[known], expit(logits[known]), labels=[0, 1]), rel=1e-5)
    weight = (2.0, 1.0, 5.0)
    each = np.broadcast_to(np.where(labels == 1, weight, 1.0), labels.shape)[known]
    expected = log_loss(labels[known], expit(logits[known]), sample_weight=each) * each.mean()
    assert mean(losses.bce(logits, labels, weight)) == pytest.approx(expected, rel=1e-5)


def test_asymmetric_and_focal_are_their_formulas(case):
    logits, labels = case
    known = ~np.isnan(labels)
    x, y = logits[known].astype(np.float64), labels[known]
    p, shifted = expit(x), np.clip(expit(x) - 0.05, 0, None)
    expected = -(y * (1 - p) * np.log(p) + (1 - y) * shifted**4 * np.log(1 - shifted))
    assert mean(asymmetric(logits, labels)) == pytest.approx(expected.mean(), rel=1e-4)
    right = np.where(y == 1, p, 1 - p)
    assert mean(focal(logits, labels)) == pytest.approx((-((1 - right) ** 2) * np.log(right)).mean(), rel=1e-4)


def test_cross_entropy_takes_windows_with_exactly_one_class():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 5, 4)).astype(np.float32)
    labels = np.eye(4, dtype=np.float32)[rng.integers(0, 4, (2, 5))]
    labels[0, 0, 1], labels[0, 1], labels[1, 2] = np.nan, 0, (1, 1, 0, 0)
    found = cross_entropy(logits, labels)
    good = np.ones((2, 5), bool)
    good[0, :2] = good[1, 2] = False
    expected = -(log_softmax(logits[good], axis=-1) * labels[good]).sum(-1)
    assert found.count.sum() == 7 and mean(found) == pytest.approx(expected.mean(), rel=1e-5)


def test_huber_and_squares(case):
    scores, labels = case
    labels = labels * 3
    known = ~np.isnan(labels)
    error = (scores - labels)[known]
    assert mean(huber_loss(scores, labels)) == pytest.approx(huber(1.0, error).mean(), rel=1e-5)
    assert mean(squared(scores, labels)) == pytest.approx((error**2 / 2).mean(), rel=1e-5)


def partial_likelihood(risk, event, time):
    """Cox's, Breslow's ties, one event after the other; minus its log."""
    total = 0.0
    for i in np.flatnonzero(event == 1):
        total -= risk[i] - np.log(np.exp(risk[time >= time[i]]).sum())
    return total


def test_cox_is_the_partial_likelihood_over_all_windows():
    rng = np.random.default_rng(2)
    risk = rng.normal(0, 1.5, (4, 5, 1)).astype(np.float32)
    labels = np.stack([rng.random((4, 5)) < 0.6, rng.integers(1, 8, (4, 5))], axis=-1).astype(np.float32)
    labels[0, 0, 0], labels[1, 1, 1], labels[2, 2] = np.nan, np.nan, np.nan
    known = ~np.isnan(labels).any(-1)
    event, time = labels[known].T

    def total(r):
        return cox(r, labels).value.sum()

    found = cox(risk, labels)
    assert found.count.sum() == event.sum() > 5
    assert float(found.value.sum()) == pytest.approx(partial_likelihood(risk[known, 0], event, time), rel=1e-5)
    numeric = approx_fprime(risk[known, 0].astype(np.float64), partial_likelihood, 1e-6, event, time)
    slope = jax.jit(jax.grad(total))
    gradient = np.asarray(slope(risk))[..., 0]
    np.testing.assert_allclose(gradient[known], numeric, atol=1e-3)
    assert (gradient[~known] == 0).all()
    # a scale that would overflow a plain exponential, and a batch without events
    assert np.isfinite(slope(risk * 100)).all()
    nothing = cox(risk, np.where(np.isnan(labels), np.nan, labels * [0, 1]).astype(np.float32))
    assert float(nothing.value.sum()) == 0 == float(nothing.count.sum())


@pytest.mark.parametrize("name", sorted(losses.BY_NAME))
def test_what_is_not_labelled_leaves_no_trace(name):
    rng = np.random.default_rng(3)
    labels = np.full((3, 4, 2), np.nan, np.float32)
    labels[0, 0] = labels[1, 1] = (1, 0)
    if name == "cox":
        labels[1, 1] = (1, 2)
    scores = jnp.asarray(rng.normal(size=(3, 4, 1 if name == "cox" else 2)), jnp.float32)
    gradient = jax.jit(jax.grad(lambda s: losses.BY_NAME[name](s, labels).value.sum()))(scores)
    there = np.zeros((3, 4), bool)
    there[0, 0] = there[1, 1] = True
    assert np.isfinite(gradient).all() and (np.asarray(gradient)[~there] == 0).all()
    assert np.abs(np.asarray(gradient)[there]).max() > 0
