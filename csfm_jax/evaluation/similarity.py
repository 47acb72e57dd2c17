"""How alike two layers, or two models, see the same recordings: linear centred kernel alignment, in float64."""

from collections.abc import Sequence

import numpy as np

from data_pipelines.errors import BadInput


class MinibatchCKA:
    """Linear CKA of layers that are seen batch by batch: 0, nothing in common, to 1, equal up to rotation, scale and
    shift.

    Free of the bias by which unrelated features seem alike where cases are fewer than features; values may lie a little
    below 0 or above 1. Memory does not grow with the cases.

    Args:
        first, second: numbers of layers of the two models.

    Source: Kornblith et al. 2019, section 3; Nguyen et al. 2021, section 3.1; the unbiased HSIC of Song et al. 2012.
    """

    def __init__(self, first: int, second: int):
        self._joint = np.zeros((first, second))
        self._own = [np.zeros(first), np.zeros(second)]
        self.batches = 0

    def add(self, first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> None:
        """Counts one batch: [b, D_l] a layer of each model, of the same b cases.

        Raises:
            BadInput: fewer than 4 cases, or not the same in all.
        """
        cases = {len(layer) for layer in (*first, *second)}
        if len(cases) != 1 or min(cases) < 4:
            remedy = "give larger batches, and drop a last one that is too small"
            raise BadInput("batch", f"layers of {sorted(cases)} cases", "the same 4 cases or more in all", remedy)
        grams = [[_gram(layer) for layer in side] for side in (first, second)]
        self._joint += np.array([[_hsic(k, m) for m in grams[1]] for k in grams[0]])
        for own, side in zip(self._own, grams):
            own += np.array([_hsic(k, k) for k in side])
        self.batches += 1

    def values(self) -> np.ndarray:
        """[first, second] float64; NaN where a layer does not vary, or before any batch."""
        with np.errstate(invalid="ignore", divide="ignore"):
            product = np.sqrt(np.outer(*(np.maximum(own, 0) for own in self._own)))
            return np.where(product > 0, self._joint / product, np.nan)


def _gram(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    x = x - x.mean(0)  # changes nothing but rounding: the estimate does not depend on a shift
    gram = x @ x.T
    np.fill_diagonal(gram, 0)
    return gram


def _hsic(k: np.ndarray, m: np.ndarray) -> float:
    n = len(k)
    whole = k.sum() * m.sum() / ((n - 1) * (n - 2))
    return float((np.sum(k * m) + whole - 2 / (n - 2) * (k.sum(0) @ m.sum(0))) / (n * (n - 3)))
