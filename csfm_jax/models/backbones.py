"""One interface for every backbone: a batch of packed rows -> `Encoded`, whatever network is in between."""

import jax
import jax.numpy as jnp
from flax import nnx

from csfm_jax.config import Config
from csfm_jax.models.convolution import mean_there
from csfm_jax.models.encoder import Encoded, Encoder, pool
from csfm_jax.models.net1d import Net1D
from csfm_jax.models.s4 import S4, Packing
from csfm_jax.models.waveform import (
    Frames,
    at_tokens,
    in_rows,
    in_windows,
    steps_since,
    visible_tokens,
    with_summaries,
)
from csfm_jax.models.xresnet1d import XResNet1d
from csfm_jax.sharding import constrain
from data_pipelines.batch import TokenBatch

NETWORKS = {"s4": S4, "net1d": Net1D, "xresnet1d": XResNet1d}


def build_encoder(config: Config, *, rngs: nnx.Rngs) -> nnx.Module:
    """The encoder that `config.backbone.name` names (`models.config.check` refuses what cannot be built).

    Args:
        rngs: the stream "params" initialises.

    Returns:
        A module that is called as `Encoder` is, and gives `Encoded`; D is `backbone_config.width(config)`.
    """
    if config.backbone.name == "transformer":
        return Encoder(config.encoder, config.tokens, rngs=rngs)
    return FrameEncoder(config, rngs=rngs)


class FrameEncoder(nnx.Module):
    """A network along time on frame tokens (S4, Net1D, xResNet1d).

    As of `Encoder`, a window's embedding depends on its own visible tokens only: not on its neighbours in the row, nor
    on padding, nor on other rows. Absent channels are zeros beside a flag that says so, absent frames are left out of
    every statistic. A window longer than `data.window.seconds` becomes NaN.

    Args:
        config: of a checked run.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        name = config.backbone.name
        self.frames = Frames.of(config.tokens, config.data.window.seconds)
        self.packed = name == "s4" and config.backbone.s4.form == "scan"
        self.dtype = jnp.dtype(config.backbone.compute)
        sizes = getattr(config.backbone, name)
        self.network = NETWORKS[name](sizes, self.frames.inputs, self.dtype, rngs=rngs)

    def __call__(self, batch: TokenBatch, *, key: jax.Array | None = None) -> Encoded:
        """Args:
            batch: see `TokenBatch`, of frame tokens; only those at `batch.visible` are read.
            key: of dropout; None = none.

        Returns:
            `Encoded`; a frame's embedding is the feature at its centre, CLS's that of its window: their mean over time.

        Raises:
            BadInput: the batch was made with other channels or patch lengths than the model.
        """
        tokens = visible_tokens(self.frames, batch)
        windows = batch.window.shape[1]
        forward = self._rows if self.packed else self._windows
        embedded, pooled = forward(tokens, windows, key)
        embedded = with_summaries(tokens, embedded, pooled)
        embedded = jnp.where((tokens.segment > 0)[..., None], embedded, jnp.zeros((), embedded.dtype))
        embedded = constrain(embedded, "batch", "token", None)
        pooled = constrain(pooled, "batch", "segment", None)
        return Encoded(embedded, pooled, tokens.channel, tokens.segment, tokens.time)

    def _windows(self, tokens, windows, key):
        signals = in_windows(self.frames, tokens, windows)
        features, there = self.network(signals.x.astype(self.dtype), signals.there, key=key)
        embedded = at_tokens(self.frames, tokens, features, self.network.stride, windows)
        return embedded, mean_there(features, there).reshape(-1, windows, features.shape[-1])

    def _rows(self, tokens, windows, key):
        signals = in_rows(self.frames, tokens)
        segment = jnp.repeat(tokens.segment, self.frames.patch, axis=1)
        packing = Packing(steps_since(self.frames, tokens), segment, windows)
        features, _ = self.network(signals.x.astype(self.dtype), signals.there, packing=packing, key=key)
        features = features.reshape(*tokens.channel.shape, self.frames.patch, -1)
        # all of a frame's samples are there: the mean over its window's frames is that over its samples
        pooled = pool(features.astype(jnp.float32).mean(axis=2), tokens.channel, tokens.segment, windows, "mean")
        return features[:, :, self.frames.patch // 2], pooled
