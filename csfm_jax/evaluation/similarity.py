"""How alike two layers, or two models, see the same recordings: linear centred kernel alignment, in float64."""

from collections.abc import Sequence

import numpy as np

from data_pipelines.errors import BadInput

_ROWS = 4096  # cases turned to float64 at once


def linear_cka(first: np.ndarray, second: np.ndarray) -> float:
    """Linear CKA of two sets of features of the same cases.

    Args:
        first, second: [n, D] and [n, E], a row a case, of any float type.

    Returns:
        0 (nothing in common) to 1 (equal up to rotation, scale and shift); NaN where one of them does not vary. With
        fewer cases than features it tends to 1 whatever they are: use many cases, or `MinibatchCKA`.

    Raises:
        BadInput: other numbers of cases.

    Source: Kornblith et al. 2019, section 3.
    """
    return float(cka_table([first], [second])[0, 0])


def cka_table(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """Linear CKA of every layer of one model with every layer of another.

    Args:
        first, second: [n, D_l] a layer, of the same n cases everywhere.

    Returns:
        [layers of first, layers of second] float64; see `linear_cka`.
    """
    cases = {len(layer) for layer in (*first, *second)}
    if len(cases) != 1:
        raise BadInput("features", f"layers of {sorted(cases)} cases", "the same cases in all", "embed the same stores")
    # a layer that does not vary is left with rounding errors, which must not look like features
    norms = [[_norm(layer) for layer in side] for side in (first, second)]
    return np.array(
        [
            [_alignment(x, y) / (a * b) if a > 0 and b > 0 else np.nan for y, b in zip(second, norms[1])]
            for x, a in zip(first, norms[0])
        ]
    )


def _norm(x: np.ndarray) -> float:
    size = float(np.sqrt(_alignment(x, x)))
    # squares of what is left after the mean is taken off, against squares of the values themselves
    return size if size > 1e-20 * len(x) * (1e-300 + float(np.max(np.abs(x), initial=0)) ** 2) else 0.0


def _alignment(x: np.ndarray, y: np.ndarray) -> float:
    """The squared Frobenius norm of X^T Y after centring; through Gram matrices where these are smaller."""
    centres = [side.mean(0, dtype=np.float64) for side in (x, y)]
    if len(x) < min(x.shape[1], y.shape[1]):
        grams = [c @ c.T for c in (side - centre for side, centre in zip((x, y), centres))]
        return float(np.sum(grams[0] * grams[1]))
    product = np.zeros((x.shape[1], y.shape[1]))
    for at in range(0, len(x), _ROWS):
        product += (x[at : at + _ROWS] - centres[0]).T @ (y[at : at + _ROWS] - centres[1])
    return float(np.sum(np.square(product)))


class MinibatchCKA:
    """Linear CKA of layers that are seen batch by batch, free of the bias that few cases bring.

    Memory does not grow with the cases. Values may lie a little below 0 or above 1.

    Args:
        first, second: numbers of layers of the two models.

    Source: Nguyen et al. 2021, section 3.1; the unbiased HSIC is that of Song et al. 2012.
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
