"""Whether a probability means what it says: Brier score, calibration error, reliability curve, temperature scaling."""

from dataclasses import dataclass

import numpy as np
import scipy  # its parts load at their first use

from csfm_jax.evaluation.metrics import case_columns
from data_pipelines.errors import BadInput

_LOGARITHMS = (-5.0, 5.0)  # temperatures from 0.007 to 150: beyond, a model is certain, or says nothing


def brier(probability: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean squared error of a probability.

    Args:
        probability: [n], 0 to 1. positive: [n] bool. weights: [R, n] as in `metrics.auroc`.

    Returns:
        [R] float64, 0 the best; NaN where a weighting holds no case.
    """
    w = case_columns(weights, len(probability)).T
    error = np.square(np.asarray(probability, np.float64) - np.asarray(positive, bool))
    with np.errstate(invalid="ignore", divide="ignore"):
        return w @ error / w.sum(1, dtype=np.float64)


def bin_edges(probability: np.ndarray, bins: int = 15, equal_mass: bool = False) -> np.ndarray:
    """Edges [bins + 1] of equally wide bins, or of bins that hold equally many cases (as far as ties allow).

    Raises:
        BadInput: fewer than one bin, or a value that is no probability.
    """
    if bins < 1:
        raise BadInput("bins", str(bins), "1 or more", "15 is usual")
    if len(probability) and not (np.min(probability) >= 0 and np.max(probability) <= 1):
        raise BadInput("probability", "values outside 0 to 1, or NaN", "probabilities", "apply the sigmoid or softmax")
    steps = np.linspace(0, 1, bins + 1)
    return np.percentile(probability, steps * 100) if equal_mass and len(probability) else steps


def calibration_error(
    probability: np.ndarray,
    positive: np.ndarray,
    weights: np.ndarray | None = None,
    bins: int = 15,
    equal_mass: bool = False,
) -> np.ndarray:
    """Expected calibration error: |mean probability - share of positives| in bins, weighed by their cases.

    Equally wide bins are the usual figure; with rare classes nearly all cases lie in the first, and bins of equal mass
    tell more. Bins are those of the cases themselves in every weighting. The figure is biased upwards in small samples:
    compare it between models of the same cases, not with zero.

    Args:
        probability, positive, weights: as in `brier`. bins, equal_mass: as in `bin_edges`.

    Returns:
        [R] float64, 0 to 1; NaN where a weighting holds no case.

    Source: Naeini et al. 2015; equal mass: Nixon et al. 2019.
    """
    w = case_columns(weights, len(probability)).T
    member = _bins(probability, bin_edges(probability, bins, equal_mass))
    gap = np.zeros((len(member), bins))
    gap[np.arange(len(member)), member] = np.asarray(probability, np.float64) - np.asarray(positive, bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.abs(w @ gap).sum(1) / w.sum(1, dtype=np.float64)


@dataclass(frozen=True)
class Reliability:
    """A reliability curve, [bins] each.

    Attributes:
        low, high: the bin's edges. cases: how many lie in it.
        probability, positives: mean probability said, share that was positive; NaN in an empty bin.
    """

    low: np.ndarray
    high: np.ndarray
    cases: np.ndarray
    probability: np.ndarray
    positives: np.ndarray


def reliability(probability: np.ndarray, positive: np.ndarray, bins: int = 15, equal_mass: bool = False) -> Reliability:
    """What was said against what was so, bin by bin; arguments as in `calibration_error`."""
    edges = bin_edges(probability, bins, equal_mass)
    member = _bins(probability, edges)
    cases = np.bincount(member, minlength=bins)
    sums = [np.bincount(member, weights=np.asarray(v, np.float64), minlength=bins) for v in (probability, positive)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return Reliability(edges[:-1], edges[1:], cases, sums[0] / cases, sums[1] / cases)


def _bins(probability, edges) -> np.ndarray:
    return np.searchsorted(edges[1:-1], probability)  # a bin holds its upper edge, as in scikit-learn


@dataclass(frozen=True)
class Temperature:
    """Logits are divided by it before they become probabilities; a ranking stays as it was.

    Attributes:
        value: [K] of K labels, each with its own, or [1] for classes that exclude each other.
        exclusive: whether a softmax over classes (else a sigmoid a label) follows.
    """

    value: np.ndarray
    exclusive: bool

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """[n, K] logits -> [n, K] float64 probabilities."""
        scaled = np.asarray(logits, np.float64) / self.value
        return scipy.special.softmax(scaled, axis=1) if self.exclusive else scipy.special.expit(scaled)


def fit_temperatures(logits: np.ndarray, labels: np.ndarray) -> Temperature:
    """One temperature a label by cross-entropy; to be given validation cases, never those that are then judged.

    Args:
        logits: [n, K], log-odds. labels: [n, K] of 0, 1, NaN = not labelled.

    Returns:
        `Temperature`; 1 where a label has one class only (any certainty would then look right).
    """
    values = np.ones(logits.shape[1])
    for k in range(logits.shape[1]):
        known = ~np.isnan(labels[:, k])
        truth, x = labels[known, k] > 0.5, np.asarray(logits[known, k], np.float64)
        if 0 < truth.sum() < len(truth):
            toward = np.where(truth, x, -x)
            values[k] = _fitted(lambda t, toward=toward: -scipy.special.log_expit(toward / t).mean())
    return Temperature(values, exclusive=False)


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> Temperature:
    """One temperature for classes that exclude each other, by cross-entropy on validation cases.

    Args:
        logits: [n, K]. truth: [n] int classes; below 0 = not labelled.

    Raises:
        BadInput: no labelled case.

    Source: Guo et al. 2017, section 4.2.
    """
    known = np.asarray(truth) >= 0
    if not known.any():
        raise BadInput("truth", "no labelled case", "validation cases", "fit on a split that holds labels")
    x, right = np.asarray(logits, np.float64)[known], np.asarray(truth)[known]
    rows = np.arange(len(right))
    return Temperature(
        np.array([_fitted(lambda t: -scipy.special.log_softmax(x / t, axis=1)[rows, right].mean())]), exclusive=True
    )


def _fitted(loss) -> float:
    # convex in 1 / t, so one valley in log t; where classes separate perfectly the lower bound is the answer
    found = scipy.optimize.minimize_scalar(
        lambda u: loss(np.exp(u)), bounds=_LOGARITHMS, method="bounded", options={"xatol": 1e-9}
    )
    return float(np.exp(found.x))
