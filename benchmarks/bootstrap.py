"""A bootstrap of the macro AUROC over patients, against a loop over scikit-learn on the same draws.

The task is as large as the field's usual one: 71 labels (PTB-XL), 2,000 patients, 1,000 replicates. The loop is
measured on a few replicates and scaled.
"""

import time
import warnings

import numpy as np

PATIENTS, LABELS, REPLICATES, LOOPED = 2000, 71, 1000, 5


def run() -> list[tuple]:
    from sklearn.metrics import roc_auc_score

    from csfm_jax.evaluation import bootstrap, metrics

    rng = np.random.default_rng(0)
    patients = np.arange(PATIENTS)
    labels = (rng.random((PATIENTS, LABELS)) < np.geomspace(0.005, 0.4, LABELS)).astype(float)
    scores = labels + rng.normal(0, 1.5, labels.shape)

    def looped(weights):
        each = []
        for w in weights:
            rows = np.repeat(patients, w.astype(int))
            both = np.flatnonzero((labels[rows].min(0) == 0) & (labels[rows].max(0) == 1))
            each.append(np.mean([roc_auc_score(labels[rows, k], scores[rows, k]) for k in both]))
        return np.array(each)

    few = np.concatenate(list(bootstrap.draws(patients, LOOPED)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        began = time.perf_counter()
        want = looped(few)
        loop = (time.perf_counter() - began) * REPLICATES / LOOPED
    lines, one = [], {}
    figures = {"AUROC": metrics.auroc, "AUPRC": metrics.average_precision}
    for name, figure in figures.items():
        began = time.perf_counter()
        one[name] = bootstrap.replicate([metrics.MacroFigure(figure, scores, labels)], patients, REPLICATES)
        took = time.perf_counter() - began
        lines.append((f"macro {name}, {REPLICATES} replicates, {LABELS} labels", took, "s", f"{PATIENTS} patients"))
        if name == "AUROC":
            lines.append(("a loop over roc_auc_score", loop, "s", f"scaled from {LOOPED} replicates"))
            lines.append(("the loop takes longer by", loop / took, "times", "at least 20 wanted"))
    # the first draws of the same seed are the same draws
    worst = float(np.abs(one["AUROC"].drawn[0, :LOOPED] - want).max())
    return [*lines, ("largest difference to scikit-learn", worst, "", "same draws")]
