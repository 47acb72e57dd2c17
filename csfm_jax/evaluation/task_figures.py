"""Every figure of a task's predictions under case weights: what it is judged by, at thresholds, and of calibration.

A figure's name is FIGURE, a mean over labels, or FIGURE/LABEL.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import scipy  # its parts load at their first use

from csfm_jax.evaluation import bootstrap, calibration, decisions, metrics, signal_figures, survival
from csfm_jax.evaluation.bootstrap import Replicates
from csfm_jax.tasks.task import Rewards, Task

# weights [R, n] or None (once each) -> name -> [R]
Reader = Callable[[np.ndarray | None], dict[str, np.ndarray]]

LOWER_IS_BETTER = ("mean_absolute_error", "z_error", "brier", "calibration_error", "brier_scaled",
                   "calibration_error_scaled", "root_mean_square_error", "heart_rate_error")  # fmt: skip
MAIN = {"multilabel": "macro_auroc", "multiclass": "macro_auroc", "regression": "z_error", "survival": "concordance",
        "signal": "correlation"}  # fmt: skip
_CERTAIN = 1e-7  # networks predict in float32: beyond, a probability is 0 or 1


class Figures:
    """Several readers of the same cases, read together."""

    def __init__(self, readers: Sequence[Reader]):
        self._readers = readers

    def under(self, weights: np.ndarray | None) -> dict[str, np.ndarray]:
        """name -> [R], under weights [R, n]; None = every case once."""
        return {name: value for reader in self._readers for name, value in reader(weights).items()}


class OverFolds:
    """Figures of each fold's cases, averaged with the cases as weights: scores of different folds' models, which have
    learned from other patients, are never ranked against each other. A fold that has no such figure is left out of it.

    Args:
        folds: [n] int, the fold of each case. make: takes the rows of a fold and gives what reads them.
    """

    def __init__(self, folds: np.ndarray, make: Callable[[int, np.ndarray], Figures]):
        rows = {int(fold): np.flatnonzero(folds == fold) for fold in np.unique(folds)}
        self._parts = [(mine, make(fold, mine)) for fold, mine in rows.items()]

    def under(self, weights: np.ndarray | None) -> dict[str, np.ndarray]:
        """As `Figures.under`."""
        sums: dict[str, np.ndarray] = {}
        counts: dict[str, np.ndarray] = {}
        for rows, figures in self._parts:
            cases = np.full(1, float(len(rows))) if weights is None else weights[:, rows].sum(axis=1, dtype=np.float64)
            for name, value in figures.under(None if weights is None else weights[:, rows]).items():
                there = np.isfinite(value)
                sums[name] = sums.get(name, 0.0) + np.where(there, value, 0.0) * cases
                counts[name] = counts.get(name, 0.0) + there * cases
        with np.errstate(invalid="ignore"):
            return {name: sums[name] / counts[name] for name in sums}


def judged_by(task: Task, outputs: Sequence[str], values: np.ndarray, labels: np.ndarray) -> Figures:
    """What validation prints: the figures of `Task.metrics`.

    Args:
        outputs: names of the columns of `values`, [n, outputs]. labels: [n, K], NaN = not labelled.
    """
    if task.kind == "survival":
        return Figures([_survival(values, labels)])
    if task.kind == "regression":
        return Figures([_regression(outputs, values, labels)])
    if task.kind == "signal":
        return Figures([signal_figures.reader(outputs, values, task.metrics)])
    exclusive = [_agreement(values, labels, ("accuracy", "kappa", "macro_f1"))] if task.kind == "multiclass" else []
    return Figures([*exclusive, _ranked("auroc", metrics.auroc, task, outputs, values, labels)])


def validated_by(task: Task, outputs: Sequence[str], values: np.ndarray, labels: np.ndarray) -> Figures:
    """What validation prints while a task is learned: as `judged_by`, and of several labels the best macro F1, with
    thresholds chosen on these very cases: the figure by which CSFM's recipe keeps an epoch."""
    plain = judged_by(task, outputs, values, labels)
    if task.kind != "multilabel":
        return plain
    at_best = _at_thresholds(outputs, values, labels, decisions.choose_thresholds(values, labels))
    return Figures([plain.under, lambda weights: {"macro_f1": at_best(weights)["macro_f1"]}])


def all_of(
    task: Task,
    outputs: Sequence[str],
    values: np.ndarray,
    labels: np.ndarray,
    validation: tuple[np.ndarray, np.ndarray],
    scale: Sequence[float],
) -> Figures:
    """Every figure of test cases; thresholds and temperatures are those of validation cases.

    Args:
        outputs, values, labels: as of `judged_by`. validation: values and labels of validation cases.
        scale: standard deviations of a regression's labels among train recordings.
    """
    if task.kind == "survival":
        return Figures([_survival(values, labels)])
    if task.kind == "regression":
        return Figures([_regression(outputs, values, labels), _z_error(values, labels, np.asarray(scale))])
    if task.kind == "signal":
        return Figures([signal_figures.reader(outputs, values, signal_figures.EVERY)])
    ranked = (metrics.auroc, metrics.average_precision, metrics.sensitivity_at_specificity)
    readers = [_ranked(figure.__name__, figure, task, outputs, values, labels) for figure in ranked]
    if task.kind == "multiclass":
        at = _agreement(values, labels, ("accuracy", "balanced_accuracy", "kappa", "macro_f1"))
    else:
        thresholds = decisions.choose_thresholds(*validation)
        at = _at_thresholds(outputs, values, labels, thresholds)
        if task.rewards is not None and task.rewards.normal in outputs:
            readers.append(_rewarded(task.rewards, outputs, values >= thresholds, labels))
    known, scaled = exclusive_or_any(task, labels), scaled_probabilities(task, values, validation)
    return Figures(
        [*readers, at, _calibrated("", outputs, values, known), _calibrated("_scaled", outputs, scaled, known)]
    )


def scaled_probabilities(task: Task, values: np.ndarray, validation: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Probabilities [n, K] after temperature scaling fitted on validation cases (values, labels): one temperature a
    label, or one of classes that exclude each other; as they are where no validation case is labelled."""
    if task.kind != "multiclass":
        fitted = calibration.fit_temperatures(log_odds(validation[0]), validation[1])
        return fitted.probabilities(log_odds(values))
    truth = _classes(validation[1])
    if not (truth >= 0).any():
        return np.asarray(values, np.float64)
    said, wanted = (np.log(np.clip(np.asarray(v, np.float64), _CERTAIN, 1)) for v in (validation[0], values))
    return calibration.fit_temperature(said, truth).probabilities(wanted)


def exclusive_or_any(task: Task, labels: np.ndarray) -> np.ndarray:
    """Labels [n, K]; of exclusive classes NaN in cases that have not exactly one."""
    return np.where((_classes(labels) >= 0)[:, None], labels, np.nan) if task.kind == "multiclass" else labels


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Of probabilities, kept finite."""
    return scipy.special.logit(np.clip(np.asarray(probability, np.float64), _CERTAIN, 1 - _CERTAIN))


def replicate(
    models: Mapping[str, Figures | OverFolds], patients: np.ndarray, replicates: int, seed: int
) -> dict[str, dict[str, Replicates]]:
    """All figures of several models on the same draws of patients.

    Args:
        models: name -> its figures of the same n cases. patients, replicates, seed: as in `bootstrap.draws`.

    Returns:
        model -> figure -> point [1] and drawn [1, R].
    """
    once = {model: figures.under(None) for model, figures in models.items()}
    drawn = {model: {name: [] for name in found} for model, found in once.items()}
    for weights in bootstrap.draws(patients, replicates, seed):
        for model, figures in models.items():
            for name, value in figures.under(weights).items():
                drawn[model][name].append(value)
    return {
        model: {name: Replicates(once[model][name], np.concatenate(parts)[None]) for name, parts in found.items()}
        for model, found in drawn.items()
    }


def _classes(labels: np.ndarray) -> np.ndarray:
    """[n] int, -1 where a case has not exactly one class."""
    known = ~np.isnan(labels).any(axis=1) & (np.nansum(labels, axis=1) == 1)
    return np.where(known, np.nan_to_num(labels).argmax(axis=1), -1)


def _named(name: str, outputs: Sequence[str], found: metrics.Macro, mean: str = "macro_") -> dict[str, np.ndarray]:
    each = {f"{name}/{output}": found.each[:, k] for k, output in enumerate(outputs)} if len(outputs) > 1 else {}
    return {f"{mean}{name}": found.value} | each


def _ranked(name, figure, task, outputs, values, labels) -> Reader:
    ready = metrics.MacroFigure(figure, values, exclusive_or_any(task, labels))
    return lambda weights: _named(name, outputs, ready.under(weights))


def _at_thresholds(outputs, values, labels, thresholds) -> Reader:
    def read(weights):
        rates = decisions.rates(values, labels, thresholds, weights)
        names = ("f1", "sensitivity", "specificity", "precision")
        return {k: v for name in names for k, v in _named(name, outputs, rates.macro(name)).items()}

    return read


def _rewarded(rewards: Rewards, outputs, called, labels) -> Reader:
    """The challenge's score among the labels that are predicted, of cases with all of them."""
    rows = [rewards.labels.index(output) for output in outputs]
    worth, whole = np.array(rewards.worth)[np.ix_(rows, rows)], ~np.isnan(labels).any(axis=1)
    normal = outputs.index(rewards.normal)

    def read(weights):
        some = None if weights is None else weights[:, whole]
        return {"challenge_score": decisions.challenge_score(called[whole], labels[whole], worth, normal, some)}

    return read


def _calibrated(suffix, outputs, probability, labels) -> Reader:
    brier = metrics.MacroFigure(calibration.brier, probability, labels)
    error = metrics.MacroFigure(partial(calibration.calibration_error, bins=15), probability, labels)
    parts = ((f"brier{suffix}", brier), (f"calibration_error{suffix}", error))
    return lambda w: {k: v for name, ready in parts for k, v in _named(name, outputs, ready.under(w), "").items()}


def _regression(outputs, values, labels) -> Reader:
    def read(weights):
        weights = np.ones((1, len(labels)), np.float32) if weights is None else weights
        found = {}
        for k, output in enumerate(outputs):
            rows = ~np.isnan(labels[:, k])
            case = values[rows, k], labels[rows, k], weights[:, rows]
            found[f"mean_absolute_error/{output}"] = metrics.mean_absolute_error(*case)
            found[f"r2/{output}"] = metrics.r2(*case)
        return found

    return read


def _z_error(values, labels, scale) -> Reader:
    return lambda weights: {"z_error": metrics.z_error(values, labels, scale, weights).value}


def _survival(values, labels) -> Reader:
    return lambda weights: {"concordance": survival.concordance(values[:, 0], labels[:, 1], labels[:, 0], weights)}


def _agreement(values, labels, names) -> Reader:
    truth = _classes(labels)

    def read(weights):
        found = decisions.agreement(values.argmax(axis=1), truth, values.shape[1], weights)
        return {name: getattr(found, name) for name in names}

    return read
