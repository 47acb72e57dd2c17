"""Windows of samples -> rows of tokens: normalised, cut into patches, placed, masked. Pure functions on arrays.

The one way into a `TokenBatch`: training, evaluation and ad-hoc embedding all place their windows here.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from data_pipelines import augment, frames, masking, preprocess
from data_pipelines.augment import AugmentConfig
from data_pipelines.batch import MODALITY_OF, TokenBatch
from data_pipelines.config import MaskConfig, TokenConfig
from data_pipelines.signals import CLS, MODALITIES, TEXT
from data_pipelines.windows import longest_patch, used_channels

_NAMES = tuple(MODALITIES)

Change = Callable[[np.ndarray, float], np.ndarray]
Blocks = Sequence[tuple[tuple[int, ...], np.ndarray]]


def empty_batch(rows: int, capacities: tuple[int, int, int], tokens: TokenConfig, labels: int = 0) -> TokenBatch:
    """A batch of padding: [rows] x (T, V, S), P from the config, K = `labels`."""
    T, V, S = capacities
    return TokenBatch(
        patches=np.zeros((rows, T, longest_patch(tokens)), np.float32),
        channel=np.zeros((rows, T), np.int32),
        segment=np.zeros((rows, T), np.int32),
        time=np.zeros((rows, T), np.float32),
        text=np.zeros((rows, T), np.int32),
        visible=np.full((rows, V), T, np.int32),
        target=np.zeros((rows, T), bool),
        labels=np.full((rows, S, labels), np.nan, np.float32),
        token_labels=np.full((rows, T), -1, np.int32),
        window=np.full((rows, S), -1, np.int32),
    )


class RowRandom:
    """Generators that are a function of a few integers, at a tenth of the cost of seeding one by NumPy's way.

    PCG64 is put into a state that BLAKE2 makes of the integers: streams of different rows are as independent as its
    hashes are.
    """

    def __init__(self):
        self._bits = np.random.PCG64(0)
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state

    def at(self, *numbers: int) -> np.random.Generator:
        """The generator of these integers; good until the next call."""
        key = b"".join(n.to_bytes(8, "little", signed=True) for n in numbers)
        digest = hashlib.blake2b(key, digest_size=16).digest()
        self._state["state"]["state"] = int.from_bytes(digest, "little")
        self._bits.state = self._state
        return self._generator


class WindowChanges:
    """Augmentation as a function of a few integers that name a window, whoever reads it and in whatever order."""

    def __init__(self, config: AugmentConfig):
        self._config, self._moves, self._own = config, RowRandom(), RowRandom()

    def of(self, *numbers: int) -> Change:
        """The change of one window, for `RowWriter.add`: its sensors move together, and have noise of their own."""
        runs = itertools.count(1)

        def change(samples, rate):
            moves, own = self._moves.at(*numbers, 0), self._own.at(*numbers, next(runs))
            return augment.apply(samples, rate, self._config, moves, own)

        return change


class RowWriter:
    """Places windows one after another into one row of a batch.

    Args:
        batch: from `empty_batch`; written in place.
        row: which of its rows.
        tokens: what is read.
        mask: how to hide; None makes every token visible and none a target.
        rng: source of the masks.
        strategy: None draws one for each window.
    """

    def __init__(
        self,
        batch: TokenBatch,
        row: int,
        tokens: TokenConfig,
        mask: MaskConfig | None = None,
        rng: np.random.Generator | None = None,
        strategy: str | None = None,
    ):
        self._row = TokenBatch(*(array[row] for array in batch))
        self._tokens, self._mask, self._rng, self._strategy = tokens, mask, rng, strategy
        self._next = self._visible = self._slot = 0

    def add(
        self,
        blocks: Blocks,
        text: np.ndarray,
        window: int,
        labels: np.ndarray | None = None,
        seconds: float | None = None,
        change: Change | None = None,
        asked: Blocks | None = None,
    ) -> None:
        """Writes one window; one with no valid signal token, or none on one side of a pair, leaves its slot as padding.

        Args:
            blocks: (channel ids, samples [C, n]) of channels that share a rate: int16 with INVALID, or float with
                NaN, preprocessed and at the modality's rate.
            text: int32 [k] token ids.
            window: goes into `batch.window`.
            labels: float [K]. seconds: the planned length, which bounds every channel's tokens; None: no bound.
            change: what happens to normalised samples of channels that share a rate before they are cut: (float [C, n]
                with NaN, Hz) -> [C, m]; None: nothing.
            asked: of a pair, the channels that are predicted from the others, which are all visible then: as `blocks`,
                but float with NaN and taken as it is, without a z-score.
        """
        row, begin, slot = self._row, self._next, self._slot
        self._slot += 1
        given = end = self._place(begin + 1, signal_tokens(blocks, self._tokens, seconds, change))
        if asked is not None and given > begin + 1:
            end = self._place(given, signal_tokens(asked, self._tokens, seconds, normal=_as_it_is))
        if given == begin + 1 or (asked is not None and end == given):
            row.channel[begin:end], row.time[begin:end], row.patches[begin:end] = 0, 0, 0
            return
        stop = end + len(text)
        if stop > end:
            row.channel[end:stop], row.text[end:stop] = TEXT, text
            row.time[end:stop] = np.arange(len(text))
        row.channel[begin] = CLS
        row.segment[begin:stop] = slot + 1
        row.window[slot] = window
        if labels is not None:
            row.labels[slot] = labels
        if asked is None:
            self._hide(begin, end, stop)
        else:
            row.target[given:end] = True
            self._show(begin, np.arange(begin + 1, given))
        self._next = stop

    def _place(self, end: int, made) -> int:
        """Writes tokens from `end` on; returns where they end."""
        row = self._row
        for channels, patches, time in made:
            stop = end + len(channels)
            row.patches[end:stop, : patches.shape[1]] = patches
            row.channel[end:stop], row.time[end:stop] = channels, time
            end = stop
        return end

    def _hide(self, begin: int, text: int, stop: int) -> None:
        """Writes `visible` and `target` of the window at [begin, stop), whose text begins at `text`."""
        row, first = self._row, begin + 1
        if self._mask is None:
            positions = np.arange(first, stop)
        else:
            masked = masking.hide(
                row.channel[first:text], row.time[first:text], stop - text, self._mask, self._rng, self._strategy
            )
            row.target[first:stop] = masked.target
            positions = masked.visible.nonzero()[0] + first
        self._show(begin, positions)

    def _show(self, begin: int, positions: np.ndarray) -> None:
        row, at = self._row, self._visible
        self._visible += 1 + len(positions)
        row.visible[at] = begin  # CLS is always seen
        row.visible[at + 1 : self._visible] = positions


def _as_it_is(samples: np.ndarray, whole: bool) -> np.ndarray:
    return samples if whole else np.where(samples == preprocess.INVALID, np.float32(np.nan), samples)


def signal_tokens(
    blocks: Blocks,
    tokens: TokenConfig,
    seconds: float | None = None,
    change: Change | None = None,
    normal: Callable[[np.ndarray, bool], np.ndarray] = preprocess.normalise,
):
    """Cuts a window's channels into tokens, channel by channel in the given order; or into `frames`.

    Args: see `RowWriter.add`. normal: makes floats with NaN of samples with INVALID, told whether there is none.

    Yields:
        For each run of channels of one rate and patch: channel ids int32 [n], patches float32 [n, patch], times
        float32 [n] of the tokens that are there. A token with an invalid sample is not; nor is a channel that the
        config leaves out. With `tokens.layout` "frame": the same of each modality's frames.
    """
    made = _channel_tokens(blocks, tokens, seconds, change, normal)
    return frames.join(made, tokens) if tokens.layout == "frame" else made


def _channel_tokens(blocks, tokens, seconds, change, normal):
    patch_of = tuple(tokens.patch[name] for name in tokens.modalities)
    for channels, samples in blocks:
        for rate, patch, rows, ids in _runs(tuple(channels), tokens.modalities, patch_of, tokens.channels):
            k = samples.shape[1] // patch
            if seconds is not None:  # the plan made room for so many
                k = min(k, int(seconds * rate + 0.5) // patch)  # `windows.samples_in`, for one number
            if k == 0:
                continue
            x = _with_sentinel(samples[rows])
            whole = bool(np.minimum.reduce(x, axis=None) > preprocess.INVALID)
            x = normal(x, whole)
            if change is not None:
                x = change(x, rate)
                k = min(k, x.shape[1] // patch)
                whole = not np.isnan(np.minimum.reduce(x, axis=None, initial=0.0))
            patches = x[:, : k * patch].reshape(len(ids) * k, patch)
            channel, time = _layout(ids, k, patch, rate)
            if whole:  # far cheaper than looking at every token, and nearly always so
                yield channel, patches, time
                continue
            valid = np.isfinite(patches).all(axis=1)
            if valid.any():
                yield channel[valid], patches[valid], time[valid]


def _with_sentinel(x: np.ndarray) -> np.ndarray:
    """Floats use the int16 convention for invalid samples from here on."""
    if x.dtype == np.int16:
        return x
    return np.where(np.isfinite(x), x, preprocess.INVALID).astype(np.float32)


@lru_cache(maxsize=4096)
def _runs(channels, modalities, patch_of, channel_set):
    """(rate, patch, rows of the block, channel ids) of each run of used channels that share rate and patch."""
    wanted = used_channels(TokenConfig(modalities=modalities, channels=channel_set))
    patches = dict(zip(modalities, patch_of))
    used = [(row, channel, _NAMES[MODALITY_OF[channel]]) for row, channel in enumerate(channels) if wanted[channel]]
    runs = []
    for (rate, patch), run in itertools.groupby(used, key=lambda u: (MODALITIES[u[2]].rate, patches[u[2]])):
        rows, ids, _ = zip(*run)
        whole = rows == tuple(range(rows[0], rows[-1] + 1))
        runs.append((rate, patch, slice(rows[0], rows[-1] + 1) if whole else list(rows), ids))
    return runs


@lru_cache(maxsize=4096)
def _layout(channels: tuple[int, ...], k: int, patch: int, rate: int):
    """Channel ids and centre times of k tokens of each channel; the same few layouts come again and again."""
    times = ((np.arange(k) + 0.5) * (patch / rate)).astype(np.float32)
    return np.repeat(np.asarray(channels, np.int32), k), np.tile(times, len(channels))
