"""A study in folds of patients: one study a fold, then one whose predictions are those of all folds' test patients.

Every patient is a test patient once, of models that have learned and chosen without any of this patient's recordings.
Scores of different folds' models stand side by side in one ranking. Thresholds and temperatures belong to one model
each, so that a pooled table has no figure that needs them: its files of validation predictions are empty.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from csfm_jax.evaluation import cells, prediction_files
from csfm_jax.evaluation.cells import Cell, Settings
from csfm_jax.evaluation.study import Study, TaskSetup, check_same
from csfm_jax.tasks.resolve import Resolved
from data_pipelines.folds import Fold


def settings_of(settings: Settings, fold: Fold) -> Settings:
    """The settings with the stores on a fold, which the fine-tunings are told."""
    stores = [store.on_fold(fold) for store in settings.stores]
    return dataclasses.replace(settings, stores=stores, overrides=[*settings.overrides, f"--config.data.fold={fold}"])


def plan(settings: Settings, of: int, plan_one: Callable[[Settings, Path], Study], folder: Path) -> list[Study]:
    """One study a fold, in FOLDER/fold-K-of-N; nothing is trained. plan_one: `study.plan` but for these two.

    Raises:
        BadInput: as `study.plan`.
    """
    check_same(settings, folder, folds=of)
    folds = [Fold(number, of) for number in range(1, of + 1)]
    return [plan_one(settings_of(settings, fold), folder / f"fold-{fold.number}-of-{of}") for fold in folds]


def pool(studies: list[Study], folder: Path) -> Study:
    """The study of all folds' test predictions, which are written to FOLDER/pooled.

    Args:
        studies: one a fold, run. A model that failed in one of them has failed.
    """
    first = studies[0]
    setups = [_setup([study.tasks[i] for study in studies]) for i in range(len(first.tasks))]
    resolved = {setup.task.name: setup.resolved for setup in setups}
    made = []
    for number, cell in enumerate(first.cells):
        target = folder / "pooled" / cell.task.name / cell.model.folder
        made.append(dataclasses.replace(cell, resolved=resolved[cell.task.name], folder=target))
        _pool(made[-1], [study.cells[number] for study in studies])
    return dataclasses.replace(first, tasks=setups, cells=made, pair=None, folder=folder, folds=len(studies))


def _setup(of_folds: list[TaskSetup]) -> TaskSetup:
    """The labels that every fold can learn; the others, each with the fold that cannot."""
    first = of_folds[0].resolved
    left_out = {}
    for number, setup in enumerate(of_folds, 1):
        for label, why in setup.resolved.left_out.items():
            left_out.setdefault(label, f"fold {number} of {len(of_folds)}: {why}")
    kept = [i for i, label in enumerate(first.labels) if label not in left_out]
    columns = {name: tuple(getattr(first, name)[i] for i in kept if getattr(first, name))
               for name in ("labels", "mean", "scale", "positive_weight")}  # fmt: skip
    recordings = {"test": sum(setup.resolved.recordings["test"] for setup in of_folds)}
    return dataclasses.replace(of_folds[0], resolved=Resolved(left_out=left_out, recordings=recordings, **columns))


def _pool(whole: Cell, of_folds: list[Cell]) -> None:
    """Writes a cell's predictions: of test patients those of all folds, of validation patients none."""
    failed = [f"fold {i} of {len(of_folds)}: {why}" for i, cell in enumerate(of_folds, 1)
              if (why := cell.status.get("failed", "not run")) is not None]  # fmt: skip
    left_out = {word: why for cell in of_folds for word, why in cell.status.get("left_out", {}).items()}
    if not failed:
        for file in sorted((of_folds[0].folder / "predictions").glob("*.parquet")):
            parts = [cell.folder / "predictions" / file.name for cell in of_folds]
            if all(part.exists() for part in parts):
                rows = None if not file.name.endswith(".validation.parquet") else 0
                prediction_files.join(parts, whole.folder / "predictions" / file.name, rows)
    cells.note(whole, {"weights": whole.model.identity, "left_out": left_out, "failed": failed[0] if failed else None})
