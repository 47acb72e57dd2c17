"""Embeddings of recordings as they are and as they are after a perturbation, of several models on the same windows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from csfm_jax.embedding import Window
from csfm_jax.evaluation import perturbations
from csfm_jax.evaluation.perturbations import Channels
from csfm_jax.loaded_encoder import LoadedEncoder
from csfm_jax.models.config import longest_seconds
from data_pipelines import preprocess
from data_pipelines.errors import BadInput
from data_pipelines.loader import pack_windows
from data_pipelines.preprocess import INVALID, PreparedRecording
from data_pipelines.signals import CHANNELS, modality_of
from data_pipelines.store import SPLITS, Store
from data_pipelines.windows import GRID

_AT_ONCE = 16  # recordings whose windows are in memory together
AS_IT_IS, LATER = "as it is", "the next window"


class Chosen(NamedTuple):
    """Recordings that are audited: store, recording [N] int; seconds: of a window; too_short: left out."""

    store: np.ndarray
    recording: np.ndarray
    seconds: float
    too_short: int


@dataclass
class Moved:
    """A model's embeddings.

    Attributes:
        kind: name of a perturbation -> its kind. rows: name -> int [n], which of the N recordings have been through it.
        values: name -> float32 [n, D]; `AS_IT_IS` and `LATER` (the recording's second window) are there as well.
    """

    kind: dict[str, str] = field(default_factory=dict)
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)


def choose(
    stores: list[Store], split: str, encoders: Mapping[str, LoadedEncoder], most: int, seconds: float | None, seed: int
) -> Chosen:
    """Recordings of a split that every model can read and that hold two windows.

    Args:
        most: recordings; more are drawn from. seconds: of a window; None: the shortest of the models' windows, or half
            of the median recording where that is shorter. seed: of the draw.

    Raises:
        BadInput: there are none, or windows would be below a model's shortest or beyond its learned time table.
    """
    known = [encoder.known for encoder in encoders.values()]
    found = []
    for number, store in enumerate(stores):
        read = [all(not mine.isdisjoint(one) for mine in known) for one in store.index.channel_sets]
        rows = np.flatnonzero(
            (store.index.split == SPLITS.index(split)) & np.array(read, bool)[store.index.channel_set]
        )
        found.append(np.stack([np.full(len(rows), number), rows]))
    store, recording = np.concatenate(found, axis=1)
    if not len(store):
        raise BadInput("--store", f"no {split} recording that every model reads", "some", "use other stores or models")
    lengths = np.array([stores[s].index.milliseconds[r] for s, r in zip(store, recording)]) / 1000
    if seconds is None:
        shortest = min(encoder.config.data.window.seconds for encoder in encoders.values())
        seconds = min(shortest, float(np.median(lengths)) / 2)
    seconds = np.floor(seconds * GRID + 1e-6) / GRID
    least = max(max(encoder.config.data.window.minimum_seconds for encoder in encoders.values()), *perturbations.SHIFTS)
    if seconds < least:
        remedy = "use longer recordings, or give --seconds"
        raise BadInput("--seconds", f"{seconds:g} s", f"at least {least:g} s, twice of which a recording has", remedy)
    longest = min(_longest(encoder) for encoder in encoders.values())
    if seconds > longest + 1e-6:
        remedy = "give fewer --seconds, or leave out the model"
        raise BadInput("--seconds", f"{seconds:g} s", f"at most {longest:g} s, what a learned time table holds", remedy)
    enough = np.flatnonzero(lengths >= 2 * seconds - 1e-6)
    drawn = np.sort(np.random.default_rng(seed).permutation(enough)[:most])
    if not len(drawn):
        found, remedy = f"no recording of {2 * seconds:g} s", "give --seconds, half of what there is"
        raise BadInput("--seconds", found, "some, for two windows of one recording", remedy)
    return Chosen(store[drawn], recording[drawn], seconds, len(store) - len(enough))


def _longest(encoder: LoadedEncoder) -> float:
    """Seconds of a window; only a transformer has a table of times."""
    config = encoder.config
    return longest_seconds(config.encoder) if config.backbone.name == "transformer" else float("inf")


def stored_channels(store: Store, recording: int, seconds: float) -> tuple[Channels, float | None]:
    """The beginning of a stored recording as physical signals, filtered and at their modality's rate, and no mains."""
    found = []
    for channel, counts in store.read_window(recording, 0.0, seconds):
        modality = modality_of(channel)
        samples = np.where(counts == INVALID, np.nan, counts.astype(np.float64) * modality.step)
        found.append((CHANNELS[channel].name, float(modality.rate), modality.unit, 0.0, samples))
    return found, None


def embed(
    encoders: Mapping[str, LoadedEncoder], stores: list[Store], chosen: Chosen, read=stored_channels, seed: int = 0
) -> dict[str, Moved]:
    """Every recording through every perturbation and every model.

    Args:
        read: (store, recording, seconds) -> channels and mains frequency, as `stored_channels`. seed: of phases.

    Returns:
        word of the model -> `Moved`. A window without a valid token is in none.

    Raises:
        BadInput: an embedding is not finite.
    """
    found = {word: Moved() for word in encoders}
    parts: dict[tuple[str, str], list] = {}
    for first in range(0, len(chosen.store), _AT_ONCE):
        rows = range(first, min(first + _AT_ONCE, len(chosen.store)))
        windows: dict[str, list] = {word: [] for word in encoders}  # (row, name, channels)
        for row in rows:
            store = stores[chosen.store[row]]
            channels, mains = read(store, int(chosen.recording[row]), 2 * chosen.seconds)
            rng = np.random.default_rng([seed, row])
            for name, kind, made, start, without in _variants(channels, mains, store.spec, chosen.seconds, rng):
                for word, encoder in encoders.items():
                    window = _window(encoder, made, start, chosen.seconds, without)
                    if window is not None:
                        windows[word].append((row, name, window.channels))
                    found[word].kind[name] = kind
        for word, encoder in encoders.items():
            for (row, name, _), value in zip(windows[word], _pooled(encoder, [w for *_, w in windows[word]])):
                if value is not None:
                    if not np.isfinite(value).all():
                        wrong, remedy = "an embedding that is not finite", "use another checkpoint"
                        raise BadInput(f"--models={word}", wrong, "finite numbers", remedy)
                    parts.setdefault((word, name), []).append((row, value))
    for (word, name), pairs in parts.items():
        found[word].rows[name] = np.array([row for row, _ in pairs])
        found[word].values[name] = np.stack([value for _, value in pairs])
    return found


def _variants(
    channels: Channels, mains: float | None, spec: preprocess.Spec, seconds: float, rng: np.random.Generator
) -> Iterator[tuple[str, str, PreparedRecording, float, frozenset[int]]]:
    """(name, kind, prepared, start of the window, lost channels)."""
    made = preprocess.prepare(channels, spec=spec, mains=mains)
    yield AS_IT_IS, "", made, 0.0, frozenset()
    yield LATER, "", made, seconds, frozenset()
    for one in perturbations.of_windows():
        yield one.name, one.kind, made, one.shift, frozenset()
    # channels are prepared independently of one another: one that is lost afterwards might as well never have been
    for one in perturbations.losses(made.channels.tolist()):
        yield one.name, one.kind, made, 0.0, one.without
    for one in perturbations.of_signals(channels, spec):
        changed = preprocess.prepare(one.change(channels, rng), spec=spec, mains=mains)
        yield one.name, one.kind, changed, 0.0, frozenset()


def _window(encoder: LoadedEncoder, made: PreparedRecording, start: float, seconds: float, without) -> Window | None:
    kept = [i for i, c in enumerate(made.channels.tolist()) if c not in without]
    if encoder.known.isdisjoint(made.channels[kept].tolist()) or made.seconds < start + seconds - 1e-3:
        return None
    some = PreparedRecording(made.channels[kept], [made.samples[i] for i in kept], made.seconds, [])
    return encoder.window_at(some, start, min(seconds, made.seconds - start))


def _pooled(encoder: LoadedEncoder, windows: list) -> list[np.ndarray | None]:
    """An embedding [D] of each, None where it has no valid token."""
    if not windows:
        return []
    tokens = encoder.config.tokens
    longest = 1 + max(sum(len(x) // tokens.patch[modality_of(c).name] for c, x in window) for window in windows)
    found: list[np.ndarray | None] = [None] * len(windows)
    for ids, pooled in encoder.embed_batches(pack_windows(windows, tokens, **encoder.batch_shape(longest))):
        for i, value in zip(ids, pooled):
            found[i] = value
    return found
