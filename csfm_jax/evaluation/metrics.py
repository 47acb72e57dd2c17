"""Figures of merit under case weights, vectorised over many weightings at once, as the bootstrap needs them.

A weighting says how often each case counts: a bootstrap replicate is one. All figures take them as [R, n]. They are
fastest when the array that lies behind is [n, R] (`bootstrap` makes them so: case by case, contiguous in R), because a
case is then moved in all replicates at once; float32 is exact for counts, and everything beyond sums of weights is
float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy  # its parts load at their first use

# scores [n], positive [n] bool, weights [R, n] -> the figure in each weighting [R]
LabelFigure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve: the chance that a positive case scores above a negative one, ties counting half.

    Args:
        scores: [n] float, higher means more likely positive.
        positive: [n] bool.
        weights: [R, n], how often each case counts in each of R weightings; None = once, in one weighting.

    Returns:
        [R] float64; NaN where a weighting holds no positive or no negative case.
    """
    return _auroc(_Order(scores, positive).under(case_columns(weights, len(scores))))


def average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the precision-recall curve as the mean precision at each positive case (steps, no interpolation).

    Arguments as in `auroc`; chance is the prevalence, not one half.

    Returns:
        [R] float64; NaN where a weighting holds no positive case, 1 where it holds no negative one.
    """
    return _average_precision(_Order(scores, positive).under(case_columns(weights, len(scores))))


def sensitivity_at_specificity(
    scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None, specificity: float = 0.95
) -> np.ndarray:
    """The highest sensitivity of any threshold at which the specificity is at least the one asked for.

    A property of the ranking, as the AUROC is: every weighting has its own threshold. What a device would do with a
    threshold chosen beforehand is `decisions.rates`. Arguments and result as in `auroc`; specificity in 0 to 1.
    """
    return _sensitivity(_Order(scores, positive).under(case_columns(weights, len(scores))), specificity)


@dataclass(frozen=True)
class _Ranked:
    """What every figure of a ranking needs, at each of the G distinct scores of positive cases, ascending.

    Attributes:
        up: [G, R] weight of the positive cases with this score.
        tied, below: [G, R] weight of the negative cases with this score, and of those below it.
        positives, negatives: [R] total weights.
    """

    up: np.ndarray
    tied: np.ndarray
    below: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray


class _Order:
    """A label's cases, sorted once; each weighting is then a sparse product that adds every case to one sum.

    Cases between two positive scores need no order among themselves, so a rare label costs little more than reading
    the weights. Cases that are not `known` (not labelled) are added to nothing.
    """

    def __init__(self, scores, positive, known=None):
        scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
        case = np.arange(len(scores)) if known is None else np.flatnonzero(known)
        scores, up = scores[case], positive[case]
        levels, number = np.unique(scores[up], return_inverse=True)
        g = self.levels = len(levels)
        at = np.searchsorted(levels, scores)  # rows 0 ... g: the gap below a level; then ties with it; then positives
        row = np.where(np.r_[levels, np.nan][at] == scores, g + 1 + at, at)
        row[up] = 2 * g + 1 + number
        cells = (np.ones(len(row), np.float32), (row, case))
        self._adding = scipy.sparse.csr_array(cells, shape=(3 * g + 1, len(positive)))

    def under(self, columns: np.ndarray) -> _Ranked:
        """Reads the order under weights [n, R]."""
        g, sums = self.levels, (self._adding @ columns).astype(np.float64)
        gaps, ties, up = sums[: g + 1], sums[g + 1 : 2 * g + 1], sums[2 * g + 1 :]
        below = np.cumsum(gaps, axis=0)
        below[1:] += np.cumsum(ties, axis=0)
        return _Ranked(up, ties, below[:-1], up.sum(0), below[-1])


def _auroc(ranked: _Ranked) -> np.ndarray:
    wins = np.einsum("gr,gr->r", ranked.up, ranked.below + ranked.tied / 2)
    pairs = ranked.positives * ranked.negatives
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, wins / pairs, np.nan)


def _average_precision(ranked: _Ranked) -> np.ndarray:
    hits = np.cumsum(ranked.up[::-1], axis=0)[::-1]  # positive weight at or above each positive score
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = hits / (hits + ranked.negatives - ranked.below)
        total = np.where(ranked.up > 0, ranked.up * precision, 0).sum(0)
        return np.where(ranked.positives > 0, total / ranked.positives, np.nan)


def _sensitivity(ranked: _Ranked, specificity: float = 0.95) -> np.ndarray:
    hits = np.cumsum(ranked.up[::-1], axis=0)[::-1]
    # between two positive scores the sensitivity stays and the specificity only falls: these thresholds are enough
    allowed = ranked.below >= (specificity - 1e-12) * ranked.negatives
    most = np.where(allowed, hits, 0).max(0, initial=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(ranked.positives * ranked.negatives > 0, most / ranked.positives, np.nan)


_OF_RANKED = {auroc: _auroc, average_precision: _average_precision, sensitivity_at_specificity: _sensitivity}


def case_columns(weights: np.ndarray | None, cases: int) -> np.ndarray:
    """Weights [R, n] as a contiguous [n, R] of float32 (as given) or float64 (anything else); None = ones."""
    if weights is None:
        return np.ones((cases, 1))
    weights = np.asarray(weights)
    return np.ascontiguousarray(weights.T, np.float32 if weights.dtype == np.float32 else np.float64)


@dataclass(frozen=True)
class Macro:
    """The mean of a figure over labels.

    Attributes:
        value: [R] float64, NaN where no label has a figure.
        labels: [R] int, how many labels are in the mean; the others hold one class only in that weighting.
        each: [R, K] float64, NaN where left out.
    """

    value: np.ndarray
    labels: np.ndarray
    each: np.ndarray


class MacroFigure:
    """A figure of every label's labelled cases and its mean, ready to be read under many weightings.

    Labels with one class only are left out of the mean, and counted. The figures of a ranking are sorted here, once,
    however many chunks of weightings follow.

    Args:
        figure: `auroc`, `average_precision`, or any function of (scores, positive, weights); keywords by `partial`.
        scores: [n, K]. labels: [n, K] of 0, 1, or NaN = not labelled.
    """

    def __init__(self, figure: LabelFigure, scores: np.ndarray, labels: np.ndarray):
        self._known, self._positive = ~np.isnan(labels), labels > 0.5
        plain, options = (figure.func, figure.keywords) if isinstance(figure, partial) else (figure, {})
        self._read = []
        for k in range(labels.shape[1]):
            known, positive = self._known[:, k], self._positive[:, k]
            if form := _OF_RANKED.get(plain):
                order = _Order(scores[:, k], positive, known)
                self._read.append(lambda columns, order=order, form=form: form(order.under(columns), **options))
            else:
                cases = (scores[known, k], positive[known])
                self._read.append(lambda columns, known=known, cases=cases: figure(*cases, columns[known].T))

    def __call__(self, weights: np.ndarray | None = None) -> np.ndarray:
        """The mean alone, [R]: what `bootstrap.replicate` asks for."""
        return self.under(weights).value

    def under(self, weights: np.ndarray | None = None) -> Macro:
        """The figure under weights [R, n], as in `auroc`."""
        columns = case_columns(weights, len(self._known))
        cells = self._known.astype(columns.dtype), (self._known & self._positive).astype(columns.dtype)
        total, hits = (columns.T @ cell for cell in cells)  # [R, K]
        each = np.stack([read(columns) for read in self._read], axis=1)
        return mean_over_labels(np.where((hits > 0) & (hits < total), each, np.nan))


def macro(figure: LabelFigure, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> Macro:
    """A figure over labels, read once; arguments as in `MacroFigure`."""
    return MacroFigure(figure, scores, labels).under(weights)


def macro_auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean AUROC over labels, [R] float64; arguments and what is left out as in `MacroFigure`."""
    return macro(auroc, scores, labels, weights).value


def r2(predicted: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Coefficient of determination of each weighting: 1 - residual / variance about that weighting's own mean.

    Args:
        predicted, truth: [n], no NaN. weights: as in `auroc`.

    Returns:
        [R] float64; NaN where the truth does not vary.
    """
    weights = case_columns(weights, len(truth)).T
    total = weights.sum(1, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.mean(truth) if len(truth) else 0.0  # sums of squares of large values would cancel
        truth, predicted = np.asarray(truth, np.float64) - centre, np.asarray(predicted, np.float64) - centre
        mean = weights @ truth / total
        spread = weights @ np.square(truth) - total * mean**2
        return np.where(spread > 1e-12 * total, 1 - weights @ np.square(truth - predicted) / spread, np.nan)


def mean_absolute_error(predicted: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean absolute error of each weighting, in the truth's unit; arguments and result as in `r2`."""
    weights = case_columns(weights, len(truth)).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return weights @ np.abs(np.subtract(truth, predicted, dtype=np.float64)) / weights.sum(1, dtype=np.float64)


def z_error(predicted: np.ndarray, truth: np.ndarray, scale: np.ndarray, weights: np.ndarray | None = None) -> Macro:
    """Mean absolute error of z-scored targets (z-MAE), mean over targets.

    Args:
        predicted: [n, K] in the targets' own units. truth: [n, K], NaN = not measured.
        scale: [K], standard deviations of the targets among train cases (those of test cases would make the figure
            depend on who is tested). weights: as in `auroc`.

    Returns:
        `Macro`; a target without a measured case in a weighting, or with a scale that is not above zero, is left out.
        Always predicting the mean gives about 0.8 for a normal target.

    Source: Al-Masud et al. 2026, the regression targets of the MIMIC-IV-ECG tasks.
    """
    columns, each = case_columns(weights, len(truth)), []
    for k in range(truth.shape[1]):
        rows = ~np.isnan(truth[:, k])
        error = mean_absolute_error(predicted[rows, k], truth[rows, k], columns[rows].T)
        each.append(error / scale[k] if scale[k] > 0 else np.full(columns.shape[1], np.nan))
    return mean_over_labels(np.stack(each, axis=1))


def mean_over_labels(each: np.ndarray) -> Macro:
    """`Macro` of figures [R, K]; those that are NaN are left out, and counted."""
    known = ~np.isnan(each)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Macro(np.where(known, each, 0).sum(1) / known.sum(1), known.sum(1), each)
