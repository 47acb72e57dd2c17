"""TokenBatch: the fixed-shape, masked batch that crosses from the data pipeline to the model."""

from typing import NamedTuple

import numpy as np

from data_pipelines.signals import CHANNELS, MODALITIES

MODALITY_ROW = {name: row for row, name in enumerate(MODALITIES)}
# int8 [channel vocabulary]: the row of `MODALITIES` that a token's channel belongs to; -1 for PAD, CLS and TEXT
MODALITY_OF = np.array([MODALITY_ROW.get(kind.modality, -1) for kind in CHANNELS], np.int8)


class TokenBatch(NamedTuple):
    """Packed rows. Letters: B rows, T tokens a row, V visible, P samples of the longest patch, S windows, K labels.

    A NamedTuple, so that JAX takes it as a pytree although this package knows no JAX.

    Attributes:
        patches: [B, T, P] float32, z-scored samples of each signal token; shorter patches zero-filled at the end.
            Of frame tokens, the samples of all channels and a presence flag for each: see `data_pipelines.frames`.
        channel: [B, T] int32, id in `signals.CHANNELS`; 0 = padding. Of a frame, its modality's first channel.
        segment: [B, T] int32, window of the row, 1 ... S; 0 = padding. A window's tokens are contiguous, CLS first.
        time: [B, T] float32, seconds from the window's start to the patch's centre; 0 for CLS; token index for TEXT.
        text: [B, T] int32, token id where `channel` is TEXT, else 0.
        visible: [B, V] int32, positions in T that the encoder sees, ascending; T = padding.
        target: [B, T] bool, tokens that the objective predicts; never CLS.
        labels: [B, S, K] float32, NaN = not labelled; K = 0 in pretraining.
        token_labels: [B, T] int32, -1 = not labelled.
        window: [B, S] int32, row of the epoch's window table; -1 = padding.
    """

    patches: np.ndarray
    channel: np.ndarray
    segment: np.ndarray
    time: np.ndarray
    text: np.ndarray
    visible: np.ndarray
    target: np.ndarray
    labels: np.ndarray
    token_labels: np.ndarray
    window: np.ndarray


def windows_digest(window):
    """An int32 that tells which windows are in an array of their numbers (-1 = padding), NumPy's or JAX's.

    Each number is mixed (the finaliser of Appleby's MurmurHash3), and all are summed: where they stand, and on which
    host, changes nothing, and modulo 2**32 the digests of an epoch's batches sum up to that of all its windows.
    """
    mixed = window.astype(np.uint32) + np.uint32(1)  # padding becomes 0, which stays 0
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
    mixed = mixed ^ (mixed >> np.uint32(16))
    return mixed.view(np.int32).sum(dtype=np.int32)  # signed, as a step's other counts are: they travel in one array
