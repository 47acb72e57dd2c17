"""A study: models x tasks x subsets of sensors. All that can be refused is refused before anything is trained."""

import contextlib
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from csfm_jax import tasks
from csfm_jax.config import Config
from csfm_jax.evaluation import cells, elsewhere, layers, sensors, study_models
from csfm_jax.evaluation.cell import NOT_FINISHED, Cell, Settings
from csfm_jax.evaluation.protocol import Recordings
from csfm_jax.evaluation.sensors import ALL, Sensors
from csfm_jax.evaluation.study_models import FINE_TUNED, Model
from csfm_jax.tasks.config import AdaptationConfig
from csfm_jax.tasks.resolve import Resolved, check_splits, cut, resolve, with_labels
from csfm_jax.tasks.task import Task
from csfm_jax.training.claim import Held, locked
from data_pipelines import storage
from data_pipelines.config import TokenConfig
from data_pipelines.errors import BadInput
from data_pipelines.store import Store

_SETTINGS = "study.json"
_PAUSE = 1.0  # seconds between looks at cells that other commands are at
_PROTOCOL = 1  # raised when the same words give other predictions; of a study that tells none, 1


@dataclass(frozen=True)
class TaskSetup:
    """A task in the study's stores.

    Attributes:
        task, resolved: and its labels there. stores: those of the study's that have its labels.
        subsets: of sensors, "all" first. absent: those that no recording has. same: those that let in the same channels
            of these recordings as a subset before, which is named.
        elsewhere: the other stores that have its labels. unlabelled: names of those that have not.
    """

    task: Task
    resolved: Resolved
    stores: list[Store]
    subsets: list[Sensors]
    absent: list[str]
    same: dict[str, str]
    elsewhere: tuple[Store, ...] = ()
    unlabelled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """Models x tasks.

    Attributes:
        settings: of all. tasks, models: in the order in which they were named. cells: of every task in turn.
        pair: words of two models whose layers are compared, or None. folder: the study's own.
        folds: how many its predictions are pooled of, see `study_folds`; 0 = none.
    """

    settings: Settings
    tasks: list[TaskSetup]
    models: list[Model]
    cells: list[Cell]
    pair: tuple[str, str] | None
    folder: Path
    folds: int = 0

    def of(self, task: str) -> list[Cell]:
        """A task's cells, in the order of the models."""
        return [cell for cell in self.cells if cell.task.name == task]

    @property
    def failures(self) -> dict[tuple[str, str], str]:
        """(task, model) -> reason."""
        return {(cell.task.name, cell.model.word): why for cell in self.cells if (why := cell.failure)}


def plan(
    settings: Settings, task_words: str, model_words: str, sensor_words: str, pair_words: str | None, folder: Path
) -> Study:
    """The cells of a study; nothing is trained or predicted.

    Args:
        task_words, model_words, sensor_words: as on the command line, separated by commas.
        pair_words: two of the models, or None. folder: the study's own.

    Raises:
        BadInput: what cannot be: an unknown task, model or sensor; a task whose sensors or labels the stores lack; a
            patient in two splits; a checkpoint of another preprocessing; a study with other settings in the folder.
    """
    named = [word.strip() for word in task_words.split(",") if word.strip()]
    if not named or len(set(named)) < len(named):
        found = "a task given twice" if named else "none"
        raise BadInput("--tasks", found, "one task or more, each once", "correct the list")
    found = [tasks.get(name) for name in named]
    everywhere = [*settings.stores, *settings.elsewhere]
    check_splits(Recordings.whole(everywhere))
    models = study_models.parse(model_words, everywhere, settings.overrides)
    _check_halved(settings, models)
    setups = [_setup(task, settings, sensor_words) for task in found]
    _check_sensors(sensor_words, setups)
    made = [
        Cell(_of_task(settings, s), s.task, model, s.resolved, s.subsets, cells / model.folder)
        for s in setups
        for cells in [folder / "cells" / study_models.folder_name(s.task.name, s.task.name)]
        for model in models
        if model.kind != "given" or model.config.adaptation.task == s.task.name
    ]
    for model in models:
        mine = [cell for cell in made if cell.model is model]
        if not mine:
            taught = model.config.adaptation.task
            raise BadInput(f"--models={model.word}", f"a model of the task {taught}", "one of --tasks", "add the task")
        for cell in mine if model.kind in FINE_TUNED else ():
            _check_fold(cell.config.data.fold, settings.stores)  # the config refuses an override that none has
    pair = _pair(models, pair_words)
    check_same(settings, folder)
    keep_settings(settings, folder)
    return Study(settings, setups, models, made, pair, folder)


def _of_task(settings: Settings, setup: TaskSetup) -> Settings:
    """The settings with the stores that the task reads, as it reads them."""
    where = settings.where
    if len(setup.stores) < len(settings.stores):
        where = ",".join(str(store.path) for store in setup.stores)
    stores = cut(setup.task, setup.stores)
    return dataclasses.replace(settings, where=where, stores=stores, elsewhere=setup.elsewhere)


def _check_fold(fold: str, stores: list[Store]) -> None:
    """What is taught on one fold and read on another has seen whom it is tested on."""
    if fold != (ours := str(stores[0].fold or "")):
        expected = f"that of the study, {ours}" if ours else "none: the study's stores are read as they were prepared"
        raise BadInput("config.data.fold", fold or "none", expected, "leave it out; --folds takes each in turn")


def _check_halved(settings: Settings, models: list[Model]) -> None:
    taught = [m.word for m in models if m.kind in FINE_TUNED]
    if strange := sorted({*settings.halved} - {*taught}):
        expected = "some of --models that are fine-tuned here: " + (", ".join(taught) or "there is none")
        raise BadInput(f"--label-networks={strange[0]}", "none of them", expected, "correct it")
    if settings.halved and not settings.halvings:
        raise BadInput("--label-networks", "models without fractions", "--label-fractions=1/2 or less", "add it")


def _setup(task: Task, settings: Settings, sensor_words: str) -> TaskSetup:
    reads_all = Config(tokens=TokenConfig(modalities=task.sensors), adaptation=AdaptationConfig(task=task.name))
    stores = with_labels(task, settings.stores)
    resolved = resolve(reads_all, stores)
    for split in ("validation", "test"):
        if not resolved.recordings[split]:
            found, expected = f"no {split} recording with its labels", "train, validation and test subjects"
            raise BadInput(f"task {task.name}", found, expected, "use stores whose splits hold all three")
    subsets = sensors.parse(sensor_words, task)
    if task.kind == "signal" and len(subsets) > 1:
        expected = f"all: what {task.name} reads is part of the task"
        raise BadInput(f"--sensors={subsets[1].word}", "a subset", expected, "leave it out, or study the task alone")
    held, first, absent, same = sensors.held(stores), {}, [], {}
    for subset in subsets:
        channels = subset.channels & held
        if not channels and subset.word != ALL:
            absent.append(subset.word)
        elif (before := first.setdefault(channels, subset)) is not subset:
            same[subset.word] = before.word
    others = elsewhere.labelled(settings.elsewhere, task, resolved.labels)
    unlabelled = tuple(s.name for s in settings.elsewhere if s.name not in {other.name for other in others})
    return TaskSetup(task, resolved, stores, list(first.values()), absent, same, others, unlabelled)


def _check_sensors(words: str, setups: list[TaskSetup]) -> None:
    nowhere = set.intersection(*(set(setup.absent) for setup in setups))
    if nowhere:
        found, expected = "sensors that no recording of any task has", "some that one has"
        raise BadInput(f"--sensors={min(nowhere)}", found, expected, "leave it out, or name other stores or tasks")


def _pair(models: list[Model], words: str | None) -> tuple[str, str] | None:
    if words is None:
        return None
    named = tuple(word.strip() for word in words.split(","))
    layered = [m.word for m in models if m.config is not None and m.config.backbone.name == "transformer"]
    if len(named) != 2 or not set(named) <= set(layered):
        expected = "two of --models that are transformers: " + (", ".join(layered) or "there is none")
        raise BadInput(f"--similarity={words}", "something else", expected, "correct it")
    return named


def check_same(settings: Settings, folder: Path, **more) -> None:
    """A study goes on with the settings that it began with; models, tasks and sensors may be added.

    Args:
        folder: the study's, where its settings are kept. more: plain values that decide, too.

    Raises:
        BadInput: another study is there.
    """
    path, told = folder / _SETTINGS, _told(settings, more)
    before = {"protocol": 1} | json.loads(path.read_text()) if path.is_file() else told
    if differing := [name for name in {**told, **before} if before.get(name) != told.get(name)]:
        found = f"a study with other {' and '.join(differing)}"
        raise BadInput(str(folder), found, "those it began with", "choose another --workdir for another study")


def keep_settings(settings: Settings, folder: Path, **more) -> None:
    """Writes what `check_same` compares, where nothing is yet; arguments as there."""
    if not (folder / _SETTINGS).is_file():
        storage.write_bytes(folder / _SETTINGS, (json.dumps(_told(settings, more), indent=1) + "\n").encode())


def _told(settings: Settings, more: dict) -> dict:
    stores = {store.name: store.digest for store in settings.stores}
    more |= {"recipe": sorted(settings.recipe)} if settings.recipe else {}
    told = {"stores": stores, "overrides": sorted(settings.overrides), "seed": settings.seed}
    return {"protocol": _PROTOCOL, **told, **more}


def run(studies: list[Study]) -> None:
    """Runs every cell that is not complete, one after another.

    The same command may run several times at once, on hosts that share the folder and its locks: each takes cells that
    no other is at, then waits for those of the others, and goes on with what a command that ended has left.

    Args:
        studies: one, or one a fold.

    Raises:
        cells.Stopped: a signal ended a fine-tuning.
    """
    every = []
    for study in studies:
        fold = study.settings.stores[0].fold
        for number, cell in enumerate(study.cells, 1):
            told = f"== {number} of {len(study.cells)}: {cell.task.name}, {cell.model.word}"
            every.append((cell, told + (f", fold {fold}" if fold else ""), cell.written))
    others = [one for one in every if not _run(*one)]
    if others:
        print(f"waiting until {len(others)} left to other commands have been run", flush=True)
    while others := [one for one in others if not _run(*one, met=True)]:
        time.sleep(_PAUSE)


def _run(cell: Cell, told: str, written: int, met: bool = False) -> bool:
    """Whether it has been run, by this command or another; False where another is at it.

    Args:
        told: which it is. written: `Cell.written` as the command began. met: whether it was left to another before.
    """
    if not met:
        print(told, flush=True)
    cell.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as mine:
        try:
            mine.enter_context(locked(cell.folder, patience=0))
        except Held as held:
            if not met:
                print(f"  left to another command: found {held.found}", flush=True)
            return False
        # what another command has failed at since would fail again, but for what may be its machine's fault
        if cell.written in (0, written) or cell.failure in (None, NOT_FINISHED) or "broke" in cell.status:
            try:
                cells.run(cell)
            except BadInput as error:  # other weights: what lies there stays
                cell.note(cell.status | {"failed": str(error)})
    if why := cell.failure:
        print(f"{told}\n  failed: {why}" if met else f"  failed: {why}", flush=True)
    return True


def alike(study: Study) -> dict[str, np.ndarray]:
    """task -> linear CKA [layers of the first, layers of the second] on test windows, where both cells are complete and
    their weights still there."""
    found: dict[str, np.ndarray] = {}
    for setup in study.tasks if study.pair else ():
        both = [cell for word in study.pair for cell in study.of(setup.task.name) if cell.model.word == word]
        if len(both) == 2 and not any(cell.status["failed"] for cell in both):
            stores = sensors.seen(both[0].settings.stores, setup.subsets[0])
            try:
                one = dataclasses.replace(both[0].window, crops=0, most_per_recording=1)  # crops that overlap are alike
                values = layers.compare(*(cell.network() for cell in both), stores, one)
            except BadInput as error:
                print(f"{setup.task.name}: no layers are compared: {error}", flush=True)
                continue
            found |= {} if values is None else {setup.task.name: values}
    return found
