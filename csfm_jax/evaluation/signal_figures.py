"""Figures of predicted signals under case weights: errors, correlation, heart rates, of every target channel.

Every recording counts once, whatever its length: its own means over windows are what is averaged here.
"""

from collections.abc import Callable, Sequence

import numpy as np

from csfm_jax.evaluation import metrics
from data_pipelines.signals import modality_of

# figure -> which of `task.MEASURED`, whether the root is taken, and whether its mean over channels needs one unit
_FIGURES = {
    "correlation": ("correlation", False, False),
    "mean_absolute_error": ("absolute_error", False, True),
    "root_mean_square_error": ("squared_error", True, True),
    "heart_rate_error": ("rate_error", False, False),
    "heart_rate_found": ("rate_found", False, False),
}
EVERY = tuple(_FIGURES)


def reader(outputs: Sequence[str], values: np.ndarray, figures: Sequence[str]) -> Callable:
    """weights [R, n] or None -> figure -> [R]: FIGURE/CHANNEL, and FIGURE, the mean over channels, where these have one
    unit or the figure has none.

    Args:
        outputs: names of the columns of `values`, [n, channels x MEASURED], as of `Task.outputs`; NaN = not measured.
        figures: some of `EVERY`.
    """
    channels = list(dict.fromkeys(name.rpartition("/")[0] for name in outputs))
    one_unit = len({modality_of(name).unit for name in channels}) == 1
    position = {name: i for i, name in enumerate(outputs)}

    def read(weights):
        columns, found = metrics.case_columns(weights, len(values)), {}
        for figure in figures:
            measured, root, of_unit = _FIGURES[figure]
            each = np.stack([_mean(columns, values[:, position[f"{name}/{measured}"]]) for name in channels], axis=1)
            each = np.sqrt(each) if root else each
            found |= {f"{figure}/{name}": each[:, k] for k, name in enumerate(channels)} if len(channels) > 1 else {}
            if one_unit or not of_unit:
                found[figure] = metrics.mean_over_labels(each).value
        return found

    return read


def _mean(columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Weighted means [R] of what is known; NaN where nothing is."""
    known = ~np.isnan(values)
    some = columns[known].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (values[known] @ some) / some.sum(axis=0)
