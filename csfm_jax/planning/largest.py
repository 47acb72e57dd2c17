"""The largest batch that fits: few compilations, and an answer that says how near it is."""

import math
from collections.abc import Callable
from typing import NamedTuple

FINENESS = 32  # the answer is exact to a 32nd of itself
_AIMS = 2  # in a row, before the middle is asked for: a line that is off must not creep


class Fit(NamedTuple):
    """Whether a size fits, and its share of the memory there is: NaN where a compiler that refuses does not say."""

    fits: bool
    share: float


class Largest(NamedTuple):
    """The largest size found to fit, 0 where none does, and the smallest found not to: neighbours, or almost."""

    fits: int
    too_large: int


def search(fit: Callable[[int], Fit], first: int) -> Largest:
    """Asks for sizes until one that fits and one that does not are neighbours, or a `FINENESS`th apart.

    Memory grows with the size, nearly along a line: where it meets what there is, sizes are asked for first.

    Args:
        fit: of a size of 1 or more; what is larger than a size that does not fit does not fit either.
        first: the size to begin with.
    """
    low, high, known, aims, size = 0, math.inf, [], 0, first
    while True:
        answer = fit(size)
        low, high = (size, high) if answer.fits else (low, size)
        if not math.isnan(answer.share):
            known.append((size, answer.share))
        step = max(1, low // FINENESS)
        if high - low <= step:
            return Largest(low, high)
        aim = _meets(known)
        if high == math.inf:  # at most eightfold: a line through neighbours may point anywhere
            size = 2 * low if aim is None else min(max(aim, low + step), 8 * low)
        elif aim is None or aims == _AIMS:
            size, aims = (low + high) // 2, 0
        else:
            size, aims = min(max(aim, low + step), high - step), aims + 1


def _meets(known: list[tuple[int, float]]) -> int | None:
    """The size at which the line through the last two, or through a single one and nothing, takes all memory."""
    if not known:
        return None
    size, share = known[-1]
    other, others = known[-2] if len(known) > 1 else (0, 0.0)
    slope = (share - others) / (size - other)
    return int(size + (1 - share) / slope) if slope > 0 else None
