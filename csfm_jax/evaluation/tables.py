"""Every figure of every label of a task in one table."""

from collections.abc import Sequence

import numpy as np

from csfm_jax.evaluation import decisions, metrics

RANKED = {
    "auroc": metrics.auroc,
    "average_precision": metrics.average_precision,
    "sensitivity_at_specificity": metrics.sensitivity_at_specificity,
}
AT_THRESHOLD = ("f1", "sensitivity", "specificity", "precision")


def label_table(names: Sequence[str], scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> list[dict]:
    """Figures by label, as plain values.

    Args:
        names: K labels. scores: [n, K]. labels: [n, K] of 0, 1, NaN = not labelled.
        thresholds: [K] from `decisions.choose_thresholds` on validation cases.

    Returns:
        A dict a label: "label", "cases", "positives", "threshold" and figures, None = undefined.
    """
    found = {name: metrics.macro(figure, scores, labels) for name, figure in RANKED.items()}
    rates = decisions.rates(scores, labels, thresholds)
    found |= {name: rates.macro(name) for name in AT_THRESHOLD}
    known = ~np.isnan(labels)
    positives = (known & (labels > 0.5)).sum(0)
    return [
        {
            "label": name,
            "cases": int(known[:, k].sum()),
            "positives": int(positives[k]),
            "threshold": _plain(thresholds[k]),
            **{figure: _plain(values.each[0, k]) for figure, values in found.items()},
        }
        for k, name in enumerate(names)
    ]


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
