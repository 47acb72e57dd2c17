"""Frame tokens of packed rows -> signals along time, [window, time, channels], and features along time -> tokens."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from csfm_jax.models.tokenizer import gather
from csfm_jax.sharding import constrain
from data_pipelines.batch import MODALITY_OF, MODALITY_ROW, TokenBatch
from data_pipelines.config import TokenConfig
from data_pipelines.errors import BadInput
from data_pipelines.signals import CLS, MODALITIES
from data_pipelines.windows import frame_channels, longest_patch, samples_in


@dataclass(frozen=True)
class Frames:
    """What a model of frames knows of them. Hashable, as jit wants of static parts.

    Attributes:
        modalities: rows of `signals.MODALITIES`, and channels: how many of each, in the config's order.
        patch: samples of a frame. rate: Hz. values: P, of the longest token.
        longest: frames of the longest window.
    """

    modalities: tuple[int, ...]
    channels: tuple[int, ...]
    patch: int
    rate: int
    values: int
    longest: int

    @classmethod
    def of(cls, tokens: TokenConfig, seconds: float) -> "Frames":
        """Of a config whose modalities share rate and patch (`backbone_config.check`). seconds: of a window."""
        first = tokens.modalities[0]
        rate, patch = MODALITIES[first].rate, tokens.patch[first]
        return cls(
            modalities=tuple(MODALITY_ROW[m] for m in tokens.modalities),
            channels=tuple(len(frame_channels(tokens, m)) for m in tokens.modalities),
            patch=patch,
            rate=rate,
            values=longest_patch(tokens),
            longest=int(samples_in(seconds, rate)) // patch,
        )

    @property
    def inputs(self) -> int:
        """Channels of a network's input: the values of every channel, and whether it is there."""
        return 2 * sum(self.channels)


class Tokens(NamedTuple):
    """A batch's visible tokens, gathered.

    Attributes:
        patches: [B, V, P]. channel, segment: [B, V] int32. time: [B, V] float32.
        frame: [B, V] int32, which frame of its window a token is; meaningless where `signal` is False.
        signal: [B, V] bool, neither CLS nor padding.
    """

    patches: jax.Array
    channel: jax.Array
    segment: jax.Array
    time: jax.Array
    frame: jax.Array
    signal: jax.Array


class Signals(NamedTuple):
    """Input of a network along time.

    Attributes:
        x: [N, L, C] float32; zeros where nothing is there. Its last channels say which of the first are there.
        there: [N, L] bool, samples of which some channel is there.
    """

    x: jax.Array
    there: jax.Array


def visible_tokens(frames: Frames, batch: TokenBatch) -> Tokens:
    """The tokens at `batch.visible`: what is hidden is absent for a network of frames.

    Raises:
        BadInput: the batch was made with other channels or patch lengths than the model.
    """
    if batch.patches.shape[-1] != frames.values:
        expected = f"{frames.values}, the model's frames with their flags"
        raise BadInput("batch.patches", f"{batch.patches.shape[-1]} values a token", expected, "use one config")
    patches, channel, segment, time = (
        constrain(gather(jnp.asarray(x), batch.visible), "batch", "token", *(None,) * (x.ndim - 2))
        for x in (batch.patches, batch.channel, batch.segment, batch.time)
    )
    frame = (time * (frames.rate / frames.patch)).astype(jnp.int32)  # of a patch's centre
    return Tokens(patches, channel, segment, time, frame, (channel != 0) & (channel != CLS))


def in_windows(frames: Frames, tokens: Tokens, windows: int) -> Signals:
    """Every window on a time axis of its own: [B x S, longest x patch, C]; modalities side by side.

    A row's windows leave it for axes of their own because a convolution has no boundaries to stop at. A window that is
    longer than the model's longest becomes NaN, never a shorter one.

    Args:
        windows: S, of a row.
    """
    rows, longest = tokens.channel.shape[0], frames.longest
    values, flags, some = [], [], jnp.zeros((rows, windows * longest), bool)
    modality = jnp.asarray(np.asarray(MODALITY_OF, np.int32))[tokens.channel]
    place, fits = (tokens.segment - 1) * longest + tokens.frame, tokens.frame < longest
    for row, channels in zip(frames.modalities, frames.channels):
        mine = tokens.signal & (modality == row)
        at = jnp.where(mine & fits, place, windows * longest)
        size = channels * (frames.patch + 1)
        spread = jax.vmap(lambda new, at, size=size: jnp.zeros((windows * longest, size)).at[at].set(new, mode="drop"))
        value, flag = _opened(frames, spread(tokens.patches[..., :size], at), channels)
        values, flags = [*values, value], [*flags, flag]
        some |= jax.vmap(lambda at: jnp.zeros(windows * longest, bool).at[at].set(True, mode="drop"))(at)
    x = jnp.concatenate(values + flags, axis=-1).reshape(rows * windows, longest * frames.patch, frames.inputs)
    beyond = tokens.signal & ~fits
    cut = (beyond[:, :, None] & (tokens.segment[:, :, None] == jnp.arange(1, windows + 1))).any(axis=1)
    x = jnp.where(cut.reshape(-1, 1, 1), jnp.nan, x)
    there = jnp.repeat(some.reshape(rows * windows, longest), frames.patch, axis=1)
    return Signals(constrain(x, "batch", None, None), constrain(there, "batch", None))


def in_rows(frames: Frames, tokens: Tokens) -> Signals:
    """Rows as they are packed, one window after the other: [B, V x patch, C], of one modality."""
    rows, seen = tokens.channel.shape
    patches = jnp.where(tokens.signal[..., None], tokens.patches, 0.0)
    value, flag = _opened(frames, patches, frames.channels[0])
    x = jnp.concatenate([value, flag], axis=-1).reshape(rows, seen * frames.patch, frames.inputs)
    there = jnp.repeat(tokens.signal, frames.patch, axis=1)
    return Signals(constrain(x, "batch", None, None), constrain(there, "batch", None))


def _opened(frames, patches_BNP, channels):
    """Values and flags, [B, N, patch, channels] both, of frames [B, N, channels x (patch + 1)]."""
    split = channels * frames.patch
    value = patches_BNP[..., :split].reshape(*patches_BNP.shape[:2], frames.patch, channels)
    return value, jnp.broadcast_to(patches_BNP[..., None, split:], value.shape)


def steps_since(frames: Frames, tokens: Tokens) -> jax.Array:
    """[B, V x patch] int32 of packed rows: samples since the previous one of the same window; 0 = it is the first."""
    before = jnp.pad(tokens.frame, ((0, 0), (1, 0)))[:, :-1]
    same = tokens.signal & jnp.pad(tokens.signal, ((0, 0), (1, 0)))[:, :-1]
    same &= tokens.segment == jnp.pad(tokens.segment, ((0, 0), (1, 0)))[:, :-1]
    # frames that are absent in between took their time
    first = jnp.where(same, 1 + (tokens.frame - before - 1) * frames.patch, 0)
    rest = jnp.ones((*first.shape, frames.patch - 1), first.dtype)
    return jnp.concatenate([first[..., None], rest], axis=-1).reshape(first.shape[0], -1)


def at_tokens(frames: Frames, tokens: Tokens, features_NLD: jax.Array, stride: int, windows: int) -> jax.Array:
    """The feature at the centre of each frame: [B, V, D] of features [B x S, L, D], `stride` samples apart."""
    rows, (_, length, width) = tokens.channel.shape[0], features_NLD.shape
    centre = (tokens.frame * frames.patch + frames.patch // 2) // stride
    at = (tokens.segment - 1) * length + jnp.minimum(centre, length - 1)
    at = jnp.where(tokens.signal, at, windows * length)
    return gather(features_NLD.reshape(rows, windows * length, width), at)


def with_summaries(tokens: Tokens, embedded_BVD: jax.Array, pooled_BSD: jax.Array) -> jax.Array:
    """Frames' embeddings with, at CLS tokens, the embedding of their window."""
    of_window = gather(pooled_BSD, tokens.segment - 1)
    is_cls = (tokens.channel == CLS)[..., None]
    return jnp.where(is_cls, of_window.astype(embedded_BVD.dtype), embedded_BVD)
