"""The encoder: visible tokens of packed rows -> token and window embeddings, for any subset of sensors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from csfm_jax.models.config import EncoderConfig
from csfm_jax.models.layers import dropout
from csfm_jax.models.tokenizer import Tokenizer, gather
from csfm_jax.models.transformer import Sizes, Transformer
from csfm_jax.models.vocabulary import Vocabulary
from csfm_jax.sharding import constrain
from data_pipelines.batch import TokenBatch
from data_pipelines.config import TokenConfig
from data_pipelines.errors import BadInput
from data_pipelines.signals import CLS


class Encoded(NamedTuple):
    """What the encoder gives for a batch.

    Attributes:
        tokens: [B, V, D] embeddings of the visible tokens, in the order of `batch.visible`; zeros at padding.
        pooled: [B, S, D] float32, one embedding a window; zeros where a row has fewer windows.
        channel, segment: [B, V] int32 and time: [B, V] float32, of the same tokens; channel 0 = padding.
    """

    tokens: jax.Array
    pooled: jax.Array
    channel: jax.Array
    segment: jax.Array
    time: jax.Array


class Layers(NamedTuple):
    """Every layer's mean over a window's visible tokens but CLS, before the final LayerNorm.

    Attributes:
        embedded: [B, S, D] float32, of what enters the first block.
        pooled: [L, B, S, D] float32, of what leaves each block; zeros where a row has fewer windows.
    """

    embedded: jax.Array
    pooled: jax.Array


class Encoder(nnx.Module):
    """CSFM's encoder (Gu et al. 2026) on packed rows.

    A window's embedding depends on its own visible tokens only: not on its neighbours in the row, on padding, on the
    order of its channels or on other rows.

    Args:
        config, tokens: sizes and vocabulary. rngs: the stream "params" initialises.
    """

    def __init__(self, config: EncoderConfig, tokens: TokenConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.vocabulary = Vocabulary.of(tokens)
        self.tokenizer = Tokenizer(self.vocabulary, config, rngs=rngs)
        sizes = {f: getattr(config, f) for f in Sizes.__dataclass_fields__}
        self.transformer = Transformer(Sizes(**sizes), rngs=rngs)

    def __call__(self, batch: TokenBatch, *, key: jax.Array | None = None) -> Encoded:
        """Args:
            batch: see `TokenBatch`; only tokens at `batch.visible` are read.
            key: of dropout; None = none.

        Raises:
            BadInput: the batch was made with other patch lengths than the model.
        """
        x, angles, (channel, segment, time), key = self._embed(batch, key)
        x = self.transformer(x, segment, angles, key=key)
        x = jnp.where((segment > 0)[..., None], x, jnp.zeros((), x.dtype))
        pooled = pool(x, channel, segment, batch.window.shape[1], self.config.pooling)
        return Encoded(x, constrain(pooled, "batch", "segment", None), channel, segment, time)

    def layers(self, batch: TokenBatch, *, key: jax.Array | None = None) -> Layers:
        """What the layers give one by one, for heads that read all of them; arguments and errors as of a call."""
        x, angles, (channel, segment, _), key = self._embed(batch, key)

        def mean(x):
            return constrain(pool(x, channel, segment, batch.window.shape[1], "mean"), "batch", "segment", None)

        return Layers(mean(x), self.transformer.layers(x, segment, angles, mean, key=key))

    def _embed(self, batch: TokenBatch, key: jax.Array | None):
        """Visible tokens as they enter the first block, their rotary angles, (channel, segment, time), and the
        blocks' key."""
        if batch.patches.shape[-1] != self.vocabulary.longest_patch:
            expected = f"{self.vocabulary.longest_patch}, the model's longest patch"
            raise BadInput("batch.patches", f"{batch.patches.shape[-1]} samples a token", expected, "use one config")
        # Gather first, then embed: the work follows V, not T.
        patches, channel, time, text, segment = (
            constrain(gather(jnp.asarray(x), batch.visible), "batch", "token", *(None,) * (x.ndim - 2))
            for x in (batch.patches, batch.channel, batch.time, batch.text, batch.segment)
        )
        keys = (None, None) if key is None else jax.random.split(key)
        x = self.tokenizer(patches, channel, time, text)
        x = constrain(dropout(x, self.config.dropout, keys[0]), "batch", "token", None)
        angles = self.tokenizer.place.rotary_angles(channel, time, self.config.head_dim)
        return x, angles, (channel, segment, time), keys[1]


def pool(tokens_BVD, channel_BV, segment_BV, windows: int, pooling: str) -> jax.Array:
    """One vector a window: its CLS token ("cls"), or the mean of its other visible tokens ("mean").

    Returns:
        [B, windows, D] float32; window s of the result is segment s + 1; zeros for windows that are not there.
    """
    chosen = (channel_BV == CLS) if pooling == "cls" else (channel_BV != CLS)
    member = (segment_BV[..., None] == jnp.arange(1, windows + 1)) & chosen[..., None]
    weight = member.astype(jnp.float32)
    weight /= jnp.maximum(weight.sum(axis=1, keepdims=True), 1.0)
    # Exact products: at the TPU's default precision an embedding would be rounded to bfloat16 by its own pooling.
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("bvs,bvd->bsd", weight, tokens_BVD.astype(jnp.float32), precision=exact)
