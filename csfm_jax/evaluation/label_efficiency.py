"""How many labels a model saves: nested subsets of patients, error curves over their size, where two curves meet."""

from dataclasses import dataclass

import numpy as np
import scipy  # its parts load at their first use

from csfm_jax.evaluation.bootstrap import Interval, Replicates, interval
from data_pipelines.errors import BadInput

_EXPONENTS = np.geomspace(0.02, 5.0, 25)


@dataclass(frozen=True)
class Subset:
    """Train cases of one fraction of the patients: cases [n] int, ascending, and how many patients they are of."""

    fraction: float
    cases: np.ndarray
    patients: int


def nested_subsets(
    patients: np.ndarray, labels: np.ndarray | None = None, halvings: int = 7, seed: int = 0
) -> list[Subset]:
    """All patients, half of them, a quarter ...; each subset lies in the one before it.

    Every patient belongs to the stratum of the rarest class that any of its cases is positive for, and each subset
    holds each stratum's share to within one patient; so rare classes vanish as late as they can.

    Args:
        patients: [n], the patient of each train case. labels: [n, K] of 0, 1, NaN = not labelled; None, as for a
            continuous target, draws without strata. halvings: how often; 7 ends at 1/128. seed: of the draw.

    Returns:
        halvings + 1 subsets, the largest first; those that would be without a patient hold one.

    Raises:
        BadInput: no case, or labels that are not 0, 1 or NaN.
    """
    if not len(patients):
        raise BadInput("patients", "no train case", "at least one", "choose labels that train subjects have")
    people, member = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    stratum = np.zeros(len(people), np.int64) if labels is None else _strata(labels, member, len(people))
    key = np.zeros(len(people))
    for which in np.unique(stratum):
        there = np.flatnonzero(stratum == which)
        # spread evenly over 0 to 1: any beginning of the order then holds its share of every stratum
        key[rng.permutation(there)] = (np.arange(len(there)) + rng.random()) / len(there)
    rank = np.empty(len(people), np.int64)
    rank[np.lexsort((rng.random(len(people)), key))] = np.arange(len(people))
    subsets = []
    for k in range(halvings + 1):
        number = max(1, int(len(people) / 2**k + 0.5))
        subsets.append(Subset(0.5**k, np.flatnonzero(rank[member] < number), number))
    return subsets


def _strata(labels, member, people) -> np.ndarray:
    """[people] the rarest class a patient is positive for; the number of classes where there is none."""
    labels = np.asarray(labels, np.float64)
    if not (np.isnan(labels) | np.isin(labels, (0, 1))).all():
        raise BadInput("labels", "values other than 0, 1, NaN", "classes", "give None for a continuous target")
    positive = np.zeros((people, labels.shape[1]), bool)
    np.logical_or.at(positive, member, labels == 1)
    order = np.argsort(positive.sum(0), kind="stable")  # the rarest first
    return np.where(positive.any(1), order[np.argmax(positive[:, order], axis=1)], labels.shape[1])


@dataclass(frozen=True)
class PowerLaw:
    """error(n) = scale * n^-exponent + floor; all NaN where there was too little to fit."""

    scale: float
    exponent: float
    floor: float

    def at(self, size: float) -> float:
        return self.scale * size**-self.exponent + self.floor

    def reach(self, error: float) -> float:
        """The size at which the error falls to this value; infinite where it never does."""
        if np.isnan(self.floor) or np.isnan(error):
            return np.nan
        gap = error - self.floor
        return float((self.scale / gap) ** (1 / self.exponent)) if gap > 0 else np.inf


def fit_power_law(sizes: np.ndarray, errors: np.ndarray) -> PowerLaw:
    """Least squares of C n^-a + L0 with C and L0 not negative, so that errors fall, and towards an error.

    For a given exponent the rest is a linear problem; so only one number is searched, from many starts, and the fit
    does not depend on a guess.

    Args:
        sizes: [p], labelled patients. errors: [p], lower is better (1 - AUROC, z-MAE); NaN points are left out.

    Returns:
        `PowerLaw`; NaN where fewer than three sizes have an error, through which any curve would pass.

    Source: Hestness et al. 2017; the label efficiency of Al-Masud et al. 2026.
    """
    sizes, errors = np.asarray(sizes, np.float64), np.asarray(errors, np.float64)
    known = ~np.isnan(errors)
    if len(np.unique(sizes[known])) < 3:
        return PowerLaw(np.nan, np.nan, np.nan)
    largest, y = sizes[known].max(), errors[known]
    share = sizes[known] / largest  # well conditioned whatever the sizes

    def solved(exponent):
        return scipy.optimize.nnls(np.stack([share**-exponent, np.ones(len(y))], axis=1), y)

    best = int(np.argmin([solved(a)[1] for a in _EXPONENTS]))
    bounds = np.log(_EXPONENTS[[max(best - 1, 0), min(best + 1, len(_EXPONENTS) - 1)]])
    found = scipy.optimize.minimize_scalar(
        lambda u: solved(np.exp(u))[1], bounds=bounds, method="bounded", options={"xatol": 1e-10}
    )
    exponent = float(np.exp(found.x))
    (scale, floor), _ = solved(exponent)
    return PowerLaw(float(scale * largest**exponent), exponent, float(floor))


@dataclass(frozen=True)
class LabelRatio:
    """Labels that a model needs for what a baseline reaches with all of them.

    Attributes:
        ratio: N*/N with interval; below 1 the model needs fewer, infinite where it never gets there.
        at: N, the baseline's number of labelled patients. error: what the baseline's curve reaches there.
        model, baseline: the curves.
    """

    ratio: Interval
    at: float
    error: float
    model: PowerLaw
    baseline: PowerLaw


def label_ratio(
    sizes: np.ndarray, model: Replicates, baseline_sizes: np.ndarray, baseline: Replicates, confidence: float = 0.95
) -> LabelRatio:
    """The size N* at which the model's curve reaches what the baseline's has at its largest size N, as N*/N.

    Args:
        sizes, baseline_sizes: [p], labelled patients of each subset, who may be fewer for a model that reads fewer
            sensors.
        model, baseline: errors on the test cases after training on each subset, [p] and [p, R], lower is better, from
            one `bootstrap.replicate` of all of them, so that both are read on the same draws. confidence: mass of the
            interval; it holds what test patients vary, not what another draw of train patients would.

    Raises:
        BadInput: fewer than three sizes with an error on the test cases themselves.
    """
    at = float(np.max(baseline_sizes))
    both = (sizes, model), (baseline_sizes, baseline)
    curves = [fit_power_law(of, errors.point) for of, errors in both]
    if np.isnan([curve.floor for curve in curves]).any():
        raise BadInput("sizes", "fewer than three with an error", "three or more", "train on more subsets")
    error = curves[1].at(at)
    point = curves[0].reach(error) / at
    drawn = []
    for r in range(model.drawn.shape[1]):
        mine, theirs = (fit_power_law(of, errors.drawn[:, r]) for of, errors in both)
        drawn.append(mine.reach(theirs.at(at)) / at)
    return LabelRatio(interval(point, np.array(drawn), confidence), at, error, *curves)
