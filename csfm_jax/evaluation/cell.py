"""A cell of a study, a model on a task: what it reads, where its files lie, what became of it."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from csfm_jax import encoding
from csfm_jax.commands import finetune
from csfm_jax.config import Config
from csfm_jax.evaluation import elsewhere, label_budget, prediction_files
from csfm_jax.evaluation.predictions import Predictions
from csfm_jax.evaluation.sensors import ALL, Sensors
from csfm_jax.evaluation.study_models import FINE_TUNED, TABULAR, Model
from csfm_jax.loaded_encoder import LoadedEncoder
from csfm_jax.tasks.resolve import Resolved, read_tokens
from csfm_jax.tasks.task import Task
from csfm_jax.training import best
from data_pipelines import storage
from data_pipelines.config import WindowConfig
from data_pipelines.errors import BadInput
from data_pipelines.store import SPLITS as SPLITS_OF_STORES
from data_pipelines.store import Store
from data_pipelines.windows import used_channels

TRAINED, REFITTED = "trained", "refitted"  # how a subset of the sensors is read: weights as they are, or fitted again
SPLITS = ("validation", "test")
NOT_FINISHED = "not finished"  # the failure of a cell that a command is at, or that ended with its command
_STATUS = "cell.json"


@dataclass(frozen=True)
class Settings:
    """What all cells of a study share.

    Attributes:
        where: of the stores, as given; stores: opened. overrides: of the fine-tunings. seed: of random networks, trees
            and subsets. unchecked: whether test subjects need not be comparable with those of the pretraining.
        features: folder for those of recordings, which no split decides.
        halvings: of the train patients, for label efficiency; 0 = none. workers: processes that measure for trees.
        halved: words of networks that are taught again on fewer patients.
        elsewhere: other stores, whose test subjects all models are read on as they are.
        recipe: words of a recipe file, of all fine-tunings but those of supervised baselines.
    """

    where: str
    stores: list[Store]
    overrides: list[str]
    seed: int
    unchecked: bool
    features: Path
    halvings: int
    workers: int
    halved: tuple[str, ...] = ()
    elsewhere: tuple[Store, ...] = ()
    recipe: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """Attributes: task, model: what is judged. resolved: the task's labels in the stores. subsets: of sensors, "all"
    first. folder: its own."""

    settings: Settings
    task: Task
    model: Model
    resolved: Resolved
    subsets: list[Sensors]
    folder: Path

    def file(self, subset: Sensors, reading: str, split: str, halvings: int = 0) -> Path:
        """Where predictions lie; halvings: of the train patients that the model was fitted on."""
        of = f".half-{halvings}" if halvings else ""
        return self.folder / "predictions" / f"{subset.file}.{reading}{of}.{split.replace('/', '-')}.parquet"

    @cached_property
    def config(self) -> Config:
        """Of its `csfm finetune`, or of the windows that frozen encoders read, but for what stores decide."""
        model, settings, words, recipe = self.model, self.settings, [], ()
        if model.kind in FINE_TUNED:
            words, recipe = model.fine_tuning(settings.overrides), settings.recipe
        return finetune.recipe(model.config, self.task, settings.where, words, model.kind == "scratch", recipe)

    def missing(self, subset: Sensors) -> str | None:
        """Why the model cannot read these sensors in these stores; None where it can."""
        channels = self.channels(subset)
        for number, split in enumerate(("train", *SPLITS)):
            if not any(holds(store, channels)[store.index.split == number].any() for store in self.settings.stores):
                return f"no {split} recording with sensors that the model reads"
        return None

    def channels(self, subset: Sensors) -> frozenset[int]:
        """Those of the sensors that the model reads."""
        if self.model.config is None:
            return subset.channels
        tokens = self.model.config.tokens if self.model.kind == "given" else read_tokens(self.config)
        return subset.channels & set(np.flatnonzero(used_channels(tokens)).tolist())

    @property
    def elsewhere(self) -> dict[Path, Store]:
        """Other stores with test recordings of sensors that the model reads, by the file of its predictions there."""
        channels, number = self.channels(self.subsets[0]), SPLITS_OF_STORES.index("test")
        there = [s for s in self.settings.elsewhere if holds(s, channels)[s.index.split == number].any()]
        return {self.file(self.subsets[0], TRAINED, f"{elsewhere.HEAD}{s.name}-{s.digest[:8]}"): s for s in there}

    @cached_property
    def patients(self) -> list[np.ndarray]:
        """Whom it may learn from: all labelled train patients, and nested halves of them."""
        settings = self.settings
        return label_budget.patients(settings.stores, self.resolved.labels, self.task, settings.halvings, settings.seed)

    @property
    def halvings(self) -> int:
        """How often its train patients are halved."""
        fewer = self.model.kind in TABULAR or self.model.word in self.settings.halved
        return self.settings.halvings if fewer else 0

    @property
    def written(self) -> int:
        """When its status was written, in nanoseconds of its disk's clock; 0 = never."""
        path = self.folder / _STATUS
        return path.stat().st_mtime_ns if path.is_file() else 0

    @property
    def status(self) -> dict:
        """What was written of it: {"failed": reason or None, "left_out": {sensors: reason}, ...}; {} before.

        Where "unfinished" tells why something is missing, what it had before that was wanted stands. "broke" is there
        where an unexpected error ended it, as of a machine that is ill.
        """
        path = self.folder / _STATUS
        return json.loads(path.read_text()) if path.is_file() else {}

    @property
    def failure(self) -> str | None:
        """Why it has no predictions, or lacks some of those that are wanted; None of one that is complete."""
        status = self.status
        if failed := status.get("failed", "not run"):
            return failed
        there = [subset for subset in self.subsets if subset.word not in status["left_out"]]
        return status.get("unfinished", NOT_FINISHED) if self.wanted(there) else None

    def note(self, values: dict) -> None:
        """Writes cell.json, whole or not at all."""
        storage.write_bytes(self.folder / _STATUS, (json.dumps(values, indent=1) + "\n").encode())

    def wanted(self, subsets: list[Sensors]) -> list[Path]:
        """The files that are not there yet."""
        files = [self.file(s, TRAINED, split) for s in subsets for split in SPLITS]
        unread = self.status.get("unread", {})
        files += [file for file in self.elsewhere if file.name not in unread]
        if self.model.kind in TABULAR:
            files += [self.file(s, REFITTED, split) for s in subsets if s.word != ALL for split in SPLITS]
        files += [self.file(subsets[0], TRAINED, "test", k) for k in range(1, self.halvings + 1)]
        return [file for file in files if not file.exists()]

    def write(self, found: Predictions, stores: list[Store], target: Path, labels: tuple[str, ...], **more) -> None:
        """Writes predictions of some of the stores' recordings, with the model's identity and `more`.

        Raises:
            BadInput: a prediction is not a number, which no figure can be made of.
        """
        finite = np.isfinite(found.values).all(axis=1)  # of signals, sums that may hold no window
        if self.task.kind != "signal" and not finite.all():
            told = f"predictions of {np.count_nonzero(~finite):,} of {len(finite):,} recordings that are no numbers"
            raise BadInput(f"{self.model.word}, {self.task.name}", told, "numbers", "train it with a lower rate")
        told = {"task": self.task.name, "model": self.model.word, **self.model.identity, **more}
        prediction_files.write(found, self.task.outputs(labels), labels, told, stores, target)

    @property
    def window(self) -> WindowConfig:
        """The windows of a recording that frozen encoders read."""
        return self.task.crops_of(self.config.data.window)

    def network(self) -> LoadedEncoder:
        """The encoder of a complete cell, or of one that is frozen."""
        if self.model.kind == "random":
            spec = self.settings.stores[0].spec
            return encoding.random_encoder(self.model.config, self.settings.seed, spec)
        return encoding.load(self.place if self.model.kind in FINE_TUNED else self.model.source)

    @property
    def place(self) -> Path | str:
        """Where the weights of a complete cell of a fine-tuned network lie."""
        return self.model.source if self.model.kind == "given" else best.place(self.folder / "fine_tuning")


def holds(store: Store, channels: frozenset[int]) -> np.ndarray:
    """bool [recordings]: whether a recording has one of these channels."""
    sets = [not channels.isdisjoint(one) for one in store.index.channel_sets]
    return np.array(sets, bool)[store.index.channel_set]
