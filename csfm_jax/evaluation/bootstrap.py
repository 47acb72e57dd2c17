"""Paired bootstrap over patients: how sure a figure, a difference of two figures, and a ranking of models is.

Patients are drawn, not recordings: two recordings of one person are not two observations. All models are read on the
same draws, so what they share (an easy or a hard sample) cancels in their difference.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

# weights [R, n] (how often each case counts in each replicate) -> the figure in each replicate [R]
Figure = Callable[[np.ndarray], np.ndarray]

_CELLS = 1_000_000  # weights held at once: 4 MB, and what figures derive from them, whatever the number of cases
_FEWEST = 8  # replicates at once: figures pay for their order of cases only once a chunk


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


def draws(patients: np.ndarray, replicates: int = 1000, seed: int = 0) -> Iterator[np.ndarray]:
    """Case weights of patients drawn with replacement, in chunks of bounded memory.

    Args:
        patients: [n], the patient of each case, of any comparable type.
        replicates: number of draws. seed: of the draws; they do not depend on how they are chunked.

    Yields:
        [r, n] float32 counts (exact), the chunks' r adding up to `replicates`; a view of a contiguous [n, r].
    """
    _, member = np.unique(patients, return_inverse=True)
    number = int(member.max()) + 1
    rng = np.random.default_rng(seed)
    chunk = max(_FEWEST, _CELLS // max(len(member), 1))
    for done in range(0, replicates, chunk):
        counts = rng.multinomial(number, np.full(number, 1 / number), size=min(chunk, replicates - done))
        yield np.ascontiguousarray(counts.T, np.float32)[member].T


@dataclass(frozen=True)
class Replicates:
    """Figures on the cases themselves, point [F], and on every draw, drawn [F, R] (NaN = undefined there)."""

    point: np.ndarray
    drawn: np.ndarray


def replicate(figures: Sequence[Figure], patients: np.ndarray, replicates: int = 1000, seed: int = 0) -> Replicates:
    """Reads several figures (models, metrics) on the same draws of patients.

    Args:
        figures: functions from case weights [R, n] to figures [R] (`metrics` with scores and labels bound).
        patients, replicates, seed: as in `draws`.
    """
    one = np.ones((1, len(patients)), np.float32)
    point = np.array([float(figure(one)[0]) for figure in figures])
    drawn = [[figure(weights) for figure in figures] for weights in draws(patients, replicates, seed)]
    return Replicates(point, np.concatenate([np.stack(chunk) for chunk in drawn], axis=1))


def compare(
    first: Figure, second: Figure, patients: np.ndarray, replicates: int = 1000, seed: int = 0, confidence: float = 0.95
) -> Comparison:
    """Draws patients with replacement and reads both figures on every draw.

    Args:
        first, second, patients, replicates, seed: as in `replicate`. confidence: mass of the intervals.
    """
    both = replicate((first, second), patients, replicates, seed)
    return Comparison(
        interval(both.point[0], both.drawn[0], confidence),
        interval(both.point[1], both.drawn[1], confidence),
        interval(both.point[0] - both.point[1], both.drawn[0] - both.drawn[1], confidence),
    )


def interval(point: float, replicates: np.ndarray, confidence: float = 0.95) -> Interval:
    """Percentile and reverse percentile interval of a figure from its bootstrap replicates [R] (NaN = undefined)."""
    known = replicates[~np.isnan(replicates)]
    tail = (1 - confidence) / 2
    # an infinite replicate (a value never reached) cannot be interpolated; then the nearest one is the quantile
    method = "linear" if np.isfinite(known).all() else "closest_observation"
    low, high = np.quantile(known, (tail, 1 - tail), method=method) if len(known) else (np.nan, np.nan)
    point, low, high = float(point), float(low), float(high)
    return Interval(point, low, high, 2 * point - high, 2 * point - low, len(known))
