"""From what a converter wrote to physical units, in little more memory than the result takes."""

import numpy as np

_BLOCK = 1 << 16  # samples converted at a time: float64 of a whole night would be ten times its file


def physical(digital: np.ndarray, gain: float, before: float = 0.0, after: float = 0.0, missing=None) -> np.ndarray:
    """(digital + before) x gain + after, computed in float64 and rounded once.

    Args:
        digital: [samples], integers or floating-point numbers.
        missing: the digital value that means "no sample", or None.

    Returns:
        float32 [samples], NaN where missing or not finite.
    """
    out = np.empty(len(digital), np.float32)
    for at in range(0, len(digital), _BLOCK):
        block = digital[at : at + _BLOCK]
        with np.errstate(over="ignore", invalid="ignore"):
            values = block.astype(np.float64)
            values += before
            values *= gain
            values += after
            out[at : at + _BLOCK] = values
        if missing is not None:
            out[at : at + _BLOCK][block == missing] = np.nan
        out[at : at + _BLOCK][~np.isfinite(out[at : at + _BLOCK])] = np.nan
    return out
