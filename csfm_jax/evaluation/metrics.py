"""Figures of merit under case weights, vectorised over many weightings at once, as the bootstrap needs them."""

import numpy as np


def auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve: the chance that a positive case scores above a negative one, ties counting half.

    Args:
        scores: [n] float, higher means more likely positive.
        positive: [n] bool.
        weights: [R, n], how often each case counts in each of R weightings; None = once, in one weighting.

    Returns:
        [R] float64; NaN where a weighting holds no positive or no negative case.
    """
    weights = np.ones((1, len(scores))) if weights is None else np.asarray(weights, np.float64)
    order = np.argsort(scores, kind="stable")
    ranked = np.asarray(scores)[order]
    if not len(ranked):
        return np.full(len(weights), np.nan)
    ties = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # first case of each distinct score
    weights, positive = weights[:, order], np.asarray(positive, bool)[order]
    up = np.add.reduceat(weights * positive, ties, axis=1)
    down = np.add.reduceat(weights * ~positive, ties, axis=1)
    below = np.cumsum(down, axis=1) - down
    pairs = up.sum(1) * down.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (up * (below + down / 2)).sum(1) / pairs, np.nan)


def macro_auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean AUROC over labels, each read on its labelled cases; labels with one class only are left out of the mean.

    Args:
        scores: [n, K]. labels: [n, K] of 0, 1, or NaN = not labelled. weights: as in `auroc`.

    Returns:
        [R] float64; NaN where no label has both classes.
    """
    known = ~np.isnan(labels)
    each = []
    for k in range(labels.shape[1]):
        rows = known[:, k]
        each.append(auroc(scores[rows, k], labels[rows, k] > 0.5, None if weights is None else weights[:, rows]))
    return _mean_of_known(np.stack(each, axis=1))


def r2(predicted: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Coefficient of determination of each weighting: 1 - residual / variance about that weighting's own mean.

    Args:
        predicted, truth: [n], no NaN. weights: as in `auroc`.

    Returns:
        [R] float64; NaN where the truth does not vary.
    """
    weights = np.ones((1, len(truth))) if weights is None else np.asarray(weights, np.float64)
    total = weights.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = weights @ truth / total
        spread = weights @ np.square(truth) - total * mean**2
        return np.where(spread > 1e-12 * total, 1 - weights @ np.square(truth - predicted) / spread, np.nan)


def mean_absolute_error(predicted: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean absolute error of each weighting, in the truth's unit; arguments and result as in `r2`."""
    weights = np.ones((1, len(truth))) if weights is None else np.asarray(weights, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return weights @ np.abs(truth - predicted) / weights.sum(1)


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, values, 0).sum(1) / known.sum(1)
