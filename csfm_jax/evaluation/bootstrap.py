"""Paired bootstrap over patients: how sure a figure, and a difference of two figures, is.

Patients are drawn, not recordings: two recordings of one person are not two observations. Both models are read on the
same draws, so what they share (an easy or a hard sample) cancels in the difference.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

# weights [R, n] (how often each case counts in each replicate) -> the figure in each replicate [R]
Figure = Callable[[np.ndarray], np.ndarray]

_CELLS = 4_000_000  # weights held at once; bounds memory at about 100 MB whatever the number of cases


@dataclass(frozen=True)
class Interval:
    """A figure on the cases themselves and its two-sided bootstrap intervals.

    Attributes:
        point: the figure.
        low, high: percentile interval.
        empirical_low, empirical_high: reverse percentile interval, point minus the quantiles of (replicate - point);
            it is biased for a macro AUROC with rare classes, where it may exclude the point itself, hence both.
        replicates: how many replicates had a figure at all (both classes drawn).
    """

    point: float
    low: float
    high: float
    empirical_low: float
    empirical_high: float
    replicates: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same patients: each one's interval, and that of first minus second."""

    first: Interval
    second: Interval
    difference: Interval

    def to_dict(self) -> dict[str, dict[str, float]]:
        return {name: getattr(self, name).to_dict() for name in ("first", "second", "difference")}


def compare(
    first: Figure, second: Figure, patients: np.ndarray, replicates: int = 1000, seed: int = 0, confidence: float = 0.95
) -> Comparison:
    """Draws patients with replacement and reads both figures on every draw.

    Args:
        first, second: functions from case weights [R, n] to figures [R] (`metrics` with scores and labels bound).
        patients: [n], the patient of each case, of any comparable type.
        replicates: number of draws. seed: of the draws. confidence: mass of the intervals.
    """
    _, member = np.unique(patients, return_inverse=True)
    number = int(member.max()) + 1
    rng = np.random.default_rng(seed)
    drawn: tuple[list, list] = ([], [])
    chunk = max(1, _CELLS // max(len(member), 1))
    for done in range(0, replicates, chunk):
        counts = rng.multinomial(number, np.full(number, 1 / number), size=min(chunk, replicates - done))
        weights = counts[:, member].astype(np.float64)
        for values, figure in zip(drawn, (first, second), strict=True):
            values.append(figure(weights))
    one = np.ones((1, len(member)))
    points = [float(figure(one)[0]) for figure in (first, second)]
    values = [np.concatenate(v) for v in drawn]
    return Comparison(
        interval(points[0], values[0], confidence),
        interval(points[1], values[1], confidence),
        interval(points[0] - points[1], values[0] - values[1], confidence),
    )


def interval(point: float, replicates: np.ndarray, confidence: float = 0.95) -> Interval:
    """Percentile and reverse percentile interval of a figure from its bootstrap replicates [R] (NaN = undefined)."""
    known = replicates[~np.isnan(replicates)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, (tail, 1 - tail)) if len(known) else (np.nan, np.nan)
    return Interval(point, float(low), float(high), float(2 * point - high), float(2 * point - low), len(known))
