"""A store as if only some of its channels, or recordings, were there: the one place that says which sensors are read.

Everything behind it (windows, packing, rows, features) sees recordings without the other channels: their tokens are
absent, not zero. The same weights can so be read with twelve leads, with two, or with another sensor alone.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable

import numpy as np

from data_pipelines.store import SPLITS, Store


class ChannelsOf:
    """Reads as `Store` does, of these channels; recordings without any of them have none, and give no window.

    Args:
        store: opened. channels: ids that are let through.
        split: "test", say: recordings of the other splits have no channels; None lets all through.
    """

    def __init__(self, store: Store, channels: Iterable[int], split: str | None = None):
        self._store, self.channels = store, frozenset(int(c) for c in channels)
        self.name, self.path, self.spec, self.manifest = store.name, store.path, store.spec, store.manifest
        sets = tuple(tuple(c for c in one if c in self.channels) for one in store.index.channel_sets)
        self._there = np.ones(len(store.index), bool)
        if split is not None:
            self._there = store.index.split == SPLITS.index(split)
        which = np.where(self._there, store.index.channel_set, len(sets)).astype(store.index.channel_set.dtype)
        self.index = dataclasses.replace(store.index, channel_sets=(*sets, ()), channel_set=which)
        told = json.dumps([store.digest, sorted(self.channels), *([split] if split else [])])
        self.digest = hashlib.sha256(told.encode()).hexdigest()  # plans of other channels are other plans

    @property
    def people(self) -> str:
        """As of the store."""
        return self._store.people

    def read_blocks(self, recording: int, start: float, seconds: float) -> list[tuple[tuple[int, ...], np.ndarray]]:
        """As `Store.read_blocks`."""
        found = []
        if not self._there[recording]:
            return found
        for channels, samples in self._store.read_blocks(recording, start, seconds):
            rows = [i for i, channel in enumerate(channels) if channel in self.channels]
            if rows:
                found.append((tuple(channels[i] for i in rows), samples[rows]))
        return found

    def read_window(self, recording: int, start: float, seconds: float) -> list[tuple[int, np.ndarray]]:
        """As `Store.read_window`."""
        blocks = self.read_blocks(recording, start, seconds)
        return [(channel, row) for channels, samples in blocks for channel, row in zip(channels, samples)]

    def labels(self) -> dict[str, np.ndarray]:
        """As `Store.labels`."""
        return self._store.labels()

    def events(self) -> dict[str, np.ndarray]:
        """As `Store.events`."""
        return self._store.events()

    def reports(self) -> list[str | None]:
        """As `Store.reports`."""
        return self._store.reports()

    def quality(self) -> dict[str, np.ndarray]:
        """As `Store.quality`."""
        return self._store.quality()

    def read_file(self, name: str) -> bytes | None:
        """As `Store.read_file`."""
        return self._store.read_file(name)
