"""Metrics against scikit-learn, the bootstrap against what is known of it, and probes on data with a known answer."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines import CoxPHFitter

from csfm_jax.evaluation import bootstrap, metrics, probes, protocol, survival
from csfm_jax.objectives import losses
from data_pipelines.errors import BadInput


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 6))
def test_auroc_equals_scikit_learn_with_ties_and_multiplicities(seed, n, levels):
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    scores, positive = rng.integers(0, levels, n) / 3.0, rng.random(n) < 0.4
    weights = rng.integers(0, 4, (3, n))
    for got, w in zip(metrics.auroc(scores, positive, weights), weights):
        repeated = np.repeat(positive, w)
        if 0 < repeated.sum() < len(repeated):
            assert got == pytest.approx(roc_auc_score(repeated, np.repeat(scores, w)), abs=1e-12)
        else:
            assert np.isnan(got)


def test_macro_auroc_leaves_out_unlabelled_cases_and_single_class_labels():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 3))
    labels = (rng.random((50, 3)) < 0.3).astype(float)
    labels[:, 2] = 0
    labels[:10, 0] = np.nan
    want = (roc_auc_score(labels[10:, 0], scores[10:, 0]) + roc_auc_score(labels[:, 1], scores[:, 1])) / 2
    assert metrics.macro_auroc(scores, labels)[0] == pytest.approx(want, abs=1e-12)
    assert np.isnan(metrics.macro_auroc(scores[:, 2:], labels[:, 2:])[0])


def test_r2_and_absolute_error_equal_scikit_learn():
    from sklearn.metrics import mean_absolute_error, r2_score

    rng = np.random.default_rng(1)
    truth, predicted = rng.normal(60, 12, 40), rng.normal(60, 12, 40)
    weights = rng.integers(0, 3, (4, 40))
    for r2, error, w in zip(
        metrics.r2(predicted, truth, weights), metrics.mean_absolute_error(predicted, truth, weights), weights
    ):
        assert r2 == pytest.approx(r2_score(truth, predicted, sample_weight=w), abs=1e-9)
        assert error == pytest.approx(mean_absolute_error(truth, predicted, sample_weight=w), abs=1e-9)
    assert np.isnan(metrics.r2(predicted, np.full(40, 3.0))[0])


def _auroc_of(scores, positive):
    return lambda weights: metrics.auroc(scores, positive, weights)


def test_bootstrap_is_paired_seeded_and_ordered():
    rng = np.random.default_rng(2)
    positive = rng.random(200) < 0.4
    good, poor = positive + rng.normal(0, 0.6, 200), positive + rng.normal(0, 3.0, 200)
    patients = np.arange(200)
    both = bootstrap.compare(_auroc_of(good, positive), _auroc_of(poor, positive), patients, seed=5)
    assert both == bootstrap.compare(_auroc_of(good, positive), _auroc_of(poor, positive), patients, seed=5)
    assert both != bootstrap.compare(_auroc_of(good, positive), _auroc_of(poor, positive), patients, seed=6)
    assert both.difference.low > 0 and both.first.low < both.first.point < both.first.high
    d = both.difference
    assert (d.empirical_low, d.empirical_high) == pytest.approx((2 * d.point - d.high, 2 * d.point - d.low))
    same = bootstrap.compare(_auroc_of(good, positive), _auroc_of(good, positive), patients)
    assert (same.difference.low, same.difference.high) == (0, 0)  # the same draws for both, so nothing is left


def test_bootstrap_interval_of_a_mean_is_that_of_the_normal_law():
    values = np.random.default_rng(3).normal(5, 2, 400)
    mean = lambda w: w @ values / w.sum(1)  # noqa: E731
    one = bootstrap.compare(mean, mean, np.arange(400), replicates=4000).first
    half = 1.96 * values.std() / 20
    assert (one.low, one.high) == pytest.approx((one.point - half, one.point + half), abs=0.03)


def test_bootstrap_draws_patients_not_recordings():
    rng = np.random.default_rng(4)
    person = rng.normal(0, 1, 50)
    values, patients = np.repeat(person, 20), np.repeat(np.arange(50), 20)
    mean = lambda w: w @ values / w.sum(1)  # noqa: E731
    width = lambda c: c.first.high - c.first.low  # noqa: E731
    naive = bootstrap.compare(mean, mean, np.arange(1000))
    assert width(bootstrap.compare(mean, mean, patients)) > 3.5 * width(naive)  # sqrt(20) = 4.5 in theory
    assert bootstrap.compare(mean, mean, np.repeat(np.array([b"p", b"q"], "S1"), 500)).first.replicates == 1000


def test_bootstrap_leaves_out_draws_without_both_classes():
    positive = np.array([True, False, False])
    one = bootstrap.compare(*[_auroc_of(np.arange(3.0), positive)] * 2, np.arange(3), replicates=500).first
    assert 300 < one.replicates < 400  # 1 - (2/3)^3 - (1/3)^3 = 0.667
    assert one.point == 0.0


def test_bootstrap_does_not_depend_on_how_draws_are_chunked(monkeypatch):
    values = np.random.default_rng(3).normal(5, 2, 40)
    mean = lambda w: w @ values / w.sum(1)  # noqa: E731
    whole = bootstrap.compare(mean, mean, np.arange(40))
    monkeypatch.setattr(bootstrap, "_CELLS", 400)
    assert bootstrap.compare(mean, mean, np.arange(40)).first.low == pytest.approx(whole.first.low, abs=1e-12)


def _cases(seed, n, truth, noise=1.0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 20)) * np.geomspace(1e-2, 1e2, 20) + 3
    signal = (features[:, :3] - 3) / np.geomspace(1e-2, 1e2, 20)[:3]
    return probes.Cases(features, truth(signal, rng.normal(size=signal.shape) * noise))


def test_logistic_probe_finds_what_is_linear_and_nothing_else():
    truth = lambda x, e: np.stack([x[:, 0] + e[:, 0] > 0.3, e[:, 1] > 0, np.zeros(len(x))], axis=1).astype(float)  # noqa: E731
    train, validation, test = (_cases(s, n, truth, 0.5) for s, n in ((0, 400), (1, 200), (2, 400)))
    train.labels[:7] = np.nan
    probe = probes.logistic(train, validation, test)
    assert metrics.auroc(probe.scores[:, 0], test.labels[:, 0] > 0.5)[0] > 0.85
    assert abs(metrics.auroc(probe.scores[:, 1], test.labels[:, 1] > 0.5)[0] - 0.5) < 0.1
    assert np.all(probe.scores[:, 2] == 0)
    assert min(probe.validation.values()) == probe.validation[probe.strength]


def test_probe_strength_is_chosen_without_the_test_cases():
    truth = lambda x, e: (x[:, :1] + e[:, :1] > 0).astype(float)  # noqa: E731
    train, validation, test = (_cases(s, n, truth, 2.0) for s, n in ((0, 60), (1, 60), (2, 60)))
    flipped = probes.Cases(test.features, 1 - test.labels)
    a, b = probes.logistic(train, validation, test), probes.logistic(train, validation, flipped)
    assert a.strength == b.strength < 1.0 and np.array_equal(a.scores, b.scores)


def test_ridge_probe_answers_in_the_labels_unit():
    truth = lambda x, e: (70 + 10 * x[:, :1] + e[:, :1]).astype(float)  # noqa: E731
    train, validation, test = (_cases(s, n, truth) for s, n in ((0, 300), (1, 100), (2, 200)))
    train.labels[3] = np.nan
    scores = probes.ridge(train, validation, test).scores[:, 0]
    assert metrics.r2(scores, test.labels[:, 0])[0] > 0.95
    assert metrics.mean_absolute_error(scores, test.labels[:, 0])[0] < 1.2


def survivors(seed, n, ties=False):
    """Cases of four features, of which three tell when; a third is censored."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    time = rng.exponential(np.exp(-x @ [1.0, 0.5, 0.0, -0.3]))
    return probes.Cases(x, np.c_[rng.random(n) < 0.67, np.round(time, 1) if ties else time])


@pytest.mark.parametrize("strength", [1e-3, 1e-1, 10.0])
def test_the_cox_probe_is_lifelines_at_every_strength(strength, monkeypatch):
    train, test = survivors(0, 300), survivors(1, 100)
    monkeypatch.setattr(probes, "STRENGTHS", (1e-4, strength))  # the path goes on from one to the next
    monkeypatch.setattr(probes, "_chosen", lambda tables, losses: tables[1, :, 0])
    found = probes.cox(train, survivors(2, 100), test)
    scaled = [(cases.features - train.features.mean(0)) / train.features.std(0) for cases in (train, test)]
    frame = pd.DataFrame(np.c_[scaled[0], train.labels], columns=[*"abcd", "event", "time"])
    deviation = scaled[0].std(0, ddof=1)[0]  # lifelines' penalty is of features of this deviation 1
    model = CoxPHFitter(penalizer=deviation**-2 / (strength * 300)).fit(
        frame, "time", "event", fit_options={"precision": 1e-12}
    )
    np.testing.assert_allclose(found, scaled[1] @ model.params_.to_numpy(), rtol=1e-5, atol=1e-6)


def test_partial_likelihood_is_that_of_training_and_its_gradient_that_of_differences():
    labels, risk = survivors(3, 60, ties=True).labels, np.random.default_rng(4).normal(0, 3, 60)
    loss, gradient = probes._RiskSets.of(labels).loss(risk)
    expected = losses.cox(jnp.asarray(risk)[:, None], jnp.asarray(labels))
    assert loss == pytest.approx(float(expected.value.sum()), rel=1e-5)
    step = 1e-5
    for i in range(60):
        low, high = (probes._RiskSets.of(labels).loss(risk + sign * step * (np.arange(60) == i))[0] for sign in (-1, 1))
        assert gradient[i] == pytest.approx((high - low) / (2 * step), abs=1e-5)


def test_the_cox_probe_leaves_out_what_is_not_known_and_survives_without_events():
    train, validation, test = (survivors(seed, 200) for seed in (5, 6, 7))
    holes = np.r_[train.labels, [[np.nan, 1.0], [1.0, np.nan]]]
    more = probes.Cases(np.r_[train.features, train.features[:2]], holes)
    whole, some = probes.cox(train, validation, test), probes.cox(more, validation, test)
    assert survival.concordance(whole.scores[:, 0], test.labels[:, 1], test.labels[:, 0]) > 0.7
    assert survival.concordance(some.scores[:, 0], whole.scores[:, 0], np.ones(200))[0] < 0.05  # in the same order
    nobody = probes.Cases(train.features, train.labels * [0, 1])
    assert not probes.cox(nobody, validation, test).scores.any()
    assert probes.cox(train, nobody, test).strength == probes.STRENGTHS[0]


def _recordings(n=360, seed=0):
    rng = np.random.default_rng(seed)
    person = np.arange(n) // 2  # two recordings a person
    split = np.array([0, 0, 0, 0, 1, 2, 2, 2], np.int8)[person % 8]
    hidden = rng.normal(size=(n, 3))
    labels = {
        "class/A": (hidden[:, 0] > 0.5).astype(np.float32),
        "class/B": (hidden[:, 1] > 0.0).astype(np.float32),
        "class/never": np.zeros(n, np.float32),
        "age": (50 + 10 * hidden[:, 2]).astype(np.float32),
    }
    labels["class/A"][:5] = np.nan
    good = np.concatenate([hidden + rng.normal(0, 0.5, hidden.shape), rng.normal(size=(n, 5))], axis=1)
    subjects = np.array([f"{p:016x}" for p in person], "S16")
    return protocol.Recordings(subjects, split, labels), good, rng.normal(size=(n, 8))


def test_comparison_tells_a_good_encoder_from_one_that_knows_nothing():
    recordings, good, poor = _recordings()
    classes, age = protocol.groups(recordings, "class/*, age")
    assert (classes.labels, classes.continuous, age.continuous) == (("class/A", "class/B", "class/never"), False, True)
    result = protocol.judge(recordings, good, poor, classes, replicates=200)
    assert result["labels"] == ["class/A", "class/B"] and "class/never" in result["left_out"]
    assert result["checkpoint"]["point"] > 0.8 > 0.65 > result["random"]["point"]
    assert result["difference"]["low"] > 0
    assert np.mean(result["by_label"]["checkpoint"]) == pytest.approx(result["checkpoint"]["point"])
    assert sum(result["subjects"].values()) == 180 and result["recordings"]["test"] == 2 * result["subjects"]["test"]
    years = protocol.judge(recordings, good, poor, age, replicates=200)
    assert years["metric"] == "r2" and years["difference"]["low"] > 0.3
    assert years["mean_absolute_error"]["checkpoint"]["point"] < years["mean_absolute_error"]["random"]["point"] - 2


def test_labels_without_validation_subjects_are_refused():
    recordings, good, poor = _recordings()
    (classes,) = protocol.groups(recordings, "class/*")
    nobody = protocol.Recordings(
        recordings.subject, np.where(recordings.split == 1, 0, recordings.split), recordings.labels
    )
    with pytest.raises(BadInput, match="no validation subject"):
        protocol.judge(nobody, good, poor, classes, replicates=10)


def test_people_whom_the_encoder_was_trained_on_are_refused_and_not_named():
    recordings, *_ = _recordings()
    train = set(recordings.subject[recordings.split == 0].tolist())
    protocol.check_unseen(recordings, train, "run")
    leaked = recordings.subject[recordings.split == 2][0]
    with pytest.raises(BadInput, match="1 of the 66 test subjects") as error:
        protocol.check_unseen(recordings, train | {leaked}, "run")
    assert leaked.decode() not in str(error.value)


def test_labels_that_cannot_be_judged_are_refused():
    recordings, good, poor = _recordings()
    with pytest.raises(BadInput, match=r"class/\*"):
        protocol.groups(recordings, "rhythm/*")
    (never,) = protocol.groups(recordings, "class/never")
    with pytest.raises(BadInput, match="two values"):
        protocol.judge(recordings, good, poor, never)
