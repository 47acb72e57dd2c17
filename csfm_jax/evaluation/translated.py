"""Predicted signals of a task of the kind "signal", recording by recording, beside what was recorded there."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from flax import nnx

from csfm_jax.baselines import classical
from csfm_jax.evaluation.predictions import Predictions, Split
from csfm_jax.spread import OverDevices
from csfm_jax.tasks.resolve import read_stores, read_tokens
from csfm_jax.tasks.task import MEASURED
from data_pipelines.errors import BadInput
from data_pipelines.signals import CHANNEL_ID, modality_of
from data_pipelines.store import Store, check_spec
from data_pipelines.windows import samples_in

if TYPE_CHECKING:
    from csfm_jax.evaluation.fine_tuned import FineTuned

_HELD = 2**25  # samples of recordings that are put together at once: 128 MB, and as much again
_PULSES = ("ecg", "ppg", "abp")  # modalities in which a heart rate can be found


class Signal(NamedTuple):
    """One channel of one recording, [windows, samples] float32 in its unit; NaN where nothing was predicted."""

    predicted: np.ndarray
    recorded: np.ndarray


@dataclass(frozen=True)
class Translated:
    """One recording.

    Attributes:
        store, recording: position in the list of stores, and row of that store's index.
        start: [windows] float64, seconds. signals: target channel -> `Signal`, of those that the recording has.
        values: [outputs] float64, `task.MEASURED` of every channel, means over windows; NaN where there is none.
        windows: [channels] int, in how many windows each target was compared.
    """

    store: int
    recording: int
    start: np.ndarray
    signals: dict[str, Signal]
    values: np.ndarray
    windows: np.ndarray


@partial(jax.jit, static_argnums=0)
def _apply(graphdef, state, batch):
    model = nnx.merge(graphdef, state)
    found = model.signals(batch)
    return found, model.measure(batch, found)


def translate(model: "FineTuned", stores: list[Store], split: str, *, blind: bool = False) -> Iterator[Translated]:
    """Predicts the targets of every recording of a split that holds both sides, in order of store and recording.

    Args:
        blind: of every recording that holds an input, as it was recorded, whatever else it holds; nothing is measured.

    Raises:
        BadInput: stores of another preprocessing, or no such recording in the split.
    """
    for store in stores:
        check_spec(store.spec, model.spec, str(store.path))
    views, number = read_stores(model.config, stores), ("train", "validation", "test").index(split)
    views = [view.blinded() for view in views] if blind else views
    window, some = model.config.data.window, False
    fastest = max(modality_of(name).rate for name in model.config.adaptation.labels)
    crops = model.task.crops_of(window).most_per_recording
    each = crops * window.seconds * fastest * len(model.config.adaptation.labels)
    most = max(1, int(_HELD / each))
    for position, view in enumerate(views):
        paired = np.array([bool(channels) for channels in view.index.channel_sets], bool)[view.index.channel_set]
        lasts = view.index.seconds - window.begin >= window.minimum_seconds
        mine = np.flatnonzero(paired & lasts & (view.index.split == number))
        for at in range(0, len(mine), most):
            some = True
            yield from _some(model, view.among(mine[at : at + most]), position, split)
    if not some:
        sides = "an input" if blind else "both sides"
        found, expected = f"no {split} recording with {sides} of {model.task.name}", "one or more"
        raise BadInput("--store", found, expected, "name another --split or other stores")


def predictions(found: Iterator[Translated], outputs: tuple[str, ...]) -> Predictions:
    """What was measured of recordings, as predictions: `values` are `outputs`, `labels` how many windows were compared
    (NaN: the recording lacks the channel)."""
    rows = [(one.store, one.recording, len(one.start), one.values, one.windows) for one in found]
    store, recording, windows, values, compared = zip(*rows)
    compared = np.array(compared, np.float32)
    labels = np.where(compared > 0, compared, np.float32(np.nan))
    values = np.array(values, np.float32).reshape(-1, len(outputs))
    return Predictions(np.array(store), np.array(recording), np.array(windows), values, labels)


def _some(model, view, position, split) -> Iterator[Translated]:
    graphdef, state = nnx.split(model.objective)
    tokens, pieces = read_tokens(model.config), {}
    with tempfile.TemporaryDirectory(prefix="csfm-plans-") as plans:
        read = Split(model.config, [view], split, Path(plans))
        network = OverDevices(partial(_apply, graphdef), state, tokens)
        for batch, (found, values) in network.over(read.batches()):
            recorded = np.full_like(found.recorded, np.nan) if view.blind else found.recorded
            for row, slot in zip(*np.nonzero(batch.window >= 0)):
                window = int(batch.window[row, slot])
                tokens_ = np.flatnonzero((batch.segment[row] == slot + 1) & batch.target[row])
                placed = batch.channel[row, tokens_], batch.time[row, tokens_]
                samples = (found.predicted[row, tokens_], recorded[row, tokens_])
                pieces[window] = (_joined(*placed, *samples, tokens, model), values[row, slot])
    table = read.table
    for recording in np.flatnonzero(view.index.split >= 0):
        mine = [w for w in np.flatnonzero(table.recording == recording) if w in pieces]
        if mine:
            made = _whole(model, tokens, position, int(recording), table, mine, pieces)
            yield _unmeasured(made) if view.blind else made


def _joined(channel, time, predicted, recorded, tokens, model) -> dict[str, tuple]:
    """Tokens of one window -> channel -> (patch numbers, predicted [k, n], recorded [k, n])."""
    found = {}
    for name in model.config.adaptation.labels:
        here = channel == CHANNEL_ID[name]
        if here.any():
            modality = modality_of(name)
            patch = tokens.patch[modality.name]
            at = np.floor(time[here] * modality.rate / patch).astype(int)
            found[name] = at, predicted[here, :patch], recorded[here, :patch]
    return found


def _whole(model, tokens, position, recording, table, mine, pieces) -> Translated:
    labels = model.config.adaptation.labels
    there = [name for name in labels if any(name in pieces[w][0] for w in mine)]
    signals = {}
    for name in there:
        modality = modality_of(name)
        length = int(samples_in(table.seconds[mine].max(), modality.rate))
        signals[name] = Signal(*(np.full((len(mine), length), np.nan, np.float32) for _ in range(2)))
        patch = tokens.patch[modality.name]
        for row, window in enumerate(mine):
            at, *samples = pieces[window][0].get(name, (np.zeros(0, int), *(np.zeros((0, patch)),) * 2))
            for into, values in zip(signals[name], samples):
                into[row, (at[:, None] * patch + np.arange(patch)).ravel()] = values.ravel()
    measured = np.array([pieces[w][1] for w in mine], np.float64).reshape(len(mine), len(labels), len(MEASURED))
    for k, name in enumerate(labels):
        if name in signals and modality_of(name).name in _PULSES and np.isfinite(signals[name].recorded).any():
            measured[:, k, MEASURED.index("rate_error") :] = _rates(signals[name], name)
    windows = np.isfinite(measured[:, :, 0]).sum(axis=0)
    values = _mean_known(measured).reshape(-1)
    return Translated(position, recording, table.start[mine], signals, values, windows)


def _unmeasured(one: Translated) -> Translated:
    return replace(one, values=np.full_like(one.values, np.nan), windows=np.zeros_like(one.windows))


def _mean_known(values: np.ndarray) -> np.ndarray:
    """Means over the first axis of what is not NaN; NaN where nothing is known."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _rates(signal: Signal, name: str) -> np.ndarray:
    """[windows, 2]: difference of the heart rates, and whether the prediction has one where the recording has."""
    modality, found = modality_of(name), np.full((len(signal.recorded), 2), np.nan)
    for row, (predicted, recorded) in enumerate(zip(*signal)):
        ends = 1 + np.flatnonzero(~np.isnan(recorded)).max(initial=-1)
        one, other = (
            classical.heart_rate(classical.Sensor(x[:ends].astype(np.float64), modality.rate), modality.name)
            for x in (recorded, predicted)
        )
        if np.isfinite(one):
            found[row] = abs(other - one), np.isfinite(other)
    return found
