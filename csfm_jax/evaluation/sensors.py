"""Sensor subsets by short words ("all", "2", "ecg+ppg", "lead:II"), and stores that are read with them alone."""

from dataclasses import dataclass

import numpy as np

from csfm_jax.tasks.task import Task
from data_pipelines.batch import MODALITY_OF, MODALITY_ROW
from data_pipelines.errors import BadInput
from data_pipelines.signals import CHANNEL_ID, MODALITIES, modality_of
from data_pipelines.store import Store
from data_pipelines.store_view import ChannelsOf

ALL = "all"
# the subsets of a watch, a chest strap, and a bedside monitor
LEADS = {
    "12": ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"),
    "6": ("I", "II", "III", "aVR", "aVL", "aVF"),
    "3": ("I", "II", "V2"),
    "2": ("I", "II"),
    "1": ("I",),
}


@dataclass(frozen=True)
class Sensors:
    """A word and the channels that it lets in."""

    word: str
    channels: frozenset[int]

    @property
    def file(self) -> str:
        """The word in a file's name."""
        return self.word.replace(":", "-")


def parse(words: str, task: Task) -> list[Sensors]:
    """Sensor subsets of a task's sensors; "all" always comes first.

    Args:
        words: separated by commas: "all", a key of `LEADS`, modalities joined by "+", or "lead:" and names of channels
            joined by "+".

    Raises:
        BadInput: a word or a channel that is not known, or a word given twice.
    """
    named = [word.strip() for word in words.split(",") if word.strip()]
    if len(set(named)) < len(named):
        raise BadInput("--sensors", "a word given twice", "each once", "leave one out")
    mine = _of_modalities(task.sensors)
    return [Sensors(word, _channels(word) & mine) for word in (ALL, *(n for n in named if n != ALL))]


def _of_modalities(names) -> frozenset[int]:
    return frozenset(np.flatnonzero(np.isin(MODALITY_OF, [MODALITY_ROW[name] for name in names])).tolist())


def _channels(word: str) -> frozenset[int]:
    if word == ALL:
        return _of_modalities(MODALITIES)
    if word in LEADS:
        return frozenset(CHANNEL_ID[lead] for lead in LEADS[word])
    parts = word.removeprefix("lead:").split("+")
    if (
        word.startswith("lead:")
        and all(modality_of(p) for p in parts if p in CHANNEL_ID)
        and set(parts) <= {*CHANNEL_ID}
    ):
        return frozenset(CHANNEL_ID[part] for part in parts)
    if set(parts) <= set(MODALITIES):
        return _of_modalities(parts)
    expected = f"{ALL}, {', '.join(LEADS)}, modalities ({', '.join(MODALITIES)}) joined by +, or lead:II, lead:I+V2"
    raise BadInput(f"--sensors={word}", "no such sensors", expected, "correct the word")


def seen(stores: list[Store], sensors: Sensors, split: str | None = None) -> list[ChannelsOf]:
    """The stores with these channels alone, and with the recordings of one split, if it is named."""
    return [ChannelsOf(store, sensors.channels, split) for store in stores]


def held(stores: list[Store]) -> frozenset[int]:
    """The channels that any recording holds."""
    return frozenset(c for s in stores for number in np.unique(s.index.channel_set)
                     for c in s.index.channel_sets[number])  # fmt: skip


def complete(stores: list[Store], task: Task) -> list[np.ndarray]:
    """Of every store, bool [recordings]: whether a recording holds all of the task's modalities that any one holds."""
    held = [[{modality_of(c).name for c in channels} & {*task.sensors} for channels in s.index.channel_sets]
            for s in stores]  # fmt: skip
    everything = set().union(*(names for sets in held for names in sets))
    flags = [np.array([names >= everything for names in sets], bool) for sets in held]
    return [flag[store.index.channel_set] for flag, store in zip(flags, stores)]
