"""A study in folds of patients: one study a fold, then one of all folds' test patients.

Every patient is a test patient once, of models that have learned and chosen without any of this patient's recordings.
A figure is that of each fold's patients, at this fold's thresholds, averaged over folds (`task_figures.OverFolds`).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from csfm_jax.evaluation import prediction_files
from csfm_jax.evaluation.cell import Cell, Settings
from csfm_jax.evaluation.study import Study, TaskSetup, check_same, keep_settings
from csfm_jax.tasks.resolve import Resolved
from data_pipelines.errors import BadInput
from data_pipelines.folds import Fold


def settings_of(settings: Settings, fold: Fold) -> Settings:
    """The settings with the stores on a fold, which the fine-tunings are told."""
    stores = [store.on_fold(fold) for store in settings.stores]
    return dataclasses.replace(settings, stores=stores, overrides=[*settings.overrides, f"--config.data.fold={fold}"])


def plan(settings: Settings, of: int, plan_one: Callable[[Settings, Path], Study], folder: Path) -> list[Study]:
    """One study a fold, in FOLDER/fold-K-of-N; nothing is trained. plan_one: `study.plan` but for these two.

    Raises:
        BadInput: as `study.plan`, naming the fold; a task without a label that all folds can learn.
    """
    check_same(settings, folder, folds=of)
    planned = []
    for fold in (Fold(number, of) for number in range(1, of + 1)):
        try:
            planned.append(plan_one(settings_of(settings, fold), folder / f"fold-{fold.number}-of-{of}"))
        except BadInput as error:
            where, remedy = f"--folds={of}, fold {fold.number}: {error.where}", f"{error.remedy}; or use fewer folds"
            raise BadInput(where, error.found, error.expected, remedy) from error
    for setup in _setups(planned):
        if len(setup.resolved.labels) < (2 if setup.task.kind == "multiclass" else 1):
            found = "; ".join(f"{label}: {why}" for label, why in setup.resolved.left_out.items())
            raise BadInput(f"task {setup.task.name}", found, "labels that every fold can learn", "use fewer --folds")
    keep_settings(settings, folder, folds=of)
    return planned


def pool(studies: list[Study], folder: Path) -> Study:
    """The study of all folds' predictions, which are written to FOLDER/pooled.

    Args:
        studies: one a fold, run. A model that failed in one of them has failed.
    """
    first = studies[0]
    setups = _setups(studies)
    resolved = {setup.task.name: setup.resolved for setup in setups}
    made = []
    for number, cell in enumerate(first.cells):
        target = folder / "pooled" / cell.folder.parent.name / cell.folder.name
        made.append(dataclasses.replace(cell, resolved=resolved[cell.task.name], folder=target))
        _pool(made[-1], [study.cells[number] for study in studies])
    return dataclasses.replace(first, tasks=setups, cells=made, pair=None, folder=folder, folds=len(studies))


def _setups(studies: list[Study]) -> list[TaskSetup]:
    return [_setup(list(of_folds)) for of_folds in zip(*(study.tasks for study in studies))]


def _setup(of_folds: list[TaskSetup]) -> TaskSetup:
    """The labels that every fold can learn; the others, each with the fold that cannot."""
    first = of_folds[0].resolved
    left_out = {}
    for number, setup in enumerate(of_folds, 1):
        for label, why in setup.resolved.left_out.items():
            left_out.setdefault(label, f"fold {number} of {len(of_folds)}: {why}")
    kept = [i for i, label in enumerate(first.labels) if label not in left_out]
    labels = tuple(first.labels[i] for i in kept)
    columns = {"labels": labels}
    for name in ("mean", "scale", "positive_weight"):  # where the kind of task has them: means over folds
        each = [dict(zip(setup.resolved.labels, getattr(setup.resolved, name))) for setup in of_folds]
        columns[name] = tuple(sum(of[label] for of in each) / len(each) for label in labels if each[0])
    recordings = {"test": sum(setup.resolved.recordings["test"] for setup in of_folds)}
    return dataclasses.replace(of_folds[0], resolved=Resolved(left_out=left_out, recordings=recordings, **columns))


def _pool(whole: Cell, of_folds: list[Cell]) -> None:
    """Writes a cell's predictions: those of all folds, with the number of the fold."""
    told = [
        (f"fold {i} of {len(of_folds)}", cell.status or {"failed": "not run"}) for i, cell in enumerate(of_folds, 1)
    ]
    failed, unfinished = (
        [f"{fold}: {why}" for fold, status in told if (why := status.get(name))] for name in ("failed", "unfinished")
    )
    left_out = {word: why for cell in of_folds for word, why in cell.status.get("left_out", {}).items()}
    if not failed:
        try:
            for file in sorted((of_folds[0].folder / "predictions").glob("*.parquet")):
                parts = [cell.folder / "predictions" / file.name for cell in of_folds]
                if all(part.exists() for part in parts):
                    prediction_files.join(parts, whole.folder / "predictions" / file.name)
        except BadInput as error:
            failed = [str(error)]
    unchecked = sorted({name for cell in of_folds for name in cell.status.get("unchecked", [])})
    status = {"weights": whole.model.identity, "left_out": left_out, "unchecked": unchecked}
    status["last_step"] = any(cell.status.get("last_step") for cell in of_folds)
    status["failed"], status["unfinished"] = (next(iter(each), None) for each in (failed, unfinished))
    whole.note(status)
