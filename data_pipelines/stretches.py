"""A store as if every labelled stretch of its recordings were a recording: stages of sleep, rhythms, beats.

What labels a stretch are the recording's events (`Store.events`): an epoch of a night, ten seconds of a rhythm, the
seconds about a beat. Everything behind it (windows, packing, tasks, figures) sees short recordings with labels of their
own, of the same subjects and splits; signals stay where they are.
"""

import dataclasses
import hashlib
import json

import numpy as np

from data_pipelines.errors import BadInput

_GRID = 25  # starts per second, as of windows


@dataclasses.dataclass(frozen=True)
class Cut:
    """How events make stretches.

    Attributes:
        classes: (code, class) each; the class "" is of codes that end what came before and are not labelled.
        seconds: length of a stretch.
        place: "along": a class lasts as long as its event says, or, of events that are moments, until the next code of
            `classes`; it is cut into stretches one after another, and a rest is left out. "about": the stretch lies
            about its event, which is at its middle.
        kept: (class, seconds): of that class, no more than so much is kept before the first stretch of another class of
            the recording, and after the last: a night's recording may hold a day awake. ("", 0): all.
        dataset: name of the stores whose codes these are, where others use the same for something else ("R" is REM
            sleep, and a beat with a bundle branch block); "" = any.
    """

    classes: tuple[tuple[str, str], ...]
    seconds: float
    place: str
    kept: tuple[str, float] = ("", 0.0)
    dataset: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, in the order in which they are first named."""
        return tuple(dict.fromkeys(name for _, name in self.classes if name))


class Stretches:
    """Reads as `Store` does, stretch by stretch; those of one recording stand together, in order of time.

    Args:
        store: opened, or a view of its channels. cut: which stretches.

    Attributes:
        recording, start: [stretches] where they lie in the store: row of its index, seconds.
    """

    def __init__(self, store, cut: Cut):
        self._store, self.cut = store, cut
        self.name, self.path, self.spec, self.manifest, self.people = (
            store.name, store.path, store.spec, store.manifest, store.people,
        )  # fmt: skip
        self.recording, self.start, self._class = _stretches(store, cut)
        taken, n = self.recording, len(self.recording)
        seconds = np.full(n, cut.seconds, np.float32)
        index = store.index
        kept = {name: getattr(index, name)[taken] for name in ("subject", "split", "channel_set", "shard", "first",
                                                                "chunks", "derived")}  # fmt: skip
        self.index = dataclasses.replace(
            index, **kept, study=_studies(index.study[taken], self.start), has_report=np.zeros(n, bool),
            milliseconds=np.full(n, round(cut.seconds * 1000), np.int64), seconds=seconds,
        )  # fmt: skip
        told = json.dumps([store.digest, dataclasses.asdict(cut)])
        self.digest = hashlib.sha256(told.encode()).hexdigest()  # plans of stretches are other plans

    def read_blocks(self, recording: int, start: float, seconds: float) -> list[tuple[tuple[int, ...], np.ndarray]]:
        """As `Store.read_blocks`, of a stretch."""
        return self._store.read_blocks(int(self.recording[recording]), float(self.start[recording]) + start, seconds)

    def read_window(self, recording: int, start: float, seconds: float) -> list[tuple[int, np.ndarray]]:
        """As `Store.read_window`, of a stretch."""
        blocks = self.read_blocks(recording, start, seconds)
        return [(channel, row) for channels, samples in blocks for channel, row in zip(channels, samples)]

    def labels(self) -> dict[str, np.ndarray]:
        """Class -> float32 [stretches], 1 of the stretch's own class, else 0."""
        return {name: (self._class == k).astype(np.float32) for k, name in enumerate(self.cut.names)}

    def reports(self) -> list[None]:
        """None has one: a report says what the whole recording is."""
        return [None] * len(self.index)

    def quality(self) -> dict[str, np.ndarray]:
        """Raises BadInput: what is kept is of whole recordings."""
        found, expected = "windows chosen by quality", "all of them, where stretches are labelled"
        raise BadInput("config.data.quality_minimum", found, expected, "leave quality_minimum and quality_weight out")

    def read_file(self, name: str) -> bytes | None:
        """As `Store.read_file`."""
        return self._store.read_file(name)


def _stretches(store, cut: Cut) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recording int32, start float64 and class int16 of every stretch that lies whole in its recording."""
    events = store.events()
    position = {name: k for k, name in enumerate(cut.names)}
    of_code = {code: position.get(name, -1) for code, name in cut.classes}
    codes, number = np.unique(events["code"].astype(str), return_inverse=True)
    label = np.array([of_code.get(code, -2) for code in codes], np.int64)[number] if len(codes) else np.zeros(0, int)
    known = label > -2  # others neither label nor end anything: beats between rhythms, arousals between stages
    if cut.dataset not in ("", store.name):
        known &= False
    recording, time, lasts, label = (x[known] for x in (events["recording"], events["time"], events["seconds"], label))
    ends = store.index.milliseconds / 1000
    parts = []
    rows, first = np.unique(recording, return_index=True)  # events are in order of recording
    cut_ = _about if cut.place == "about" else _along
    for row, begin, stop in zip(rows, first, np.append(first[1:], len(recording))):
        mine = slice(begin, stop)
        start, classes = cut_(time[mine], lasts[mine], label[mine], cut.seconds, float(ends[row]))
        start = np.floor(start * _GRID + 0.5) / _GRID
        inside = (classes >= 0) & (start >= 0) & (start + cut.seconds <= ends[row] + 1e-9)
        start, classes = _without_rest(start[inside], classes[inside], cut, position)
        parts.append((np.full(len(start), row, np.int32), start, classes.astype(np.int16)))
    empty = (np.zeros(0, np.int32), np.zeros(0), np.zeros(0, np.int16))
    return tuple(np.concatenate(column) for column in zip(empty, *parts))


def _about(time, lasts, label, seconds, end):
    return time - seconds / 2, label


def _along(time, lasts, label, seconds, end):
    until = np.where(lasts > 0, time + lasts, np.append(time[1:], end))
    count = np.maximum(0, np.floor((until - time) / seconds + 1e-6)).astype(int)
    count[label < 0] = 0
    which = np.repeat(np.arange(len(time)), count)
    rank = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    return time[which] + rank * seconds, label[which]


def _without_rest(start, classes, cut, position):
    name, seconds = cut.kept
    others = start[classes != position.get(name, -1)]
    if not name or not len(others):
        return start, classes
    kept = (start >= others.min() - seconds) & (start <= others.max() + seconds)
    return start[kept], classes[kept]


def _studies(study: np.ndarray, start: np.ndarray) -> np.ndarray:
    """S16: a hash of the study's and of where the stretch begins."""
    milliseconds = np.rint(start * 1000).astype(np.int64)
    made = [hashlib.blake2b(s + b"%d" % at, digest_size=8).hexdigest() for s, at in zip(study, milliseconds)]
    return np.array(made, "S16")


def is_cut(store) -> bool:
    """Whether a store, or what it is a view of, is one of stretches."""
    while store is not None and not isinstance(store, Stretches):
        store = getattr(store, "_store", None)
    return store is not None
