"""Every figure of every label of a task in one table, with the means over labels and what they leave out."""

from collections.abc import Sequence

import numpy as np

from csfm_jax.evaluation import decisions, metrics

RANKED = {
    "auroc": metrics.auroc,
    "average_precision": metrics.average_precision,
    "sensitivity_at_specificity": metrics.sensitivity_at_specificity,
}
AT_THRESHOLD = ("f1", "sensitivity", "specificity", "precision")


def label_table(
    names: Sequence[str], scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray | None = None
) -> dict:
    """Figures by label and their means, as plain values.

    Args:
        names: K labels. scores: [n, K]. labels: [n, K] of 0, 1, NaN = not labelled.
        thresholds: [K] from `decisions.choose_thresholds` on validation cases; None leaves out what needs them.

    Returns:
        "labels": a dict a label ("label", "cases", "positives", "threshold" and figures, None = undefined); "macro":
        means of the figures; "labels_in_macro": how many labels each mean holds; "left_out": labels with one class
        only, which no mean holds.
    """
    found = {name: metrics.macro(figure, scores, labels) for name, figure in RANKED.items()}
    if thresholds is not None:
        rates = decisions.rates(scores, labels, thresholds)
        found |= {name: rates.macro(name) for name in AT_THRESHOLD}
    known = ~np.isnan(labels)
    positives = (known & (labels > 0.5)).sum(0)
    rows = [
        {
            "label": name,
            "cases": int(known[:, k].sum()),
            "positives": int(positives[k]),
            **({} if thresholds is None else {"threshold": _plain(thresholds[k])}),
            **{figure: _plain(values.each[0, k]) for figure, values in found.items()},
        }
        for k, name in enumerate(names)
    ]
    return {
        "labels": rows,
        "macro": {figure: _plain(values.value[0]) for figure, values in found.items()},
        "labels_in_macro": {figure: int(values.labels[0]) for figure, values in found.items()},
        "left_out": [row["label"] for row in rows if row["positives"] in (0, row["cases"])],
    }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
