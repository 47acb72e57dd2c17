"""The decoder: the encoder's tokens back in their places among mask tokens -> patches and words.

For pretraining, and for tasks that predict signals.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from csfm_jax.models.config import DecoderConfig, EncoderConfig
from csfm_jax.models.encoder import Encoded
from csfm_jax.models.layers import linear, vector
from csfm_jax.models.tokenizer import Place, gather
from csfm_jax.models.transformer import Sizes, Transformer
from csfm_jax.models.vocabulary import Vocabulary
from csfm_jax.sharding import constrain
from data_pipelines.batch import TokenBatch
from data_pipelines.config import TokenConfig
from data_pipelines.signals import TEXT

MASK_INIT = nnx.initializers.normal(0.02)  # He et al. 2022


class Decoded(NamedTuple):
    """What the decoder predicts.

    Attributes:
        patches: [B, T, P] float32, in the target's units, zero beyond a modality's own patch length.
        word_logits: [B, C, text_vocabulary] float32 for text tokens that are targets; None without text.
        word_at: [B, C] int32, their positions in T, ascending; T = padding. C is the most that a row can hold:
            min(T, S x text_length), so nothing is ever left out and memory does not grow with T x vocabulary.
    """

    patches: jax.Array
    word_logits: jax.Array | None
    word_at: jax.Array | None


class Decoder(nnx.Module):
    """A light transformer over the whole row (He et al. 2022) with one linear head per modality.

    Positions are of the encoder's kind, in tables of its own. No dropout.
    """

    def __init__(self, config: DecoderConfig, encoder: EncoderConfig, tokens: TokenConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.vocabulary = vocabulary = Vocabulary.of(tokens)
        dtype = jnp.dtype(encoder.compute)
        # Not ("embed", "embed"): two axes of one array cannot lie on the same mesh axis.
        self.enter = linear(encoder.width, config.width, ("embed", None), dtype=dtype, rngs=rngs)
        self.mask = vector(config.width, rngs=rngs, init=MASK_INIT)
        self.place = Place(vocabulary, encoder, config.width, rngs=rngs)
        shared = {"dropout": 0.0, "remat": encoder.remat, "compute": encoder.compute, "attention": encoder.attention}
        self.transformer = Transformer(Sizes(**{**vars(config), **shared}), rngs=rngs)
        # float32 outputs: the loss is computed from them.
        heads = zip(vocabulary.modalities, vocabulary.patches)
        self.heads = nnx.Dict(
            {
                name: linear(config.width, patch, ("embed", "patch"), dtype=jnp.float32, rngs=rngs)
                for name, patch in heads
            }
        )
        if vocabulary.text_length:
            axes = ("embed", "vocabulary")
            self.words = linear(config.width, vocabulary.text_vocabulary, axes, dtype=jnp.float32, rngs=rngs)

    def __call__(self, encoded: Encoded, batch: TokenBatch) -> Decoded:
        """Args: `encoded`, the encoder's output for `batch`."""
        x, channel = self._read(encoded, batch), jnp.asarray(batch.channel)
        logits = at = None
        if self.vocabulary.text_length:
            wanted = (channel == TEXT) & batch.target
            capacity = min(channel.shape[1], batch.window.shape[1] * self.vocabulary.text_length)
            at = first_positions(wanted, capacity)
            logits = constrain(self.words(gather(x, at)), "batch", "token", None)
        return Decoded(self._patches(x, channel), logits, at)

    def patches(self, encoded: Encoded, batch: TokenBatch) -> jax.Array:
        """`Decoded.patches` alone, for batches without text: no word is computed."""
        return self._patches(self._read(encoded, batch), jnp.asarray(batch.channel))

    def _read(self, encoded, batch):
        channel, segment = jnp.asarray(batch.channel), jnp.asarray(batch.segment)
        x = self._scatter(self.enter(encoded.tokens), batch.visible, channel.shape[1])
        x = x + self.place(channel, batch.time).astype(x.dtype)
        x = constrain(jnp.where((channel != 0)[..., None], x, jnp.zeros((), x.dtype)), "batch", "token", None)
        angles = self.place.rotary_angles(channel, batch.time, self.config.head_dim)
        return self.transformer(x, segment, angles)

    def _scatter(self, tokens_BVD, visible_BV, length):
        base = jnp.broadcast_to(
            self.mask[...].astype(tokens_BVD.dtype), (tokens_BVD.shape[0], length, self.config.width)
        )
        return jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(base, visible_BV, tokens_BVD)

    def _patches(self, x_BTD, channel_BT):
        vocabulary = self.vocabulary
        modality = jnp.asarray(vocabulary.modality_of_channel)[channel_BT]
        out = jnp.zeros((*channel_BT.shape, vocabulary.longest_patch), jnp.float32)
        for index, (name, patch) in enumerate(zip(vocabulary.modalities, vocabulary.patches)):
            one = jnp.pad(self.heads[name](x_BTD), ((0, 0), (0, 0), (0, vocabulary.longest_patch - patch)))
            out = jnp.where((modality == index)[..., None], one, out)
        return constrain(out, "batch", "token", None)


def first_positions(wanted_BT: jax.Array, capacity: int) -> jax.Array:
    """Positions of the first `capacity` True of each row, ascending, then T: [B, capacity] int32."""
    length = wanted_BT.shape[1]
    find = jax.vmap(lambda row: jnp.nonzero(row, size=capacity, fill_value=length)[0])
    return find(wanted_BT).astype(jnp.int32)
