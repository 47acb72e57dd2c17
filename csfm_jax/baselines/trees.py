"""Gradient-boosted trees on tabular features, tuned on validation subjects as probes are (scikit-learn's histograms).

They read NaN as it is, which is why `classical` may leave holes. The number of trees and their size are the only things
tuned, by cross-entropy or squared error on the validation cases.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
from threadpoolctl import threadpool_limits

from csfm_jax.evaluation.probes import Cases
from data_pipelines.errors import BadInput

TREES, LEAVES, RATE = 200, (4, 31), 0.1
_THREADED_CASES = 10_000
_UNCHECKED_TREES = 100  # where no validation case is labelled


@dataclass(frozen=True)
class Forest:
    """What trees said on the test cases.

    Attributes:
        scores: [test cases, K]: log-odds of each label, log-probabilities of each class, or values in the label's unit.
        trees, leaves: [K] (one for exclusive classes), as chosen; 0 where a label does not vary among train cases.
        validation: [K], the loss with that choice; NaN where no validation case is labelled.
    """

    scores: np.ndarray
    trees: np.ndarray
    leaves: np.ndarray
    validation: np.ndarray


def labels(train: Cases, validation: Cases, test: Cases, seed: int = 0) -> Forest:
    """One boosted classifier a label, for labels that do not exclude each other.

    A label with one class only among the train cases scores a constant 0 (its AUROC is then one half).

    Args:
        train, validation, test: features [n, D] (NaN = absent), labels [n, K] of 0, 1, NaN. seed: of scikit-learn.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    def loss(said, truth):
        return float(np.mean(np.logaddexp(0, said) - truth * said))

    columns = []
    for k in range(train.labels.shape[1]):
        known = ~np.isnan(train.labels[:, k])
        truth, checked = train.labels[known, k] > 0.5, ~np.isnan(validation.labels[:, k])
        if not 0 < truth.sum() < len(truth):
            columns.append(_constant(np.zeros(len(test.features))))
            continue
        some = (train.features[known], truth), (validation.features[checked], validation.labels[checked, k] > 0.5)
        columns.append(
            _tuned(HistGradientBoostingClassifier, seed, *some, test.features, "staged_decision_function", loss)
        )
    return _joined(columns)


def classes(train: Cases, validation: Cases, test: Cases, number: int, seed: int = 0) -> Forest:
    """One boosted classifier of classes that exclude each other.

    Args:
        train, validation, test: features [n, D], labels [n, 1] of 0 ... number - 1, NaN = not labelled. number: of
            classes; one that no train case has is never called (its log-probability is -inf). seed: of scikit-learn.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    known, checked = (~np.isnan(part.labels[:, 0]) for part in (train, validation))
    truth = train.labels[known, 0].astype(int)
    there = np.unique(truth)
    said = np.full((len(test.features), number), -np.inf)
    if len(there) < 2:
        said[:, there] = 0.0
        none = _constant(said)
        return Forest(said, none.trees, none.leaves, none.validation)

    def loss(probability, right):
        column = np.minimum(np.searchsorted(there, right), len(there) - 1)
        chosen = np.where(there[column] == right, probability[np.arange(len(right)), column], 0)
        return float(-np.mean(np.log(np.maximum(chosen, 1e-15))))

    some = (train.features[known], truth), (validation.features[checked], validation.labels[checked, 0].astype(int))
    found = _tuned(HistGradientBoostingClassifier, seed, *some, test.features, "staged_predict_proba", loss)
    said[:, there] = np.log(np.maximum(found.scores, 1e-15))
    return Forest(said, found.trees, found.leaves, found.validation)


def values(train: Cases, validation: Cases, test: Cases, seed: int = 0) -> Forest:
    """One boosted regression a continuous label, in the label's own unit.

    A label that does not vary among the train cases is predicted as its mean there (0 where there is none).

    Args:
        train, validation, test: features [n, D], labels [n, K], NaN = not labelled. seed: of scikit-learn.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    def loss(said, truth):
        return float(np.mean(np.square(said - truth)))

    columns = []
    for k in range(train.labels.shape[1]):
        known = ~np.isnan(train.labels[:, k])
        truth, checked = train.labels[known, k], ~np.isnan(validation.labels[:, k])
        if len(np.unique(truth)) < 2:
            columns.append(_constant(np.full(len(test.features), truth.mean() if len(truth) else 0.0)))
            continue
        some = (train.features[known], truth), (validation.features[checked], validation.labels[checked, k])
        columns.append(_tuned(HistGradientBoostingRegressor, seed, *some, test.features, "staged_predict", loss))
    return _joined(columns)


def _settings(cases: int, seed: int) -> dict:
    # a leaf of twenty cases, scikit-learn's own, cannot split a train set of thirty
    smallest = min(20, max(2, cases // 20))
    return {
        "max_iter": TREES, "learning_rate": RATE, "l2_regularization": 1.0, "min_samples_leaf": smallest,
        "early_stopping": False, "random_state": seed,
    }  # fmt: skip


def _tuned(model: type, seed: int, train, validation, test_x, staged: str, loss: Callable) -> Forest:
    """Fits every size, reads the validation loss after each tree, and answers with the best of all of them.

    Raises:
        BadInput: no train case has a feature.
    """
    # scikit-learn finds no bins for a feature that no train case has (of a sensor that none of them wore)
    there = ~np.isnan(train[0]).all(axis=0)
    if not there.any():
        expected = "a beat, pulse or breath in one of them"
        raise BadInput("features of the train recordings", "none measured", expected, "leave the trees out")
    train, validation, test_x = (
        (train[0][:, there], train[1]),
        (validation[0][:, there], validation[1]),
        test_x[:, there],
    )
    # threads that wait for one another cost more than they bring on few cases, and on a shared machine ruinously
    with threadpool_limits(None if len(train[1]) >= _THREADED_CASES else 1, user_api="openmp"):
        best = None
        for leaves in LEAVES:
            fitted = model(max_leaf_nodes=leaves, **_settings(len(train[1]), seed)).fit(*train)
            trees, lowest = _UNCHECKED_TREES, np.nan
            if len(validation[1]):
                losses = [loss(_flat(said), validation[1]) for said in getattr(fitted, staged)(validation[0])]
                trees, lowest = int(np.argmin(losses)) + 1, min(losses)
            # NaN is not below anything: without validation cases the smallest trees stay
            if best is None or lowest < best[0]:
                best = (lowest, fitted, trees, leaves)
        lowest, fitted, trees, leaves = best
        said = next(islice(getattr(fitted, staged)(test_x), trees - 1, None))
    return Forest(_flat(said), np.array([trees]), np.array([leaves]), np.array([lowest]))


def _flat(said: np.ndarray) -> np.ndarray:
    """One column as a vector: whether scikit-learn gives [n] or [n, 1] depends on the model."""
    return said[:, 0] if said.ndim == 2 and said.shape[1] == 1 else said


def _constant(scores: np.ndarray) -> Forest:
    return Forest(scores, np.zeros(1, int), np.zeros(1, int), np.full(1, np.nan))


def _joined(columns: list[Forest]) -> Forest:
    scores = np.stack([one.scores for one in columns], axis=1)
    return Forest(
        scores, *(np.concatenate([getattr(c, n) for c in columns]) for n in ("trees", "leaves", "validation"))
    )
