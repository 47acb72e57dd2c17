"""A task meets stores: which sensors are read, which labels are there and can be learned, and their statistics."""

import dataclasses
import fnmatch
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from csfm_jax import tasks
from csfm_jax.evaluation import label_budget
from csfm_jax.evaluation.protocol import Recordings
from csfm_jax.tasks import own, resolve_signals
from csfm_jax.tasks.task import Task
from data_pipelines.batch import MODALITY_OF
from data_pipelines.config import TokenConfig
from data_pipelines.errors import BadInput
from data_pipelines.preprocess import INVALID
from data_pipelines.signals import MODALITIES
from data_pipelines.store import Store
from data_pipelines.store_format import CHUNK_SECONDS
from data_pipelines.stretches import Stretches, is_cut
from data_pipelines.windows import used_channels

if TYPE_CHECKING:
    from csfm_jax.config import Config


class Resolved(NamedTuple):
    """What stores say about a task's labels.

    Attributes:
        labels: those that are trained, in the order of the outputs; of a signal task, channels. left_out: name -> why,
            of the others.
        mean, scale: of a regression's labels, or of such channels' samples, among train recordings; empty otherwise.
        positive_weight: negatives by positives of every label among train recordings, of "multilabel"; else empty.
        recordings: split -> recordings with one of the labels at least.
    """

    labels: tuple[str, ...]
    left_out: dict[str, str]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    positive_weight: tuple[float, ...]
    recordings: dict[str, int]

    def adapted(self, config: "Config") -> "Config":
        """The config with what was found in its `adaptation`."""
        found = {name: getattr(self, name) for name in ("labels", "mean", "scale", "positive_weight")}
        return dataclasses.replace(config, adaptation=dataclasses.replace(config.adaptation, **found))


def read_tokens(config: "Config") -> TokenConfig:
    """What is read of the stores for the config's task: its sensors, and no report, which would tell the labels.

    In pretraining (no task) the config's own tokens.
    """
    if not config.adaptation.task:
        return config.tokens
    sensors = tasks.get(config.adaptation.task).sensors
    kept = tuple(name for name in config.tokens.modalities if name in sensors)
    return dataclasses.replace(config.tokens, modalities=kept, text_length=0)


def read_stores(config: "Config", stores: list) -> list:
    """The stores as the config's task reads them: of signals, as `Pairs`; of a sequence, as `Stretches`."""
    task = tasks.get(config.adaptation.task) if config.adaptation.task else None
    if task is not None and task.kind == "signal":
        return resolve_signals.pairs(config, task, read_tokens(config), stores)
    return stores if task is None else cut(task, stores)


def cut(task: Task, stores: list) -> list:
    """The stores as stretches of a sequence's; of other tasks, as they are.

    Raises:
        BadInput: no store holds an event of the task's codes.
    """
    if task.cut is None:
        return stores
    made = [store if is_cut(store) else Stretches(store, task.cut) for store in stores]
    if not any(len(store.index) for store in made):
        codes = ", ".join(code for code, name in task.cut.classes if name)
        found = f"no event whose stretch of {task.cut.seconds:g} s lies in its recording"
        expected = f"events of {task.name}: {codes}"
        raise BadInput("--store", found, expected, "prepare the store from files that have annotations")
    return made


def resolve(config: "Config", stores: list[Store]) -> Resolved:
    """Finds the labels of the config's task in stores.

    Raises:
        BadInput: the model or the stores lack the task's sensors or labels, a subject is in two splits, train subjects
            have no label that can be learned, or no sample is valid where they have one; each by name.
    """
    task = tasks.get(config.adaptation.task)
    stores = [store for store in stores if config.data.weights.get(store.name, 1.0) > 0]  # the others are not read
    stores = cut(task, stores)
    _check_sensors(task, config, stores)
    everyone = Recordings.whole(stores)
    check_splits(everyone)
    if task.kind == "signal":
        return resolve_signals.resolve(config, task, read_tokens(config), stores)
    names = _names(task, everyone)
    labels = np.stack([everyone.labels[name] for name in names], axis=1).astype(np.float64)
    train = labels[everyone.split == 0]
    absent = [name for name in task.labels if "*" not in name and name not in names]
    left_out = dict.fromkeys(absent, "no label of these stores") | _unlearnable(task, names, labels, train)
    if left_out and (task.kind == "survival" or set(names) <= left_out.keys()):
        found = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise BadInput(f"--task={task.name}", found, "train subjects with labels that differ", "use other stores")
    kept = [i for i, name in enumerate(names) if name not in left_out]
    if task.kind == "multiclass" and len(kept) < 2:
        raise BadInput(f"--task={task.name}", "one class among train subjects", "two or more", "use other stores")
    kept_names = tuple(names[i] for i in kept)
    learned = train[:, kept][_learned(config, stores, kept_names, everyone)]
    mean, scale, weight = _statistics(task, learned, train[:, kept])
    known = ~np.isnan(labels[:, kept]).all(axis=1)
    _check_signals(task, config, stores, known & (everyone.split == 0))
    counts = {s: int((known & (everyone.split == i)).sum()) for i, s in enumerate(("train", "validation", "test"))}
    return Resolved(kept_names, left_out, mean, scale, weight, counts)


def _learned(config: "Config", stores, labels: tuple[str, ...], everyone: Recordings) -> np.ndarray:
    """bool [train recordings]: which of them are learned from."""
    adaptation = dataclasses.replace(config.adaptation, labels=labels)
    among = label_budget.among(dataclasses.replace(config, adaptation=adaptation), stores)
    train = everyone.split == 0
    return np.ones(train.sum(), bool) if among is None else np.concatenate(among)[train]


def _statistics(task: Task, learned: np.ndarray, train: np.ndarray) -> tuple[tuple, tuple, tuple]:
    """Mean, scale and weight of positives of the labels; of a label whose values do not differ among the few that are
    learned from, those of all train recordings."""
    columns = [some if len(np.unique(some[~np.isnan(some)])) > 1 else every for some, every in zip(learned.T, train.T)]
    mean = scale = weight = ()
    if task.kind == "regression":
        mean = tuple(float(np.nanmean(column)) for column in columns)
        scale = tuple(float(np.nanstd(column)) for column in columns)
    if task.kind == "multilabel":
        weight = tuple(float((column == 0).sum() / (column == 1).sum()) for column in columns)
    return mean, scale, weight


def _check_sensors(task: Task, config: "Config", stores: list[Store]) -> None:
    tokens = read_tokens(config)
    if not tokens.modalities:
        expected = "one of those that the model knows: " + ", ".join(config.tokens.modalities)
        raise BadInput(f"--task={task.name}", f"sensors {', '.join(task.sensors)}", expected, "use another checkpoint")
    if tokens.layout == "frame" and tokens.modalities != config.tokens.modalities:
        found = f"{', '.join(config.tokens.modalities)}, in frames of all their channels"
        raise BadInput(
            "config.tokens.modalities", found, ", ".join(tokens.modalities) + f", as {task.name} reads", "set it"
        )
    wanted = used_channels(tokens)
    there = {c for store in stores for channels in store.index.channel_sets for c in channels}
    if not any(wanted[c] for c in there):
        names = tuple(MODALITIES)
        held = sorted({names[MODALITY_OF[c]] for c in there})
        expected = f"one of {', '.join(tokens.modalities)}, which {task.name} reads"
        raise BadInput("--store", f"no such sensor, only {', '.join(held) or 'none'}", expected, "use other stores")


def _check_signals(task: Task, config: "Config", stores: list[Store], learned: np.ndarray) -> None:
    """Refuses stores without a valid sample where the task reads; the first recording that has one ends the search.

    Args:
        learned: bool, of the recordings of all stores, which ones teach.
    """
    wanted = used_channels(read_tokens(config))
    ends = np.cumsum([len(store.index) for store in stores])
    for store, mine in zip(stores, np.split(learned, ends[:-1])):
        for recording in np.flatnonzero(mine):
            last = int(store.index.milliseconds[recording]) / 1000
            last = min(last, task.end) if task.end else last
            for start in np.arange(task.begin, last - 0.5, CHUNK_SECONDS):  # less than that holds no window
                read = store.read_window(int(recording), float(start), min(CHUNK_SECONDS, last - float(start)))
                if any(wanted[channel] and (samples != INVALID).any() for channel, samples in read):
                    return
    where = f" between {task.begin:g} and {task.end:g} s" if task.end else ""
    found = f"no valid sample{where} in {learned.sum()} labelled train recordings"
    expected = f"signals of {', '.join(read_tokens(config).modalities)}, which {task.name} reads"
    raise BadInput("--store", found, expected, "look at them with csfm data report, and prepare them again")


def check_splits(everyone: Recordings) -> None:
    """Refuses a subject in more than one split, of one store or of several."""
    pairs = np.unique(np.stack([everyone.subject, everyone.split.astype("S1")], axis=1), axis=0)
    if twice := len(pairs) - len(np.unique(everyone.subject)):
        found = f"{twice} subjects in more than one split"
        raise BadInput("--store", found, "every subject in one", "prepare the stores with splits by subject")


def with_labels(task: Task, stores: list[Store]) -> list[Store]:
    """The stores in which a recording has one of the task's labels, or a stretch to be labelled; all of them where none
    has, which `resolve` refuses by name, and of a task of signals."""
    if task.kind == "signal":
        return stores
    if task.cut is not None:
        return [s for s in stores if len((s if is_cut(s) else Stretches(s, task.cut)).index)] or stores
    tables = [store.labels() for store in stores]
    names = [{name for pattern in task.labels for name in _matching(table, pattern)} for table in tables]
    labelled = [any((~np.isnan(table[n])).any() for n in mine) for table, mine in zip(tables, names)]
    return [store for store, holds in zip(stores, labelled) if holds] or stores


def _matching(labels, pattern: str) -> list[str]:
    # "PRC(S)" and the like are names, not patterns
    return [pattern] if pattern in labels else sorted(fnmatch.filter(labels, pattern))


def _names(task: Task, everyone: Recordings) -> list[str]:
    names = []
    for pattern in task.labels:
        found = _matching(everyone.labels, pattern)
        names += [name for name in found if name not in names]
        if not found and (task.kind == "survival" or "*" in pattern or own.MARK in task.name):  # a slip of the pen
            raise _no_label(task, pattern, everyone)
    if not names:
        raise _no_label(task, ", ".join(task.labels), everyone)
    return names


def _no_label(task: Task, wanted: str, everyone: Recordings) -> BadInput:
    there = sorted({name.split("/")[0] + ("/*" if "/" in name else "") for name in everyone.labels})
    found = "labels " + ", ".join(there) if there else "no labels"
    return BadInput("--store", found, f"{wanted}, which {task.name} needs", "use stores that hold them")


def _unlearnable(task: Task, names: list[str], labels: np.ndarray, train: np.ndarray) -> dict[str, str]:
    left_out = {}
    for i, name in enumerate(names):
        known, values = (of[~np.isnan(of[:, i]), i] for of in (labels, train))
        is_time = task.kind == "survival" and i == 1
        if is_time and (known < 0).any():
            expected = f"times since the recording, for {task.name}"
            raise BadInput(f"label {name}", "times below 0", expected, "correct them")
        if task.kind != "regression" and not is_time and not np.isin(known, (0, 1)).all():
            found, remedy = "values other than 0 and 1", "correct the labels, or choose another task"
            raise BadInput(f"label {name}", found, f"classes, for {task.name}", remedy)
        if not len(values):
            left_out[name] = "no train recording with this label"
        elif task.kind == "regression" or is_time:
            if np.ptp(values) == 0:
                left_out[name] = "the same value in all train recordings"
        elif not (values == 1).any():
            left_out[name] = "no positive among train recordings"
        elif not (values == 0).any() and task.kind == "multilabel":
            left_out[name] = "no negative among train recordings"
    return left_out
