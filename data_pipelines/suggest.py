"""Which row to use for given windows: the shortest that packs well, and no more room for V and S than it needs."""

from dataclasses import dataclass

import numpy as np

from data_pipelines import packing

GOOD_FILL = 0.97
_STEP = 128  # tokens; a multiple of the tiles that accelerators compute on
_UNIT = 16  # V is a multiple of it: the rows of a bfloat16 tile
_MOST, _TRIES = 8, 64  # T is at most so many times the longest window; so many lengths are tried
_ALWAYS = 1024  # tokens that T may have however short the windows are: crops of 26 tokens fill 640 to 97 %, not 256
_GIVE = 0.003  # share of the fill that a tighter V or S may cost


@dataclass(frozen=True)
class Suggestion:
    """A row's shape, and the share of T and V that the windows fill of it."""

    row_tokens: int
    row_visible: int
    row_windows: int
    fill_tokens: float
    fill_visible: float


def suggest(sizes: np.ndarray) -> Suggestion:
    """Chooses T, then S, then V.

    T is the smallest multiple of 128, up to 1024 or eight times the longest window, that is filled to 97 %, or else the
    one that is filled best. S and V are the smallest that cost next to nothing of that.

    Args:
        sizes: int [N, 3], (tokens, visible tokens, windows) of each window.
    """
    T = _row_tokens(sizes)
    classes, counts, _ = packing.histogram(sizes)

    def pack(V, S):
        return packing.best_fit(classes, counts, (T, V, S))

    free = pack(T, T)
    reached = free.fill((T, T, T))[0]
    least = max(reached - _GIVE, min(reached, GOOD_FILL))
    S = _smallest(free, classes, 2, 1, lambda s: pack(T, s).fill((T, T, T))[0] >= least)
    V = _smallest(free, classes, 1, _UNIT, lambda v: pack(v, S).fill((T, T, T))[0] >= least)
    V = min(V, T)
    fill = pack(V, S).fill((T, V, S))
    return Suggestion(T, V, S, float(fill[0]), float(fill[1]))


def _row_tokens(sizes) -> int:
    tokens_only = np.array(sizes)
    tokens_only[:, 1:] = 1  # fewer distinct sizes: this search packs many times
    classes, counts, _ = packing.histogram(tokens_only)
    longest = int(classes[0, 0])
    first = -(-longest // _STEP) * _STEP
    most = max(_MOST * longest, _ALWAYS)
    stride = max(1, (most - first) // _STEP // _TRIES) * _STEP
    fills = {}
    for T in range(first, most + _STEP, stride):
        fills[T] = packing.best_fit(classes, counts, (T, T, T)).fill((T, T, T))[0]
        if fills[T] >= GOOD_FILL:
            return T
    return max(fills, key=fills.get)


def _smallest(free, classes, column, unit, good_enough) -> int:
    """The smallest capacity, from what a row uses on average to the most that any uses, that is good enough."""
    mean = (free.used[:, column] * free.rows).sum() / free.total_rows
    most = int(free.used[:, column].max())
    tried = 0
    for factor in (1.0, 1.02, 1.05, 1.1, 1.2, 1.4, 1.7, 2.0, 3.0):
        capacity = max(int(np.ceil(mean * factor)), int(classes[:, column].max()))
        capacity = -(-capacity // unit) * unit
        if capacity >= most:
            break
        if capacity != tried and good_enough(capacity):
            return capacity
        tried = capacity
    return -(-most // unit) * unit
