"""Harrell's concordance index under case weights: does who is predicted to be at higher risk fall ill earlier?"""

import numpy as np

from csfm_jax.evaluation.metrics import case_columns

_CELLS = 8_000_000  # pairs held at once


def concordance(risk: np.ndarray, time: np.ndarray, event: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Harrell's C: of the pairs whose order in time is known, the share in which the earlier one had the higher risk.

    Two cases are comparable if the earlier time is an event; at equal times, if exactly one is an event (it came
    first: the other was still free of it). Equal risks count half. A pair weighs the product of its cases' weights.

    Args:
        risk: [n] float, higher means earlier. time: [n], to the event or to the end of observation, any one unit.
        event: [n] of 0 (censored) and 1. A case whose time or event is NaN is left out. weights: [R, n] as in
            `metrics.auroc`.

    Returns:
        [R] float64; NaN where a weighting holds no comparable pair. Time O(events * n * R) in matrix products.

    Source: Harrell et al. 1996, Stat Med 15:361.
    """
    columns = case_columns(weights, len(time))
    risk, time, event = (np.asarray(values, np.float64) for values in (risk, time, event))
    known = ~(np.isnan(time) | np.isnan(event))
    event = event > 0.5
    first = np.flatnonzero(event & known)
    won, pairs = np.zeros(columns.shape[1]), np.zeros(columns.shape[1])
    step = max(1, _CELLS // max(len(time), 1))
    for at in range(0, len(first), step):
        some = first[at : at + step]
        later = known & ((time > time[some, None]) | ((time == time[some, None]) & ~event))
        right = later * ((risk < risk[some, None]) + 0.5 * (risk == risk[some, None]))
        own = columns[some].astype(np.float64)
        # halves and counts are exact in float32; only the products that follow need more
        won += np.einsum("er,er->r", own, right.astype(columns.dtype) @ columns)
        pairs += np.einsum("er,er->r", own, later.astype(columns.dtype) @ columns)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, won / pairs, np.nan)
