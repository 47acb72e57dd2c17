"""Figures at thresholds, which are chosen on validation cases and nowhere else, and figures of one class a case."""

from dataclasses import dataclass

import numpy as np

from csfm_jax.evaluation.metrics import Macro, case_columns, mean_over_labels
from data_pipelines.errors import BadInput

RULES = ("f1", "youden", "specificity")


def choose_thresholds(
    scores: np.ndarray, labels: np.ndarray, rule: str = "f1", specificity: float = 0.95
) -> np.ndarray:
    """The threshold of each label, from validation cases; a case counts as positive at or above it.

    Args:
        scores: [n, K] of validation cases. labels: [n, K] of 0, 1, NaN = not labelled.
        rule: "f1" maximises F1, "youden" sensitivity + specificity, "specificity" the sensitivity among thresholds
            that reach `specificity`, in 0 to 1 (the only rule that reads it).

    Returns:
        [K] float64, half way between two scores, so that rounding does not decide; NaN where a label has one class
        only. Of equally good thresholds the highest.

    Raises:
        BadInput: another rule.
    """
    if rule not in RULES:
        raise BadInput("rule", repr(rule), " or ".join(RULES), "name one of these")
    return np.array([_threshold(scores[:, k], labels[:, k], rule, specificity) for k in range(scores.shape[1])])


def _threshold(scores, labels, rule, specificity) -> float:
    known = ~np.isnan(labels)
    scores, positive = np.asarray(scores, np.float64)[known], labels[known] > 0.5
    if not 0 < positive.sum() < len(positive):
        return np.nan
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])  # the last case of each distinct score
    hits, alarms = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
    positives, negatives = positive.sum(), (~positive).sum()
    # a threshold above everything first: nothing is called positive
    hits, alarms = np.r_[0, hits], np.r_[0, alarms]
    if rule == "f1":
        worth = 2 * hits / (hits + alarms + positives)
    elif rule == "youden":
        worth = hits / positives - alarms / negatives
    else:
        worth = np.where(1 - alarms / negatives >= specificity - 1e-12, hits, -1)
    best = int(np.argmax(worth))
    edges = np.r_[np.inf, ranked[last], -np.inf]
    high, low = edges[best], edges[best + 1]
    if not np.isfinite(high):
        return float(np.nextafter(low, np.inf))
    if not np.isfinite(low):
        return float(high)
    middle = low + (high - low) / 2
    return float(middle if low < middle else high)


@dataclass(frozen=True)
class Rates:
    """Figures at thresholds, [R, K] float64 each, NaN where undefined.

    Attributes:
        sensitivity, specificity, precision: of the cases with, without, and called positive.
        f1: NaN only where there is no positive case and none is called so.
        both: bool, whether the weighting holds both classes of the label.
    """

    sensitivity: np.ndarray
    specificity: np.ndarray
    precision: np.ndarray
    f1: np.ndarray
    both: np.ndarray

    def macro(self, name: str) -> Macro:
        """The mean of "f1", "sensitivity", ... over the labels that have both classes in a weighting, counted."""
        return mean_over_labels(np.where(self.both, getattr(self, name), np.nan))


def rates(scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray, weights: np.ndarray | None = None) -> Rates:
    """What thresholds that were chosen beforehand do on other cases.

    Args:
        scores: [n, K]. labels: [n, K] of 0, 1, NaN = not labelled. thresholds: [K] from `choose_thresholds`; a NaN
            one leaves its label without figures. weights: [R, n] as in `metrics.auroc`.
    """
    w = case_columns(weights, len(labels)).T
    truth, called = labels > 0.5, scores >= thresholds
    known = ~np.isnan(labels) & ~np.isnan(thresholds)
    # counts stay exact in float32; all four are one matrix product over the cases
    parts = [known & truth & called, known & truth & ~called, known & ~truth & called, known & ~truth & ~called]
    hit, miss, alarm, calm = ((w @ part.astype(w.dtype)).astype(np.float64) for part in parts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Rates(
            hit / (hit + miss),
            calm / (calm + alarm),
            hit / (hit + alarm),
            2 * hit / (2 * hit + miss + alarm),
            (hit + miss > 0) & (alarm + calm > 0),
        )


def challenge_score(
    called: np.ndarray, labels: np.ndarray, rewards: np.ndarray, normal: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """The PhysioNet/CinC 2020-2021 challenge's accuracy: rewards of calling class k what is class j, normalised.

    Args:
        called: [n, K] bool, classes called. labels: [n, K] of 0 and 1.
        rewards: [K, K], of calling the column where the row is true; the identity counts plain hits.
        normal: the class that a doctor who never looks would call. weights: as in `metrics.auroc`.

    Returns:
        [R] float64: 1 calls exactly what is true, 0 always calls `normal`; NaN where the two are worth the same.

    Raises:
        BadInput: labels that are not known everywhere; the score is defined on whole recordings.

    Source: Perez Alday et al. 2020, Physiol Meas 41:124003, section 2.3.
    """
    if np.isnan(labels).any():
        raise BadInput("labels", "cases that lack a label", "0 or 1 everywhere", "leave these cases out")
    w = case_columns(weights, len(labels)).T
    truth, called = np.asarray(labels) > 0.5, np.asarray(called, bool)
    lazy = np.zeros_like(called)
    lazy[:, normal] = True
    observed, perfect, inactive = (w @ _worth(some, truth, rewards) for some in (called, truth, lazy))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(perfect != inactive, (observed - inactive) / (perfect - inactive), np.nan)


def _worth(called, truth, rewards) -> np.ndarray:
    """[n] what each case earns: rewards of all pairs, over the number of classes true or called."""
    either = np.maximum((called | truth).sum(1), 1)
    return ((truth @ np.asarray(rewards, float)) * called).sum(1) / either


@dataclass(frozen=True)
class Agreement:
    """Figures of one class a case (sleep stages, rhythms), [R] float64 each; NaN where undefined.

    Attributes:
        accuracy: share of cases called right. balanced_accuracy: mean recall over the classes that occur.
        kappa: Cohen's, agreement beyond chance. macro_f1: mean F1 over the classes that occur or are called.
        classes: [R] int, how many classes occur in the weighting.
    """

    accuracy: np.ndarray
    balanced_accuracy: np.ndarray
    kappa: np.ndarray
    macro_f1: np.ndarray
    classes: np.ndarray


def agreement(called: np.ndarray, truth: np.ndarray, classes: int, weights: np.ndarray | None = None) -> Agreement:
    """Compares the class called with the true one.

    Args:
        called, truth: [n] int, 0 to classes - 1; truth below 0 = not labelled. weights: as in `metrics.auroc`.
    """
    w = case_columns(weights, len(truth)).T
    known = np.asarray(truth) >= 0
    cell = np.where(known, np.asarray(truth) * classes + called, 0)
    hot = np.zeros((len(cell), classes * classes), w.dtype)
    hot[np.arange(len(cell)), cell] = known
    confusion = (w @ hot).astype(np.float64).reshape(-1, classes, classes)  # [R, true, called]
    rows, columns, diagonal = confusion.sum(2), confusion.sum(1), np.einsum("rkk->rk", confusion)
    total = rows.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy, chance = diagonal.sum(1) / total, (rows * columns).sum(1) / total**2
        f1 = np.where(rows + columns > 0, 2 * diagonal / (rows + columns), np.nan)
        recall = np.where(rows > 0, diagonal / rows, np.nan)
        kappa = np.where(chance < 1, (accuracy - chance) / (1 - chance), np.nan)
    means = [mean_over_labels(each).value for each in (recall, f1)]
    return Agreement(accuracy, means[0], kappa, means[1], np.count_nonzero(rows, axis=1))
