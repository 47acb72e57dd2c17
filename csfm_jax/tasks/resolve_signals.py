"""A task of the kind "signal" meets stores: which channels are predicted there, and what their usual samples are."""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from csfm_jax.evaluation import label_budget
from csfm_jax.tasks.task import Task
from data_pipelines.batch import MODALITY_OF
from data_pipelines.config import TokenConfig
from data_pipelines.errors import BadInput
from data_pipelines.pairs import Asked, Pairs, channel_ids
from data_pipelines.preprocess import INVALID
from data_pipelines.signals import CHANNEL_ID, CHANNELS, MODALITIES, modality_of
from data_pipelines.windows import used_channels

if TYPE_CHECKING:
    from csfm_jax.config import Config
    from csfm_jax.tasks.resolve import Resolved

_WINDOWS = 256  # of a channel, whose usual mean and deviation are found
_LEAST = 10  # int16 counts: a deviation below is that of a sensor that lay on a table


class Sides(NamedTuple):
    """Channel ids that are given, and that are asked for, as far as a model's tokens know them."""

    given: frozenset[int]
    asked: frozenset[int]

    @classmethod
    def of(cls, task: Task, tokens: TokenConfig) -> "Sides":
        """Raises BadInput where a channel is on both sides and nothing is added to it, or the model knows no channel of
        a side."""
        given, asked = channel_ids(task.inputs), channel_ids(task.targets)
        if (both := sorted(given & asked)) and task.added is None:
            found = f"{CHANNELS[both[0]].name}, both an input and a target"
            raise BadInput(f"task {task.name}", found, "targets that are not given", "take it out of one, or add noise")
        known = frozenset(np.flatnonzero(used_channels(tokens)).tolist()) if tokens.modalities else frozenset()
        for side, words, channels in (("inputs", task.inputs, given), ("targets", task.targets, asked)):
            if not channels & known:
                expected = f"a model that knows the {side} of {task.name}: {', '.join(words)}"
                found = f"one of {', '.join(tokens.modalities) or 'none of its sensors'} alone"
                raise BadInput(f"--task={task.name}", found, expected, "use another checkpoint")
        return cls(given & known, asked & known)


def pairs(config: "Config", task: Task, tokens: TokenConfig, stores: list) -> list[Pairs]:
    """The stores as pairs of the task's inputs and the targets of `config.adaptation`; `tokens`: what is read."""
    ours, given = config.adaptation, Sides.of(task, tokens).given
    asked = [Asked(CHANNEL_ID[name], *scale) for name, *scale in zip(ours.labels, ours.mean, ours.scale)]
    return [store if isinstance(store, Pairs) else Pairs(store, given, asked, task.added) for store in stores]


def resolve(config: "Config", task: Task, tokens: TokenConfig, stores: list) -> "Resolved":
    """As `resolve.resolve`, whose checks of sensors and splits were passed.

    Raises:
        BadInput: the stores hold no recording with both sides, or none of train subjects; names what they hold.
    """
    from csfm_jax.tasks.resolve import Resolved

    sides = Sides.of(task, tokens)
    channels = sorted(sides.asked)
    views = [Pairs(store, sides.given, [Asked(c, 0.0, 1.0) for c in channels], task.added) for store in stores]
    there = [np.array([bool(c) for c in view.given_index.channel_sets], bool)[view.index.channel_set] for view in views]
    if not any(flags.any() for flags in there):
        raise _no_pair(task, stores)
    names = tuple(CHANNELS[c].name for c in channels)
    adaptation = dataclasses.replace(config.adaptation, labels=names)
    among = label_budget.among(dataclasses.replace(config, adaptation=adaptation), views)
    learned = there if among is None else [flags & some for flags, some in zip(there, among, strict=True)]
    split = np.concatenate([view.index.split[flags] for view, flags in zip(views, there)])
    scales, left_out = {}, {}
    for channel in channels:
        if not any(
            channel in c for v in views for n in np.unique(v.index.channel_set) for c in [v.index.channel_sets[n]]
        ):
            continue
        found = _usual(config, views, learned, channel)
        if found is None:
            left_out[CHANNELS[channel].name] = "no train recording with it and an input"
        else:
            scales[channel] = found
    if not scales:
        found, expected = "no train recording with inputs and targets", f"some, for {task.name}"
        raise BadInput("--store", found, expected, "use stores whose train subjects have both")
    mean, scale = zip(*scales.values())
    counts = {name: int((split == i).sum()) for i, name in enumerate(("train", "validation", "test"))}
    return Resolved(tuple(CHANNELS[c].name for c in scales), left_out, mean, scale, (), counts)


def _no_pair(task: Task, stores: list) -> BadInput:
    sets = {channels for store in stores for channels in store.index.channel_sets}
    names = tuple(MODALITIES)
    held = sorted({names[MODALITY_OF[c]] for channels in sets for c in channels})
    told = f"no recording with {', '.join(task.inputs)} and {', '.join(task.targets)}, only {', '.join(held)}"
    return BadInput("--store", told, f"recordings that hold both sides of {task.name}", "use other stores")


def _usual(config, views, there, channel) -> tuple[float, float] | None:
    """Median mean, and median deviation from it, of a channel in the first windows of train recordings, in its unit."""
    window = config.data.window
    rows = []
    for number, (view, flags) in enumerate(zip(views, there)):
        holds = np.array([channel in channels for channels in view.index.channel_sets], bool)[view.index.channel_set]
        lasts = view.index.seconds > window.begin + min(1.0, window.minimum_seconds)
        rows += [(number, int(r)) for r in np.flatnonzero(flags & holds & lasts & (view.index.split == 0))]
    chosen = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, _WINDOWS).astype(int))] if rows else []
    read = []
    for number, recording in chosen:
        ends = int(views[number].index.milliseconds[recording]) / 1000
        length = min(window.seconds, (min(ends, window.end) if window.end else ends) - window.begin)
        samples = dict(views[number].read_window(recording, window.begin, length))[channel]
        there_ = samples[samples != INVALID].astype(np.float64)
        if there_.size and there_.std() >= _LEAST:
            read.append(there_)
    if not read:
        return None
    mean = float(np.median([x.mean() for x in read]))
    deviation = float(np.median([np.sqrt(np.square(x - mean).mean()) for x in read]))
    step = modality_of(channel).step
    return mean * step, deviation * step
