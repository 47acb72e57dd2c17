"""Figures under case weights against scikit-learn and lifelines, or against sums over all pairs."""

import hashlib
import warnings
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines.utils import concordance_index
from sklearn import metrics as sk

from csfm_jax import tasks
from csfm_jax.evaluation import bootstrap, decisions, metrics, ranking, survival, tables, task_figures
from data_pipelines.errors import BadInput


def _drawn(seed, n, levels):
    """Scores with ties, classes, and weights: multiplicities, then fractions, then nothing at all."""
    rng = np.random.default_rng(seed)
    scores, positive = rng.integers(0, levels, n) / 3.0, rng.random(n) < 0.4
    weights = np.stack([rng.integers(0, 4, n), rng.random(n), np.zeros(n)]).astype(float)
    return scores, positive, weights


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 8))
def test_ranking_figures_equal_scikit_learn_under_ties_and_weights(seed, n, levels):
    scores, positive, weights = _drawn(seed, n, levels)
    area, precision = metrics.auroc(scores, positive, weights), metrics.average_precision(scores, positive, weights)
    at = metrics.sensitivity_at_specificity(scores, positive, weights, specificity=0.8)
    for r, w in enumerate(weights):
        up, down = w[positive].sum(), w[~positive].sum()
        if up > 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                want = sk.average_precision_score(positive, scores, sample_weight=w)
            assert precision[r] == pytest.approx(want, abs=1e-9)
        else:
            assert np.isnan(precision[r])
        if up > 0 and down > 0:
            assert area[r] == pytest.approx(sk.roc_auc_score(positive, scores, sample_weight=w), abs=1e-9)
            false, true, _ = sk.roc_curve(positive, scores, sample_weight=w, drop_intermediate=False)
            assert at[r] == pytest.approx(true[false <= 0.2 + 1e-9].max(), abs=1e-9)
        else:
            assert np.isnan(area[r]) and np.isnan(at[r])


def test_counts_in_float32_give_what_float64_gives():
    scores, positive, _ = _drawn(1, 3000, 500)
    weights = np.random.default_rng(2).poisson(1.0, (5, 3000))
    for figure in (metrics.auroc, metrics.average_precision, metrics.sensitivity_at_specificity):
        one = figure(scores, positive, weights.astype(np.float32))
        assert np.abs(one - figure(scores, positive, weights.astype(np.float64))).max() < 1e-12


def test_nothing_to_judge_is_no_figure():
    none = np.zeros(0)
    for figure in (metrics.auroc, metrics.average_precision, metrics.sensitivity_at_specificity):
        assert np.isnan(figure(none, none, np.ones((2, 0)))).all()
    assert metrics.average_precision(np.arange(3.0), np.ones(3))[0] == 1.0  # no negative case to confuse it with


def _task(seed=0, n=120):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 4)) < 0.3).astype(float)
    scores = np.round(labels + rng.normal(0, 1, (n, 4)), 1)
    labels[:, 2] = 0  # one class only
    labels[:20, 0] = np.nan
    return scores, labels, rng.integers(0, 3, (6, n)).astype(np.float32)


def test_macro_leaves_out_labels_with_one_class_and_counts_them():
    scores, labels, weights = _task()
    weights[0, labels[:, 1] > 0.5] = 0  # a draw without a positive case of label 1
    found = metrics.macro(metrics.average_precision, scores, labels, weights)
    assert found.labels.tolist() == [2, 3, 3, 3, 3, 3]
    assert np.isnan(found.each[:, 2]).all() and np.isnan(found.each[0, 1])
    known = ~np.isnan(labels[:, 0])
    want = sk.average_precision_score(labels[known, 0], scores[known, 0], sample_weight=weights[3, known])
    assert found.each[3, 0] == pytest.approx(want, abs=1e-9)
    assert found.value[3] == pytest.approx(np.nanmean(found.each[3]), abs=1e-12)
    labels[:, 1] = 1  # nothing to confuse it with is no merit either
    assert metrics.macro(metrics.average_precision, scores, labels, weights).labels.tolist() == [2] * 6


def test_a_figure_without_an_order_of_its_own_and_one_with_options_are_read_alike():
    scores, labels, weights = _task()
    half = partial(metrics.sensitivity_at_specificity, specificity=0.5)
    plain = lambda s, p, w: metrics.sensitivity_at_specificity(s, p, w, 0.5)  # noqa: E731
    one, two = (metrics.macro(figure, scores, labels, weights) for figure in (half, plain))
    assert np.array_equal(one.each, two.each, equal_nan=True)
    assert not np.array_equal(
        one.value, metrics.macro(metrics.sensitivity_at_specificity, scores, labels, weights).value
    )


def test_figures_at_thresholds_equal_scikit_learn():
    scores, labels, weights = _task()
    thresholds = np.array([0.4, 0.5, 0.5, np.nan])
    found = decisions.rates(scores, labels, thresholds, weights)
    for r, w in enumerate(weights):
        for k in (0, 1):
            known = ~np.isnan(labels[:, k])
            given = (labels[known, k], scores[known, k] >= thresholds[k])
            assert found.f1[r, k] == pytest.approx(sk.f1_score(*given, sample_weight=w[known]), abs=1e-9)
            want = sk.recall_score(*given, sample_weight=w[known])
            assert found.sensitivity[r, k] == pytest.approx(want, abs=1e-9)
            want = sk.recall_score(*given, pos_label=0, sample_weight=w[known])
            assert found.specificity[r, k] == pytest.approx(want, abs=1e-9)
            want = sk.precision_score(*given, sample_weight=w[known])
            assert found.precision[r, k] == pytest.approx(want, abs=1e-9)
    macro = found.macro("f1")
    assert macro.labels.tolist() == [2] * 6  # one label has one class only, another no threshold
    assert macro.value[1] == pytest.approx(found.f1[1, :2].mean(), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(1, 8))
def test_chosen_thresholds_are_the_best_there_are(seed, n, levels):
    scores, positive, _ = _drawn(seed, n, levels)
    labels = positive.astype(float)[:, None]
    candidates = np.r_[-1, np.unique(scores) + 0.01, 99]

    def at(thresholds):
        return [decisions.rates(scores[:, None], labels, np.array([t])) for t in thresholds]

    for rule in decisions.RULES:
        (chosen,) = decisions.choose_thresholds(scores[:, None], labels, rule, specificity=0.7)
        if not 0 < positive.sum() < n:
            assert np.isnan(chosen)
            continue
        (got,), all_ = at([chosen]), at(candidates)
        if rule == "f1":
            assert got.f1[0, 0] == pytest.approx(max(a.f1[0, 0] for a in all_), abs=1e-12)
        elif rule == "youden":
            worth = [a.sensitivity[0, 0] + a.specificity[0, 0] for a in all_]
            assert got.sensitivity[0, 0] + got.specificity[0, 0] == pytest.approx(max(worth), abs=1e-12)
        else:
            reach = [a.sensitivity[0, 0] for a in all_ if a.specificity[0, 0] >= 0.7 - 1e-12]
            assert got.specificity[0, 0] >= 0.7 - 1e-12
            assert got.sensitivity[0, 0] == pytest.approx(max(reach), abs=1e-12)


def test_an_unknown_rule_is_refused():
    with pytest.raises(BadInput, match="youden"):
        decisions.choose_thresholds(np.zeros((2, 1)), np.zeros((2, 1)), "best")


def test_challenge_score_is_one_for_the_truth_and_nought_for_whoever_never_looks():
    rng = np.random.default_rng(0)
    truth = (rng.random((40, 3)) < 0.4).astype(float)
    truth[:, 0] = truth.sum(1) == 0
    rewards = np.array([[1, 0, 0.2], [0, 1, 0.5], [0.2, 0.5, 1]])
    lazy = np.tile([True, False, False], (40, 1))
    called, weights = rng.random((40, 3)) < 0.4, rng.integers(0, 3, (5, 40))
    assert decisions.challenge_score(truth > 0, truth, rewards, 0, weights) == pytest.approx(1.0, abs=1e-12)
    assert decisions.challenge_score(lazy, truth, rewards, 0, weights) == pytest.approx(0.0, abs=1e-12)
    got = decisions.challenge_score(called, truth, rewards, 0, weights)

    def worth(predicted, w):  # as in the paper: a confusion matrix, case by case
        matrix = np.zeros((3, 3))
        for i in range(40):
            share = w[i] / max(((truth[i] > 0) | predicted[i]).sum(), 1)
            for j in np.flatnonzero(truth[i]):
                for k in np.flatnonzero(predicted[i]):
                    matrix[j, k] += share
        return (matrix * rewards).sum()

    for r, w in enumerate(weights):
        low = worth(lazy, w)
        assert got[r] == pytest.approx((worth(called, w) - low) / (worth(truth > 0, w) - low), abs=1e-9)
    with pytest.raises(BadInput, match="labels"):
        decisions.challenge_score(called, np.where(truth > 0, np.nan, 0), rewards, 0)


def test_the_rewards_of_the_challenge_are_its_published_weights():
    rewards = tasks.get("cinc2021_scored").rewards
    names = [label.removeprefix("scored/") for label in rewards.labels]
    worth = np.array(rewards.worth)
    assert (worth == worth.T).all() and (np.diag(worth) == 1).all() and rewards.normal == "scored/NSR"
    # its weights.csv of May 2021, in the order of its columns
    order = (
        "AF AFL BBB Brady LBBB RBBB IAVB IRBBB LAD LAnFB LPR LQRSV LQT NSIVCB NSR PAC PR PRWP PVC QAb RAD SA SB STach "
        "TAb TInv"
    ).split()
    rows = [names.index(name) for name in order]
    told = "\n".join(",".join(f"{value:g}" for value in row) for row in worth[np.ix_(rows, rows)].round(6))
    digest = hashlib.sha256(told.encode()).hexdigest()
    assert digest == "be87d3b6033ad387f2fac41b53641f7976c3d6233f04880a38d705c211ea740b"


def test_the_challenge_score_is_of_labels_that_are_predicted_and_of_whole_cases():
    task = tasks.get("cinc2021_scored")
    outputs = ("scored/AF", "scored/NSR", "scored/RBBB")
    rng = np.random.default_rng(2)
    labels = (rng.random((60, 3)) < 0.4).astype(float)
    values = np.clip(labels * 0.3 + rng.random((60, 3)) * 0.6, 0.01, 0.99)
    labels[:4] = np.nan  # of another store
    labels[4, 0] = np.nan
    validation = values[30:], labels[30:]
    weights = rng.integers(0, 3, (5, 60)).astype(np.float32)
    found = task_figures.all_of(task, outputs, values, labels, validation, ()).under(weights)
    called = values >= decisions.choose_thresholds(*validation)
    worth = np.array([[1, 0.25, 0.4], [0.25, 1, 0.35], [0.4, 0.35, 1]])
    expected = decisions.challenge_score(called[5:], labels[5:], worth, 1, weights[:, 5:])
    np.testing.assert_allclose(found["challenge_score"], expected, atol=1e-12)
    some = [0, 2]  # whoever never looks calls sinus rhythm: without it there is no score
    without = task_figures.all_of(task, ("scored/AF", "scored/RBBB"), values[:, some], labels[:, some],
                                  (values[30:][:, some], labels[30:][:, some]), ())  # fmt: skip
    assert "challenge_score" not in without.under(None)


def test_agreement_of_classes_equals_scikit_learn():
    rng = np.random.default_rng(3)
    truth, called = rng.integers(0, 4, 90), rng.integers(0, 5, 90)
    called[:50] = truth[:50]
    truth[5:9] = -1  # not scored
    weights = rng.integers(0, 3, (4, 90)).astype(float)
    got = decisions.agreement(called, truth, 5, weights)
    known = truth >= 0
    for r, w in enumerate(weights):
        given, w = (truth[known], called[known]), w[known]
        assert got.accuracy[r] == pytest.approx(sk.accuracy_score(*given, sample_weight=w), abs=1e-9)
        assert got.kappa[r] == pytest.approx(sk.cohen_kappa_score(*given, sample_weight=w), abs=1e-9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # class 4 is called, and never true
            want = sk.balanced_accuracy_score(*given, sample_weight=w)
        assert got.balanced_accuracy[r] == pytest.approx(want, abs=1e-9)
        want = sk.f1_score(*given, average="macro", sample_weight=w, zero_division=0)
        assert got.macro_f1[r] == pytest.approx(want, abs=1e-9)
    assert got.classes.tolist() == [4] * 4


def test_z_error_is_in_standard_deviations_of_the_train_cases():
    rng = np.random.default_rng(4)
    truth, predicted = rng.normal(60, 12, (50, 3)), rng.normal(60, 12, (50, 3))
    truth[:9, 0] = np.nan
    weights = rng.integers(0, 3, (3, 50))
    found = metrics.z_error(predicted, truth, np.array([10.0, 20.0, 0.0]), weights)
    for r, w in enumerate(weights):
        want = [
            sk.mean_absolute_error(truth[9:, 0], predicted[9:, 0], sample_weight=w[9:]) / 10,
            sk.mean_absolute_error(truth[:, 1], predicted[:, 1], sample_weight=w) / 20,
        ]
        assert found.each[r, :2] == pytest.approx(want, abs=1e-9)
        assert found.value[r] == pytest.approx(np.mean(want), abs=1e-9)
    assert found.labels.tolist() == [2] * 3


def _pairs(risk, time, event, w):
    """Harrell's C, pair by pair."""
    won = pairs = 0.0
    for i in range(len(risk)):
        for j in range(len(risk)):
            first = time[i] < time[j] or (time[i] == time[j] and not event[j])
            if event[i] and first and i != j:
                pairs += w[i] * w[j]
                won += w[i] * w[j] * (1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0)
    return won / pairs if pairs else np.nan


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 25), st.integers(1, 6))
def test_concordance_equals_the_sum_over_all_pairs(seed, n, levels):
    rng = np.random.default_rng(seed)
    risk, time = rng.integers(0, levels, n) / 3.0, rng.integers(0, levels, n) * 1.5
    event = rng.random(n) < 0.5
    weights = np.stack([rng.integers(0, 3, n), rng.random(n)]).astype(float)
    got = survival.concordance(risk, time, event, weights)
    want = [_pairs(risk, time, event, w) for w in weights]
    assert got == pytest.approx(want, abs=1e-9, nan_ok=True)
    unknown = survival.concordance(np.r_[risk, 9], np.r_[time, np.nan], np.r_[event, True], np.c_[weights, [1, 1]])
    assert unknown == pytest.approx(want, abs=1e-9, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(2, 12))
def test_concordance_equals_lifelines_under_ties_and_bootstrap_weights(seed, n, levels):
    rng = np.random.default_rng(seed)
    risk, time = rng.integers(0, levels, n) / 7.0, rng.integers(0, levels, n) * 1.5
    event, weights = rng.random(n) < 0.5, np.stack([np.ones(n, int), rng.multinomial(n, np.full(n, 1 / n))])
    got = survival.concordance(risk, time, event, weights.astype(float))
    for found, w in zip(got, weights):
        drawn = np.repeat(np.arange(n), w)
        try:  # its scores are of who lives longer
            want = concordance_index(time[drawn], -risk[drawn], event[drawn])
        except ZeroDivisionError:  # no comparable pair
            want = np.nan
        assert found == pytest.approx(want, abs=1e-9, nan_ok=True)


def test_concordance_does_not_depend_on_its_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    risk, time, event = rng.normal(size=60), rng.integers(0, 20, 60), rng.random(60) < 0.5
    whole = survival.concordance(risk, time, event)
    monkeypatch.setattr(survival, "_CELLS", 180)
    assert survival.concordance(risk, time, event) == pytest.approx(whole, abs=1e-12)


def test_the_table_of_labels_holds_each_ones_figures():
    scores, labels, _ = _task()
    thresholds = decisions.choose_thresholds(*_task(seed=1)[:2])
    table = tables.label_table(["A", "B", "C", "D"], scores, labels, thresholds)
    first = table[0]
    assert (first["cases"], first["positives"]) == (100, int(np.nansum(labels[:, 0])))
    assert first["auroc"] == pytest.approx(sk.roc_auc_score(labels[20:, 0], scores[20:, 0]), abs=1e-9)
    assert table[2]["auroc"] is None and table[2]["threshold"] is None


def _models(seed, noises, n=150):
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.4
    made = {name: positive + rng.normal(0, noise, n) for name, noise in noises.items()}
    return {name: lambda w, s=s: metrics.auroc(s, positive, w) for name, s in made.items()}


def test_ranks_over_tasks_are_sure_where_models_differ_and_not_where_they_do_not():
    noises = {"poor": 3.0, "good": 0.3, "also poor": 3.0}
    tasks = [ranking.Task(f"task {i}", _models(i, noises), np.arange(150) // 2) for i in range(4)]
    table = ranking.rank_table(tasks, replicates=200)
    assert table.models == ("poor", "good", "also poor") and table.figure.shape == table.rank.shape == (3, 4)
    poor, good, also = table.mean_rank
    assert (good.point, good.low, good.high) == (1.0, 1.0, 1.0) and table.best.tolist() == [0.0, 1.0, 0.0]
    assert poor.point + also.point == 5.0 and poor.low < 2.5 < poor.high
    assert table.rank[1, 0] == 1.0
    errors = [ranking.Task(t.name, t.figures, t.patients, higher_is_better=False) for t in tasks]
    assert ranking.rank_table(errors, replicates=50).mean_rank[1].point == 3.0
    again = ranking.rank_table(tasks, replicates=200)
    assert again.mean_rank == table.mean_rank


def test_equal_models_share_a_rank_and_missing_ones_are_refused():
    (figure, *_) = _models(0, {"a": 1.0}).values()
    same = ranking.rank_table([ranking.Task("t", {"a": figure, "b": figure}, np.arange(150))], replicates=20)
    assert [i.point for i in same.mean_rank] == [1.5, 1.5] and same.best.tolist() == [1.0, 1.0]
    tasks = [ranking.Task("t", {"a": figure, "b": figure}, np.arange(150))]
    with pytest.raises(BadInput, match="task u.*b"):
        ranking.rank_table([*tasks, ranking.Task("u", {"a": figure}, np.arange(150))], replicates=20)
    with pytest.raises(BadInput, match="no figure for b"):
        never = lambda w: np.full(len(w), np.nan)  # noqa: E731
        ranking.rank_table([ranking.Task("t", {"a": figure, "b": never}, np.arange(150))], replicates=20)


def test_a_value_never_reached_leaves_its_interval_open():
    drawn = np.r_[np.arange(90.0), np.full(10, np.inf)]
    open_ended = bootstrap.interval(5.0, drawn)
    assert open_ended.high == np.inf and 1 <= open_ended.low <= 3
