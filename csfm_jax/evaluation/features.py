"""Frozen embeddings of a store's recordings: every window once, everything visible, averaged over a recording."""

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from csfm_jax.loaded_encoder import LoadedEncoder
from data_pipelines import loader, windows
from data_pipelines.batch import TokenBatch
from data_pipelines.config import WindowConfig
from data_pipelines.errors import BadInput
from data_pipelines.store import SPLITS, Store, check_spec


class Windows(NamedTuple):
    """Embedded windows: store, recording [n] int, start [n] seconds, pooled [n, D] float32; in the order of packing."""

    store: np.ndarray
    recording: np.ndarray
    start: np.ndarray
    pooled: np.ndarray


class Features(NamedTuple):
    """One row a recording: store, recording [n] int, windows [n] int, and the mean of their embeddings [n, D]."""

    store: np.ndarray
    recording: np.ndarray
    windows: np.ndarray
    pooled: np.ndarray


def embed_stores(
    encoder: LoadedEncoder, stores: list[Store], split: str, window: WindowConfig | None = None
) -> Iterator[Windows]:
    """Embeds every window of a split once, at fixed starts and fully visible, batch by batch.

    Reports are not read: a report states the label that a probe is to find in the signal.

    Args:
        stores: or, to embed some sensors alone, `store_view.ChannelsOf` them.
        window: `Cell.window`, or None = the encoder's own, one after another.

    Raises:
        BadInput: stores of another preprocessing than the encoder's, or no window in the split.
    """
    with reading(encoder, stores, split, window) as (table, batches):
        for ids, pooled in encoder.embed_batches(batches):
            yield Windows(table.store[ids], table.recording[ids], table.start[ids], pooled)


@contextmanager
def reading(
    encoder: LoadedEncoder, stores: list[Store], split: str, window: WindowConfig | None = None
) -> Iterator[tuple[windows.EpochWindows, Iterator[TokenBatch]]]:
    """The window table of a split, and its batches as an encoder reads them; arguments and errors of `embed_stores`."""
    for store in stores:
        check_spec(store.spec, encoder.spec, str(store.path))
    tokens = dataclasses.replace(encoder.config.tokens, text_length=0)
    fixed = window or dataclasses.replace(encoder.config.data.window, random_start=False, crops=0)
    data = dataclasses.replace(encoder.config.data, weights={}, window=fixed, tokenizer="")
    table = windows.epoch_windows(stores, tokens, data, split, 0)
    data = dataclasses.replace(data, row_visible=0, **encoder.batch_shape(int(table.tokens.max())))
    with tempfile.TemporaryDirectory(prefix="csfm-plans-") as plans:
        yield table, loader.evaluation_batches(stores, tokens, data, split, plans_dir=plans, hide=False)


def recording_features(encoder: LoadedEncoder, stores: list[Store], window: WindowConfig | None = None) -> Features:
    """The mean embedding of every recording of every split; recordings without a valid token are left out.

    Arguments as of `embed_stores`. Rows are ordered by store and recording, so that two encoders' features of the same
    stores match row by row.

    Raises:
        BadInput: as `embed_stores`; a split without recordings of the model's sensors is not an error here.
    """
    sizes = [len(s.index) for s in stores]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    total, count = np.zeros((offsets[-1], encoder.width)), np.zeros(offsets[-1], np.int64)
    for i, split in enumerate(SPLITS):
        if not any(_heard(s, encoder.known)[s.index.split == i].any() for s in stores):
            continue
        for some in embed_stores(encoder, stores, split, window):
            row = offsets[some.store] + some.recording
            np.add.at(total, row, some.pooled)
            np.add.at(count, row, 1)
    there = np.flatnonzero(count)
    if not len(there):
        raise BadInput("--store", "no recording with a valid window", "at least one", "check the stores with csfm data")
    store = np.searchsorted(offsets, there, side="right") - 1
    mean = (total[there] / count[there, None]).astype(np.float32)
    return Features(store, there - offsets[store], count[there], mean)


def _heard(store: Store, channels: set[int]) -> np.ndarray:
    """bool [recordings], whether a recording holds one of these channels."""
    return np.array([not channels.isdisjoint(one) for one in store.index.channel_sets], bool)[store.index.channel_set]
