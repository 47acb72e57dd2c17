"""A store as pairs of what is given and what is asked for: PPG and ECG, one lead and twelve, noisy and clean.

A window's tokens are then those of the given channels, all of them visible, and after them those of the channels that
are asked for, all of them hidden and targets. Planning, packing and placing know nothing else of it: a channel that is
both given (with something added to it) and asked for counts twice. Recordings that lack either side give no window.

What is given is z-scored in its window, as always. What is asked for must come back in its unit, so its samples are
measured against a mean and a deviation that are known when the truth is not:

    of the channel itself, as it was given, where it was (noise and all);
    of the given channels of its modality, pooled, where there are any: the amplitude of lead V2 follows that of lead I;
    otherwise of the channel's train windows: nothing in a PPG tells millivolts.

Means and deviations travel in `TokenBatch.labels`, so that predictions can be put back into the unit of the store.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines import augment
from data_pipelines.augment import AugmentConfig
from data_pipelines.preprocess import INVALID
from data_pipelines.signals import CHANNELS, modality_of
from data_pipelines.store_view import ChannelsOf
from data_pipelines.windows import samples_in

# of a channel's usual deviation: a flat lead tells no amplitude, and one window must not outweigh a batch
_LEAST_DEVIATION = 0.1

Blocks = list[tuple[tuple[int, ...], np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Asked:
    """A channel that is to be predicted: its id, and mean and deviation of its train windows, in its unit."""

    channel: int
    mean: float
    deviation: float


class Pair(NamedTuple):
    """One window.

    Attributes:
        given: (channel ids, samples [C, n]) as `RowWriter.add` takes them. asked: the same, float32, in deviations
            from the means of `reference`; NaN where the truth is not known.
        reference: float32 [2 K], means and then deviations of the K channels that may be asked for, in their units; NaN
            of those that this recording lacks.
    """

    given: Blocks
    asked: Blocks
    reference: np.ndarray


class Pairs(ChannelsOf):
    """Reads pairs; all else as of the store.

    Args:
        store: opened, or a view of one. given: ids of channels that are inputs where a recording has them.
        asked: the channels that are targets, in the order of `TokenBatch.labels`.
        added: what is added to the given channels; None: they stay as they are.
        blind: as `blinded` says; samples of targets are zeros then, which say nothing.
    """

    def __init__(
        self, store, given: Iterable[int], asked: Sequence[Asked], added: AugmentConfig | None = None, *, blind=False
    ):
        given, self.asked, self.added, self.blind = frozenset(int(c) for c in given), tuple(asked), added, blind
        wanted = frozenset(one.channel for one in self.asked)
        super().__init__(store, given | wanted)
        anyone = wanted if blind and added is None else None
        both = [
            (tuple(c for c in channels if c in given), tuple(sorted(anyone or wanted.intersection(channels))))
            for channels in self.index.channel_sets
        ]
        both = [pair if all(pair) else ((), ()) for pair in both]
        self._given, self._wanted = given, wanted
        self.given_index = dataclasses.replace(self.index, channel_sets=tuple(given for given, _ in both))
        self.index = dataclasses.replace(self.index, channel_sets=tuple(given + wanted for given, wanted in both))
        told = [self.digest, sorted(given), [dataclasses.astuple(one) for one in self.asked]]
        told += [None if added is None else dataclasses.asdict(added), *(["blind"] if blind else [])]
        self.digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def among(self, recordings: np.ndarray) -> "Pairs":
        """The same with these recordings (rows of the index) alone: the others are in no split."""
        split = np.full(len(self.index), -1, np.int8)
        split[recordings] = self.index.split[recordings]
        view = Pairs(self._store, self._given, self.asked, self.added, blind=self.blind)
        view.index, view.given_index = (dataclasses.replace(i, split=split) for i in (self.index, self.given_index))
        view.digest = hashlib.sha256(self.digest.encode() + np.packbits(split >= 0).tobytes()).hexdigest()
        return view

    def blinded(self) -> "Pairs":
        """The same without truth: a recording with an input is asked for every target (of what is denoised, for what it
        holds), and nothing is added."""
        return Pairs(self._store, self._given, self.asked, self.added, blind=True)

    def read_pair(self, recording: int, start: float, seconds: float, rng: np.random.Generator) -> Pair:
        """One window; arguments as of `Store.read_blocks`. rng: of what is added."""
        blocks = self.read_blocks(recording, start, seconds)
        given = [(channels, self._noisy(samples, channels, rng)) for channels, samples in _rows_of(blocks, self._given)]
        known = _statistics(given)
        K = len(self.asked)
        reference, asked = np.full(2 * K, np.nan, np.float32), []
        truth = {channel: samples for channels, block in blocks for channel, samples in zip(channels, block)}
        for k, one in enumerate(self.asked):
            samples = truth.get(one.channel)
            if self.blind and (samples is not None or self.added is None):
                samples = np.zeros(int(samples_in(seconds, modality_of(one.channel).rate)), np.int16)
            if samples is None:
                continue
            mean, deviation = _reference(one, known)
            reference[k], reference[K + k] = mean, deviation
            values = samples.astype(np.float32) * np.float32(modality_of(one.channel).step)
            values[samples == INVALID] = np.nan
            asked.append(((one.channel,), ((values - np.float32(mean)) / np.float32(deviation))[None]))
        return Pair(given, asked, reference)

    def _noisy(self, samples, channels, rng):
        if self.added is None or self.blind:
            return samples
        values = np.where(samples == INVALID, np.nan, samples).astype(np.float32)
        return augment.apply(values, modality_of(channels[0]).rate, self.added, rng)


def channel_ids(words: Iterable[str]) -> frozenset[int]:
    """The channels that names of modalities ("ecg") and of channels ("I", "PPG") stand for."""
    words = frozenset(words)
    return frozenset(kind.id for kind in CHANNELS if kind.modality and (kind.name in words or kind.modality in words))


def _rows_of(blocks: Blocks, wanted: frozenset[int]) -> Blocks:
    found = []
    for channels, samples in blocks:
        rows = [row for row, channel in enumerate(channels) if channel in wanted]
        if rows:
            found.append((tuple(channels[row] for row in rows), samples[rows]))
    return found


def _statistics(given: Blocks) -> dict[int, tuple[float, float]]:
    """Channel -> mean and variance of its valid samples, in its unit; without those that have none."""
    found = {}
    for channels, block in given:
        for channel, samples in zip(channels, block):
            there = samples[samples != INVALID if samples.dtype == np.int16 else np.isfinite(samples)]
            if there.size:
                step = modality_of(channel).step
                found[channel] = (
                    float(there.mean(dtype=np.float64)) * step,
                    float(there.var(dtype=np.float64)) * step**2,
                )
    return found


def _reference(one: Asked, known: dict[int, tuple[float, float]]) -> tuple[float, float]:
    """Mean and deviation that the samples of a channel are measured against; see the head of this file."""
    modality = modality_of(one.channel)
    of_modality = [value for channel, value in known.items() if modality_of(channel) is modality]
    mine = [known[one.channel]] if one.channel in known else of_modality
    if not mine:
        return one.mean, one.deviation
    mean, variance = np.mean(mine, axis=0)
    return float(mean), max(float(np.sqrt(variance)), _LEAST_DEVIATION * one.deviation)
