"""Nested subsets of patients, error curves with known parameters, and the labels that a better curve saves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from csfm_jax.evaluation import bootstrap
from csfm_jax.evaluation import label_efficiency as le
from data_pipelines.errors import BadInput

SIZES = 4096 / 2.0 ** np.arange(8)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 200), st.integers(0, 8))
def test_subsets_are_nested_by_patient_and_halve(seed, people, halvings):
    rng = np.random.default_rng(seed)
    patients = np.array([f"{p:04x}" for p in rng.integers(0, people, 2 * people)], "S16")
    labels = np.where(rng.random((2 * people, 3)) < 0.1, np.nan, rng.random((2 * people, 3)) < [0.5, 0.1, 0.02])
    subsets = le.nested_subsets(patients, labels, halvings, seed)
    everyone = len(np.unique(patients))
    assert subsets[0].cases.tolist() == list(range(2 * people)) and len(subsets) == halvings + 1
    for k, (subset, larger) in enumerate(zip(subsets, subsets[:1] + subsets)):
        assert set(subset.cases) <= set(larger.cases)
        people_in = np.unique(patients[subset.cases])
        assert len(people_in) == subset.patients == max(1, int(everyone / 2**k + 0.5))
        assert np.isin(patients, people_in).sum() == len(subset.cases)  # all cases of a patient, or none
    again = le.nested_subsets(patients, labels, halvings, seed)
    assert all(np.array_equal(a.cases, b.cases) for a, b in zip(subsets, again))


def test_rare_classes_keep_their_share():
    rng = np.random.default_rng(0)
    labels = np.zeros((1600, 2))
    labels[rng.permutation(1600)[:48], 1] = 1  # three percent
    labels[:, 0] = rng.random(1600) < 0.5
    shares = []
    for seed in range(10):
        for k, subset in enumerate(le.nested_subsets(np.arange(1600), labels, 5, seed)):
            shares.append(abs(labels[subset.cases, 1].sum() - 48 / 2**k))
    assert max(shares) <= 1.0
    without = [le.nested_subsets(np.arange(1600), None, 5, seed)[4] for seed in range(10)]
    assert max(abs(labels[s.cases, 1].sum() - 3) for s in without) > 1  # chance alone strays further


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(BadInput, match="continuous"):
        le.nested_subsets(np.arange(3), np.array([[0.0], [61.5], [1.0]]))
    with pytest.raises(BadInput, match="no train case"):
        le.nested_subsets(np.zeros(0))


@pytest.mark.parametrize("law", [(2.0, 0.4, 0.1), (0.5, 1.2, 0.0), (30.0, 0.15, 0.05)])
def test_a_known_curve_is_found(law):
    truth = le.PowerLaw(*law)
    fitted = le.fit_power_law(SIZES, [truth.at(n) for n in SIZES])
    assert (fitted.scale, fitted.exponent) == pytest.approx(law[:2], rel=1e-4)
    assert fitted.floor == pytest.approx(law[2], abs=1e-4)
    assert fitted.reach(truth.at(300.0)) == pytest.approx(300.0, rel=1e-4)


def test_the_fit_is_the_least_squares_of_scipy():
    rng = np.random.default_rng(1)
    errors = 2.0 * SIZES**-0.4 + 0.1 + rng.normal(0, 0.004, 8)
    law = lambda n, c, a, floor: c * n**-a + floor  # noqa: E731
    want, _ = curve_fit(law, SIZES, errors, p0=(1.0, 0.5, 0.1), ftol=1e-14, xtol=1e-14)
    fitted = le.fit_power_law(SIZES, errors)
    assert (fitted.scale, fitted.exponent, fitted.floor) == pytest.approx(want, rel=1e-4)


def test_curves_that_do_not_fall_are_flat_and_never_reach_less():
    flat = le.fit_power_law(SIZES, 0.3 + 1e-3 * np.arange(8)[::-1])
    assert flat.scale == pytest.approx(0, abs=1e-12) and flat.reach(0.25) == np.inf and flat.reach(0.35) < 1
    missing = le.fit_power_law(SIZES, np.r_[0.1, 0.2, np.full(6, np.nan)])
    assert np.isnan(missing.floor) and np.isnan(missing.reach(0.2))
    assert le.fit_power_law(SIZES, np.r_[np.nan, 2 * SIZES[1:] ** -0.5]).exponent == pytest.approx(0.5, rel=1e-4)


def _errors(law, noise, rng, replicates=60):
    point = np.array([law.at(n) for n in SIZES])
    return point, point[:, None] + noise * rng.normal(size=(len(SIZES), replicates))


def _ratio(model, baseline):
    return le.label_ratio(SIZES, model, SIZES, baseline)


def test_sizes_are_each_models_own():
    """Of a store where few have a pulse, a model of pulses is taught on fewer than a baseline that reads everything."""
    law, rng = le.PowerLaw(2.0, 0.5, 0.05), np.random.default_rng(9)
    few = [np.array([law.at(n) for n in sizes]) for sizes in (SIZES / 10, SIZES)]
    both = [bootstrap.Replicates(e, e[:, None] + 1e-5 * rng.normal(size=(len(e), 5))) for e in few]
    found = le.label_ratio(SIZES / 10, both[0], SIZES, both[1])
    assert found.ratio.point == pytest.approx(1, rel=1e-2) and found.at == SIZES.max()


def test_the_ratio_is_that_of_the_curves_and_its_interval_holds_it():
    rng = np.random.default_rng(2)
    baseline, model = le.PowerLaw(2.0, 0.5, 0.05), le.PowerLaw(1.0, 0.5, 0.05)  # a quarter of the labels
    found = _ratio(*(bootstrap.Replicates(*_errors(law, 5e-4, rng)) for law in (model, baseline)))
    assert found.ratio.point == pytest.approx(0.25, rel=1e-3) and found.at == 4096
    assert 0.2 < found.ratio.low < 0.25 < found.ratio.high < 0.3
    assert found.error == pytest.approx(baseline.at(4096), rel=1e-6)


def test_draws_shared_by_both_models_cancel_in_the_ratio():
    laws = le.PowerLaw(1.0, 0.5, 0.05), le.PowerLaw(2.0, 0.5, 0.05)
    common = 3e-3 * np.random.default_rng(3).normal(size=(1, 60))  # an easy or a hard draw, at every size
    errors = [np.array([law.at(n) for n in SIZES]) for law in laws]
    paired = [bootstrap.Replicates(e, e[:, None] + common) for e in errors]
    unpaired = [paired[0], bootstrap.Replicates(errors[1], errors[1][:, None] - common)]
    width = [_ratio(*both).ratio for both in (paired, unpaired)]
    assert width[0].high - width[0].low < 0.01 < width[1].high - width[1].low


def test_a_model_that_never_gets_there_has_no_finite_ratio():
    rng = np.random.default_rng(4)
    worse, baseline = le.PowerLaw(2.0, 0.5, 0.2), le.PowerLaw(2.0, 0.5, 0.05)
    found = _ratio(*(bootstrap.Replicates(*_errors(law, 0, rng, 5)) for law in (worse, baseline)))
    assert found.ratio.point == np.inf and found.ratio.low == np.inf
    few = bootstrap.Replicates(np.array([0.3, 0.2]), np.zeros((2, 5)))
    with pytest.raises(BadInput, match="three"):
        le.label_ratio(SIZES[:2], few, SIZES[:2], few)
