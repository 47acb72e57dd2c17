"""Tokens of a packed row -> vectors: content (patch, word, CLS) plus place (channel, time, text index)."""

import jax
import jax.numpy as jnp
from flax import nnx

from csfm_jax.models.config import EncoderConfig
from csfm_jax.models.layers import layer_norm, linear, lookup, table, vector
from csfm_jax.models.position import angles, sincos
from csfm_jax.models.vocabulary import Vocabulary
from data_pipelines.signals import CLS, TEXT


def gather(x_BTX: jax.Array, positions_BV: jax.Array) -> jax.Array:
    """Rows of each batch row at `positions`; zeros where a position is out of range (padding)."""
    return jax.vmap(lambda x, at: x.at[at].get(mode="fill", fill_value=0))(x_BTX, positions_BV)


class PatchProjection(nnx.Module):
    """LayerNorm over the patch's samples, linear map to the width, LayerNorm (as in CSFM)."""

    def __init__(self, patch: int, width: int, *, dtype, rngs: nnx.Rngs):
        self.norm_in = layer_norm(patch, dtype=dtype, rngs=rngs)
        self.linear = linear(patch, width, ("patch", "embed"), dtype=dtype, rngs=rngs)
        self.norm_out = layer_norm(width, dtype=dtype, rngs=rngs)

    def __call__(self, patches_BVP: jax.Array) -> jax.Array:
        # Changes nothing but the rounding: LayerNorm's own mean of a smooth patch far from zero costs digits that the
        # division by a small deviation then brings up (measured: errors of 1e-5 in embeddings become 1e-6).
        centred = patches_BVP - patches_BVP.mean(axis=-1, keepdims=True)
        return self.norm_out(self.linear(self.norm_in(centred)))


class PatchEmbedding(nnx.Module):
    """One projection "shared" by all modalities (the longest patch's, shorter ones zero-filled), or one per "modality".

    Per modality, every token goes through every projection and the right one is kept: M small products instead of a
    gather, a fraction of a percent of the encoder's work.
    """

    def __init__(self, vocabulary: Vocabulary, config: EncoderConfig, *, dtype, rngs: nnx.Rngs):
        self.vocabulary = vocabulary
        parts = {"shared": vocabulary.longest_patch}
        if config.projection == "modality":
            parts = dict(zip(vocabulary.modalities, vocabulary.patches))
        self.projections = nnx.Dict(
            {name: PatchProjection(patch, config.width, dtype=dtype, rngs=rngs) for name, patch in parts.items()}
        )

    def __call__(self, patches_BVP: jax.Array, modality_BV: jax.Array) -> jax.Array:
        if "shared" in self.projections:
            return self.projections["shared"](patches_BVP)
        vocabulary, out = self.vocabulary, None
        for index, (name, patch) in enumerate(zip(vocabulary.modalities, vocabulary.patches)):
            one = self.projections[name](patches_BVP[..., :patch])
            out = one if out is None else jnp.where((modality_BV == index)[..., None], one, out)
        return out


class TextEmbedding(nnx.Module):
    """Word table and LayerNorm (as in CSFM)."""

    def __init__(self, vocabulary: Vocabulary, width: int, *, dtype, rngs: nnx.Rngs):
        self.words = table(vocabulary.text_vocabulary, width, ("vocabulary", "embed"), rngs=rngs)
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs)

    def __call__(self, text_BV: jax.Array) -> jax.Array:
        return self.norm(lookup(self.words, text_BV))


class Place(nnx.Module):
    """What a token is apart from its content: channel and time of a signal token, index and type of a text token.

    A time beyond the learned table gives NaN, never a wrong row; `models.config.check` refuses such configs.
    """

    def __init__(self, vocabulary: Vocabulary, config: EncoderConfig, width: int, *, rngs: nnx.Rngs):
        self.vocabulary, self.position, self.seconds = vocabulary, config.position, config.position_seconds
        self.channel = table(len(vocabulary.channels), width, ("channel", "embed"), rngs=rngs)
        if config.position == "learned":
            self.time = table(config.position_steps, width, ("step", "embed"), rngs=rngs)
        if vocabulary.text_length:
            self.text_index = table(vocabulary.text_length, width, ("step", "embed"), rngs=rngs)
            self.text_type = vector(width, rngs=rngs)

    def __call__(self, channel_BN: jax.Array, time_BN: jax.Array) -> jax.Array:
        """[B, N] channel ids and times -> [B, N, D] float32; zeros for CLS and padding."""
        row = jnp.asarray(self.vocabulary.row_of_channel)[channel_BN]
        place = lookup(self.channel, row)
        if self.position == "learned":
            place += lookup(self.time, step_of(time_BN, self.seconds))
        elif self.position == "sincos":
            place += sincos(time_BN, self.channel.shape[-1])
        place = jnp.where(is_signal(channel_BN)[..., None], place, 0.0)
        if self.vocabulary.text_length:
            text = lookup(self.text_index, time_BN.astype(jnp.int32)) + self.text_type[...]
            place = jnp.where((channel_BN == TEXT)[..., None], text, place)
        return place

    def rotary_angles(self, channel_BN: jax.Array, time_BN: jax.Array, head_dim: int) -> jax.Array | None:
        """[B, N, head_dim / 2] radians, 0 for CLS, text and padding; None where positions are not rotary."""
        if self.position != "rotary":
            return None
        return jnp.where(is_signal(channel_BN)[..., None], angles(time_BN, head_dim // 2), 0.0)


def step_of(time: jax.Array, seconds: float) -> jax.Array:
    """Row of the learned time table: the step of `seconds` in which a patch's centre lies.

    Equals CSFM's round(time / seconds - 0.5) on its own grid. A patch of another length may be centred on a border
    between two steps, where rounding would follow the last bit of the division, which compilers do differently: the
    thousandth puts all borders on the later step.
    """
    return jnp.floor(time / seconds + 1e-3).astype(jnp.int32)


def is_signal(channel: jax.Array) -> jax.Array:
    return (channel != 0) & (channel != CLS) & (channel != TEXT)


class Tokenizer(nnx.Module):
    """The encoder's input: content plus place of every visible token."""

    def __init__(self, vocabulary: Vocabulary, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.vocabulary = vocabulary
        dtype = jnp.dtype(config.compute)
        self.patch = PatchEmbedding(vocabulary, config, dtype=dtype, rngs=rngs)
        self.place = Place(vocabulary, config, config.width, rngs=rngs)
        if vocabulary.text_length:
            self.text = TextEmbedding(vocabulary, config.width, dtype=dtype, rngs=rngs)
        self.cls = vector(config.width, rngs=rngs)

    def __call__(self, patches_BVP, channel_BV, time_BV, text_BV) -> jax.Array:
        """Already gathered tokens -> [B, V, D]; zeros at padding."""
        modality = jnp.asarray(self.vocabulary.modality_of_channel)[channel_BV]
        content = self.patch(patches_BVP, modality)
        if self.vocabulary.text_length:
            content = jnp.where((channel_BV == TEXT)[..., None], self.text(text_BV), content)
        content = jnp.where((channel_BV == CLS)[..., None], self.cls[...].astype(content.dtype), content)
        tokens = content + self.place(channel_BV, time_BV).astype(content.dtype)
        return jnp.where((channel_BV != 0)[..., None], tokens, jnp.zeros((), tokens.dtype))
