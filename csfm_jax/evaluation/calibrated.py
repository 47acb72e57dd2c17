"""What a checkpoint of a task needs before its numbers are used on patients: temperatures and thresholds, in one file.

    WORKDIR/checkpoints/calibration-<step>.json     beside the step and its manifest, here or in an object store

Both come from validation recordings (`csfm calibrate`), never from those that are then judged. They belong to one step:
the file holds the SHA-256 of the step's manifest, and with other weights of the same number it is refused.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

import numpy as np

from csfm_jax.evaluation import calibration, decisions
from csfm_jax.evaluation.predictions import Predictions
from csfm_jax.tasks.task import Task
from csfm_jax.training import manifest
from data_pipelines import storage
from data_pipelines.errors import BadInput
from data_pipelines.storage import Place

KINDS = ("multilabel", "multiclass")  # tasks that predict probabilities
_FORMAT = "csfm-calibration"
# a float32 sigmoid cannot tell a probability from 1 any closer
LEAST = 2.0**-24


@dataclass(frozen=True)
class Calibrated:
    """How probabilities of recordings become calibrated ones and decisions.

    Attributes:
        step: of the checkpoint. weights: SHA-256 of its manifest. task: name. labels: in the order of the outputs.
        exclusive: whether one label is true in each recording.
        temperature: log-odds are divided by it: one a label, or a single one of exclusive labels.
        thresholds: one a label, NaN where validation recordings had one class only; none of exclusive labels, of which
            the likeliest is called.
        rule: of `decisions.choose_thresholds`, or "likeliest". specificity: that the rule "specificity" keeps.
        recordings: validation recordings with a label. positives: of each label among them.
        figures: on them, name -> [before, after].
    """

    step: int
    weights: str
    task: str
    labels: tuple[str, ...]
    exclusive: bool
    temperature: tuple[float, ...]
    thresholds: tuple[float, ...]
    rule: str
    specificity: float
    recordings: int
    positives: tuple[int, ...]
    figures: dict[str, list[float]]

    def probabilities(self, values: np.ndarray) -> np.ndarray:
        """[n, K] averaged probabilities of recordings, as the network gives them -> [n, K] float64, calibrated."""
        temperature = calibration.Temperature(np.array(self.temperature), self.exclusive)
        return temperature.probabilities(_log_odds(values, self.exclusive))

    def decisions(self, probabilities: np.ndarray) -> np.ndarray:
        """[n, K] float64 of calibrated probabilities: 1 called, 0 not, NaN where a label has no threshold."""
        if self.exclusive:
            return np.eye(probabilities.shape[1])[probabilities.argmax(axis=1)]
        thresholds = np.array(self.thresholds)
        return np.where(np.isnan(thresholds), np.nan, probabilities >= thresholds)


def check_kind(task: Task) -> None:
    """Raises BadInput for a task that predicts no probabilities."""
    if task.kind not in KINDS:
        found = f"a {task.kind} task, which predicts no probabilities"
        raise BadInput(f"task {task.name}", found, "a " + " or ".join(KINDS) + " task", "use its values as they are")


def fit(
    task: Task, labels: tuple[str, ...], found: Predictions, rule: str, specificity: float, of: "Step"
) -> Calibrated:
    """Temperatures by cross-entropy, then thresholds on what they give.

    Args:
        task: of a kind in `KINDS`. labels: names of the outputs. found: predictions for validation recordings.
        rule, specificity: as of `decisions.choose_thresholds`. of: which weights predicted.

    Raises:
        BadInput: a task without probabilities, or no label that has both classes among these recordings.
    """
    check_kind(task)
    exclusive, truth = task.kind == "multiclass", known_labels(task, found.labels)
    if not any(len(set(column[~np.isnan(column)])) > 1 for column in truth.T):
        told = "validation recordings of one class only" if (~np.isnan(truth)).any() else "no labelled recording"
        raise BadInput(f"task {task.name}", told, "both classes of a label", "use stores with validation subjects")
    scores = _log_odds(found.values, exclusive)
    if exclusive:
        classes = np.where(np.isnan(truth).any(axis=1), -1, truth.argmax(axis=1))
        temperature, thresholds, rule = calibration.fit_temperature(scores, classes), (), "likeliest"
    else:
        temperature = calibration.fit_temperatures(scores, truth)
        chosen = decisions.choose_thresholds(temperature.probabilities(scores), truth, rule, specificity)
        thresholds = tuple(chosen.tolist())
    after = probability_figures(task, labels, temperature.probabilities(scores), found.labels)
    before = probability_figures(task, labels, found.values, found.labels)
    return Calibrated(
        step=of.number,
        weights=of.digest,
        task=task.name,
        labels=labels,
        exclusive=exclusive,
        temperature=tuple(temperature.value.tolist()),
        thresholds=thresholds,
        rule=rule,
        specificity=specificity,
        recordings=int((~np.isnan(truth)).any(axis=1).sum()),
        positives=tuple(np.count_nonzero(truth > 0.5, axis=0).tolist()),
        figures={name: [before[name], after[name]] for name in before},
    )


def known_labels(task: Task, labels: np.ndarray) -> np.ndarray:
    """[n, K] of 0, 1 and NaN; of exclusive classes a recording is labelled with exactly one of them, or not at all."""
    labels = np.asarray(labels, np.float64)
    if task.kind != "multiclass":
        return labels
    whole = ~np.isnan(labels).any(axis=1) & (np.nansum(labels, axis=1) == 1)
    return np.where(whole[:, None], labels, np.nan)


def probability_figures(task: Task, names: tuple[str, ...], values: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Whether probabilities mean what they say: "brier" and "calibration_error" (ECE, 15 equally wide bins), means over
    the labels that any recording has, and "brier/LABEL", ... of each.

    Args:
        values: [n, K] probabilities. labels: [n, K], NaN = not labelled. names: K.
    """
    truth, found = known_labels(task, labels), {}
    for figure, measured in (("brier", calibration.brier), ("calibration_error", calibration.calibration_error)):
        each = {}
        for name, said, column in zip(names, np.asarray(values, np.float64).T, truth.T):
            if (known := ~np.isnan(column)).any():
                each[f"{figure}/{name}"] = float(measured(said[known], column[known] > 0.5)[0])
        found |= {figure: float(np.mean(list(each.values()))) if each else float("nan")} | each
    return found


def decision_figures(task: Task, names: tuple[str, ...], called: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """ "sensitivity/LABEL", "specificity/LABEL" and "precision/LABEL" of decisions; NaN where not defined.

    Args:
        called: [n, K] of 1, 0 and NaN, as `Calibrated.decisions` gives them. Others: as of `probability_figures`.
    """
    thresholds = np.where(np.isnan(called).all(axis=0), np.nan, 0.5)
    rates = decisions.rates(called, known_labels(task, labels), thresholds)
    kinds = ("sensitivity", "specificity", "precision")
    return {f"{kind}/{name}": float(getattr(rates, kind)[0, i]) for i, name in enumerate(names) for kind in kinds}


@dataclass(frozen=True)
class Step:
    """Which weights: number of the step, and SHA-256 of its manifest."""

    number: int
    digest: str

    @classmethod
    def of(cls, step: Place) -> "Step":
        """Args: step: the step's folder, as `checkpoint.find_step` gives it."""
        return cls(int(storage.name_of(step)), manifest.digest(step))


def path_of(step: Place) -> Place:
    """Where the calibration of a step lies. (A name that began with a number would be taken for a torn step's.)"""
    return storage.join(storage.parent(step), f"calibration-{storage.name_of(step)}.json")


def write(calibrated: Calibrated, step: Place) -> Place:
    """Writes the file beside the step, in place of an earlier one, whole or not at all; returns its place."""
    values = dataclasses.asdict(calibrated)
    values["thresholds"] = [None if t != t else t for t in calibrated.thresholds]
    values["figures"] = {name: [None if v != v else v for v in pair] for name, pair in values["figures"].items()}
    text = json.dumps({"format": _FORMAT, **values, "digest": _digest(values)}, indent=1, allow_nan=False) + "\n"
    storage.write_bytes(path_of(step), text.encode())
    return path_of(step)


def read(step: Place) -> Calibrated | None:
    """The calibration of a step; None where there is none.

    Raises:
        BadInput: the file was changed, or is of other weights.
    """
    path = path_of(step)
    try:
        content = json.loads(storage.read_bytes(path))
        found_format, digest = content.pop("format"), content.pop("digest")
        whole = found_format == _FORMAT and digest == _digest(content)
        nan = lambda values: [float("nan") if v is None else v for v in values]  # noqa: E731
        content["thresholds"] = tuple(nan(content["thresholds"]))
        content["figures"] = {name: nan(pair) for name, pair in content["figures"].items()}
        for name in ("labels", "temperature", "positives"):
            content[name] = tuple(content[name])
        calibrated = Calibrated(**content)
    except storage.Missing:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    remedy = "give csfm calibrate again, or remove the file"
    if not whole:
        raise BadInput(str(path), "a changed calibration", "the file as it was written", remedy)
    if (calibrated.step, calibrated.weights) != dataclasses.astuple(Step.of(step)):
        raise BadInput(str(path), "a calibration of other weights", f"one of {storage.name_of(step)}", remedy)
    return calibrated


def _digest(values: dict) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _log_odds(probabilities: np.ndarray, exclusive: bool) -> np.ndarray:
    p = np.clip(np.asarray(probabilities, np.float64), LEAST, 1 - LEAST)
    return np.log(p) if exclusive else np.log(p) - np.log1p(-p)
