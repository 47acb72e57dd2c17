"""How a study's errors fall with the number of labelled patients, and how many of them a model saves."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from csfm_jax.evaluation import prediction_files, task_figures
from csfm_jax.evaluation.bootstrap import Replicates
from csfm_jax.evaluation.cell import TRAINED
from csfm_jax.evaluation.label_efficiency import LabelRatio, label_ratio
from csfm_jax.evaluation.study import Study, TaskSetup
from csfm_jax.evaluation.study_models import TREES
from csfm_jax.evaluation.study_reads import in_order, main_figure


@dataclass(frozen=True)
class Curve:
    """A model's error after training on fewer patients.

    Attributes:
        sizes: [p] patients. errors: on all draws. against: the supervised baseline.
        ratio: labels that it needs for what the baseline reaches with all of them, over all of them; or None.
        cases, patients: how many test recordings and patients all curves of the task are read on.
    """

    sizes: np.ndarray
    errors: Replicates
    ratio: LabelRatio | None
    against: str
    cases: int
    patients: int


def curves(study: Study, setup: TaskSetup, replicates: int, seed: int) -> dict[str, Curve]:
    """Errors on the same test recordings, on the same draws, after training on ever fewer patients."""
    files: dict[str, list[Path]] = {}
    of_cell = {cell.model.word: cell for cell in study.of(setup.task.name)}
    for cell in of_cell.values():
        wanted = [cell.file(setup.subsets[0], TRAINED, "test", k) for k in range(cell.halvings + 1)]
        complete = cell.status.get("failed", "") is None
        if complete and cell.halvings and all(file.exists() for file in wanted):
            files[cell.model.word] = wanted
    read = {word: [in_order(prediction_files.read(file), setup) for file in them] for word, them in files.items()}
    common = set.intersection(*(set(one.key) for them in read.values() for one in them)) if read else set()
    if not common:
        return {}
    aligned = {word: [one.rows(np.array([i for i in np.argsort(one.key) if one.key[i] in common], int)) for one in them]
               for word, them in read.items()}  # fmt: skip
    subjects = next(iter(aligned.values()))[0].subject
    regression = setup.task.kind == "regression"

    def error_of(test):
        figure = main_figure(setup, test)
        return figure if regression else (lambda weights: 1 - figure(weights))

    errors = {}
    for word, them in aligned.items():
        found = task_figures.bootstrap.replicate([error_of(one) for one in them], subjects, replicates, seed)
        told = [one.told.get("train_patients") for one in read[word]]  # older files of networks lack it
        sizes = np.array([len(of_cell[word].patients[k]) if n is None else n for k, n in enumerate(told)], float)
        errors[word] = sizes, found
    # trained on nothing else: trees, or else the first network from scratch
    baselines = [word for word in errors if of_cell[word].model.kind in (TREES, "scratch")]
    against = TREES if TREES in errors else next(iter(baselines), "")
    counts = len(subjects), len(np.unique(subjects))
    return {
        word: Curve(sizes, found, _ratio(word, against, errors), against, *counts)
        for word, (sizes, found) in errors.items()
    }


def _ratio(word: str, against: str, errors: dict) -> LabelRatio | None:
    """None where too few sizes have an error."""
    if not against or word == against:
        return None
    both = []
    for sizes, found in (errors[word], errors[against]):
        known = ~np.isnan(found.point)
        if len(np.unique(sizes[known])) < 3:
            return None
        both += [sizes[known], Replicates(found.point[known], found.drawn[known])]
    return label_ratio(*both)
