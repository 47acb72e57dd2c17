"""One cell of a study, a model on a task: taught where it is to be, then its predictions, each file once."""

import dataclasses
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import numpy as np

from csfm_jax import encoding
from csfm_jax.commands import finetune
from csfm_jax.config import Config
from csfm_jax.evaluation import features, label_budget, leakage, prediction_files, sensors, tabular
from csfm_jax.evaluation.fine_tuned import FineTuned
from csfm_jax.evaluation.predictions import Predictions
from csfm_jax.evaluation.sensors import ALL, Sensors
from csfm_jax.evaluation.study_models import FINE_TUNED, TABULAR, TREES, Model
from csfm_jax.loaded_encoder import LoadedEncoder
from csfm_jax.tasks.resolve import Resolved, read_tokens, resolve
from csfm_jax.tasks.task import Task
from csfm_jax.training import best
from data_pipelines.config import WindowConfig
from data_pipelines.errors import BadInput
from data_pipelines.store import SPLITS as SPLITS_OF_STORES
from data_pipelines.store import Store
from data_pipelines.store_view import ChannelsOf
from data_pipelines.windows import used_channels

TRAINED, REFITTED = "trained", "refitted"  # how a subset of the sensors is read: weights as they are, or fitted again
SPLITS = ("validation", "test")
ELSEWHERE = "elsewhere"  # in place of a split: the test subjects of stores that nothing was learned from
_MEASURED_SECONDS = 300.0  # of a recording, by trees, where the task sets no end


class Stopped(Exception):
    """A signal ended a fine-tuning; the same command goes on with it."""


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
        return self.folder / "predictions" / f"{subset.file}.{reading}{of}.{split}.parquet"

    @cached_property
    def config(self) -> Config:
        """Of its `csfm finetune`, or of the windows that frozen encoders read, but for what stores decide."""
        words = self.model.fine_tuning(self.settings.overrides) if self.model.kind in FINE_TUNED else []
        scratch = self.model.kind == "scratch"
        return finetune.recipe(self.model.config, self.task, self.settings.where, words, scratch)

    def missing(self, subset: Sensors) -> str | None:
        """Why the model cannot read these sensors in these stores; None where it can."""
        channels = self._channels(subset)
        for number, split in enumerate(("train", *SPLITS)):
            if not any(_holds(store, channels)[store.index.split == number].any() for store in self.settings.stores):
                return f"no {split} recording with sensors that the model reads"
        return None

    def _channels(self, subset: Sensors) -> frozenset[int]:
        """Those of the sensors that the model reads."""
        if self.model.config is None:
            return subset.channels
        tokens = self.model.config.tokens if self.model.kind == "given" else read_tokens(self.config)
        return subset.channels & set(np.flatnonzero(used_channels(tokens)).tolist())

    def parts(self, subset: Sensors) -> dict[str, tuple[list[Store], str]]:
        """What is predicted with some sensors: name of a file -> stores and their split."""
        parts = {split: (self.settings.stores, split) for split in SPLITS}
        channels, number = self._channels(subset), SPLITS_OF_STORES.index("test")
        others = [s for s in self.settings.elsewhere if _holds(s, channels)[s.index.split == number].any()]
        return parts | ({ELSEWHERE: (others, "test")} if others and subset.word == ALL else {})

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
    def status(self) -> dict:
        """What was written of it: {"failed": reason or None, "left_out": {sensors: reason}, ...}; {} before."""
        path = self.folder / "cell.json"
        return json.loads(path.read_text()) if path.is_file() else {}


def _holds(store: Store, channels) -> np.ndarray:
    sets = [not channels.isdisjoint(one) for one in store.index.channel_sets]
    return np.array(sets, bool)[store.index.channel_set]


def run(cell: Cell) -> None:
    """Makes what is missing of a cell's predictions, and writes down how that went.

    Raises:
        BadInput: predictions of other weights than the model's are there. Stopped: see there.
    """
    identity, before = cell.model.identity, cell.status
    if before and before["weights"] != identity:
        found = f"predictions of other weights of {cell.model.word} (step {before['weights'].get('step')})"
        expected = f"those of step {identity.get('step')}"
        raise BadInput(str(cell.folder), found, expected, "remove the folder, or choose another --workdir")
    left_out = {s.word: why for s in cell.subsets if (why := cell.missing(s))}
    there = [s for s in cell.subsets if s.word not in left_out]
    began, told = time.time(), {"weights": identity, "left_out": left_out}
    if ALL in left_out:
        note(cell, told | {"failed": left_out[ALL]})
        return
    if before and before["failed"] is None and not _wanted(cell, there):
        return
    try:
        if cell.model.provenance:
            everywhere = [*cell.settings.stores, *cell.settings.elsewhere]
            leakage.check(everywhere, cell.model.provenance, cell.settings.unchecked, cell.model.word)
        make = _table_files if cell.model.kind in TABULAR else _network_files
        make(cell, there)
        note(cell, told | {"failed": None, "seconds": round(time.time() - began, 1)})
    except BadInput as error:
        note(cell, told | {"failed": str(error)})
    except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        # its text may name anything; the place in the code goes to the terminal, and the others go on
        sys.excepthook(*sys.exc_info())
        note(cell, told | {"failed": f"{type(error).__name__}, see the output of the command"})


def note(cell: Cell, values: dict) -> None:
    """Writes cell.json, whole or not at all."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    partial = cell.folder / ".cell.json.partial"
    partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, cell.folder / "cell.json")


def _wanted(cell: Cell, subsets: list[Sensors]) -> list[Path]:
    """The files that are not there yet."""
    files = [cell.file(s, TRAINED, part) for s in subsets for part in cell.parts(s)]
    if cell.model.kind in TABULAR:
        files += [cell.file(s, REFITTED, split) for s in subsets if s.word != ALL for split in SPLITS]
    files += [cell.file(subsets[0], TRAINED, "test", k) for k in range(1, cell.halvings + 1)]
    return [file for file in files if not file.exists()]


def _write(cell: Cell, found: Predictions, stores: list[Store], target: Path, labels: tuple[str, ...], **more) -> None:
    told = {"task": cell.task.name, "model": cell.model.word, **cell.model.identity, **more}
    prediction_files.write(found, cell.task.outputs(labels), labels, told, stores, target)


def _network_files(cell: Cell, subsets: list[Sensors]) -> None:
    """Predictions of a fine-tuned network, the same weights for every subset of sensors."""
    model = FineTuned.load(_taught(cell))
    for subset in subsets:
        _predict(cell, model, subset, cell.parts(subset))
    for k in range(1, cell.halvings + 1):
        if not cell.file(subsets[0], TRAINED, "test", k).exists():
            of_test = {"test": (cell.settings.stores, "test")}
            _predict(cell, FineTuned.load(_taught(cell, k)), subsets[0], of_test, k)


def _predict(cell: Cell, model: FineTuned, subset: Sensors, parts: dict, halvings: int = 0) -> None:
    labels = model.config.adaptation.labels
    # of a network that was taught elsewhere nobody knows on whom
    told = {"train_patients": len(cell.patients[halvings])} if cell.model.kind != "given" else {}
    for part, (stores, split) in parts.items():
        target = cell.file(subset, TRAINED, part, halvings)
        if not target.exists():
            found = model.predict(sensors.seen(stores, subset), split)
            _write(cell, found, stores, target, labels, **told)


def _taught(cell: Cell, halvings: int = 0) -> Path | str:
    """Where the fine-tuned network lies, once `csfm finetune` is through with it; halvings: of its train patients."""
    if cell.model.kind == "given":
        return cell.model.source
    config, workdir = cell.config, cell.folder / "fine_tuning"
    if halvings:
        ours = dataclasses.replace(config.adaptation, halvings=halvings, halvings_seed=cell.settings.seed)
        config, workdir = dataclasses.replace(config, adaptation=ours), cell.folder / f"fine_tuning.half-{halvings}"
    resolved = resolve(config, cell.settings.stores)
    config = finetune.with_rows(resolved.adapted(config), cell.settings.stores)
    from csfm_jax.training.loop import train

    init, command = cell.model.init, shlex.join(["csfm", *sys.argv[1:]])
    last = train(config, workdir, init=init, command=command)
    jax.clear_caches()  # of many networks one after another
    if last < config.training.steps:
        raise Stopped
    return best.place(workdir)


def _table_files(cell: Cell, subsets: list[Sensors]) -> None:
    """Predictions of probes or trees: read as fitted on all sensors, fitted again, and fitted on fewer patients."""
    if not _wanted(cell, subsets):
        return
    fit = tabular.boosted(cell.task, cell.settings.seed) if cell.model.kind == TREES else tabular.linear(cell.task)
    stores, labels = cell.settings.stores, cell.resolved.labels
    known = [tabular.Known.of(t, stores, labels) for t in _tables(cell, subsets, stores)]
    others, _ = cell.parts(subsets[0]).get(ELSEWHERE, ([], ""))
    asked = [tabular.Known.of(t, others, labels) for t in _tables(cell, subsets[: bool(others)], others, "test")]
    whole = known[0]
    if not all(len(one.labelled(0)) for one in known):
        expected = "some, with every subset of the sensors"
        raise BadInput(f"task {cell.task.name}", "no labelled train recording", expected, "use fewer --sensors")
    fractions = tabular.train_subsets(whole, cell.patients)

    def write(pair, subset, reading, k=0):
        for split, found in zip(SPLITS, pair):
            if not k or split == "test":
                target = cell.file(subset, reading, split, k)
                number = len(np.unique(whole.subject[fractions[k]]))
                _write(cell, found, stores, target, labels, train_patients=number)

    fitted = tabular.fitted(fit, whole, [*known, *asked])
    for subset, pair in zip(subsets, fitted):
        write(pair, subset, TRAINED)
    for _, found in fitted[len(known) :]:
        _write(cell, found, others, cell.file(subsets[0], TRAINED, ELSEWHERE), labels)
    for subset, one in zip(subsets[1:], known[1:]):
        write(tabular.fitted(fit, one, [one])[0], subset, REFITTED)
    for k, rows in enumerate(fractions[1:], 1):
        write(tabular.fitted(fit, whole, [whole], rows)[0], subsets[0], TRAINED, k)


def _tables(
    cell: Cell, subsets: list[Sensors], stores: list[Store], split: str | None = None
) -> Iterator[tabular.Table]:
    """The features of every subset of the sensors, in order; made once for all tasks that read the same windows.

    Args: stores, split: whose recordings are measured, all of them or one split's.
    """
    encoder = None
    for subset in subsets:
        target = _features_file(cell, subset, stores, split)
        if not target.exists():
            seen = sensors.seen(stores, subset, split)
            if cell.model.kind == TREES:
                _keep(_classical(cell, seen), target)
            else:
                encoder = encoder or network(cell)
                found = features.recording_features(encoder, seen, window(cell))
                _keep(tabular.Table(found.store, found.recording, found.windows, found.pooled), target)
        with np.load(target) as kept:
            yield tabular.Table(*(kept[name] for name in tabular.Table._fields))


def _features_file(cell: Cell, subset: Sensors, stores: list[Store], split: str | None) -> Path:
    task = cell.task
    read = [task.begin, task.end] if cell.model.kind == TREES else dataclasses.asdict(window(cell))
    decides = [cell.model.identity, sorted(subset.channels), read]
    decides += [] if task.cut is None else [dataclasses.asdict(task.cut)]
    decides += [split, [store.digest for store in stores]] if split else []  # the study's own stores do not change
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    return cell.settings.features / cell.model.folder / f"{subset.file}-{digest}.npz"


def _keep(table: tabular.Table, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    with open(partial, "wb") as file:
        np.savez(file, **table._asdict())
    os.replace(partial, target)


def window(cell: Cell) -> WindowConfig:
    """The windows of a recording that the task reads, at most its crops."""
    window = cell.config.data.window
    return dataclasses.replace(window, most_per_recording=cell.task.windows(window.seconds))


def network(cell: Cell) -> LoadedEncoder:
    """The encoder of a complete cell, or of one that is frozen."""
    if cell.model.kind == "random":
        spec = cell.settings.stores[0].spec
        return encoding.random_encoder(cell.model.config, cell.settings.seed, spec)
    return encoding.load(place(cell) if cell.model.kind in FINE_TUNED else cell.model.source)


def place(cell: Cell) -> Path | str:
    """Where the weights of a complete cell of a fine-tuned network lie."""
    return cell.model.source if cell.model.kind == "given" else best.place(cell.folder / "fine_tuning")


def _classical(cell: Cell, stores: list[ChannelsOf]) -> tabular.Table:
    from csfm_jax.baselines.feature_table import feature_table

    task = cell.task
    seconds = task.end - task.begin if task.end else _MEASURED_SECONDS
    found = feature_table(stores, cell.settings.workers, seconds, task.begin)
    held = [_holds(store, store.channels) for store in stores]
    rows = np.flatnonzero(np.concatenate(held))
    return tabular.Table(found.store[rows], found.recording[rows], np.ones(len(rows), np.int64), found.values[rows])
