"""Heads: what an encoder gives for a window -> one number for every output of a task."""

import jax
import jax.numpy as jnp
from flax import nnx

from csfm_jax.models.config import EncoderConfig
from csfm_jax.models.encoder import Encoded, Encoder, Layers
from csfm_jax.models.layers import dropout, layer_norm, linear, vector
from csfm_jax.sharding import constrain
from data_pipelines.batch import TokenBatch

GATE = (256, 128)  # hidden widths of the mixture's gate (ECG-Soup, `st_mem_vit_mol.py`)


class Head(nnx.Module):
    """Pools what the encoder gives and maps it linearly to the outputs, in float32; the base of all heads."""

    def __init__(self, width: int, outputs: int, rate: float, *, rngs: nnx.Rngs):
        self.rate = rate
        self.out = linear(width, outputs, ("embed", None), dtype=jnp.float32, rngs=rngs)

    def read(self, encoder: Encoder, batch: TokenBatch, key: jax.Array | None) -> Encoded | Layers:
        """What the head needs of the encoder; key: of the encoder's dropout."""
        return encoder(batch, key=key)

    def pool(self, read, windows: int) -> jax.Array:
        """[B, S, D] float32; windows: S."""
        raise NotImplementedError

    def __call__(self, read: Encoded | Layers, windows: int, *, key: jax.Array | None = None) -> jax.Array:
        """[B, S, outputs] float32; what stands at windows that are not there means nothing.

        Args: `read`, of `read`. windows: S. key: of dropout; None = none.
        """
        pooled = constrain(self.pool(read, windows), "batch", "segment", None)
        return constrain(self.out(dropout(pooled, self.rate, key)), "batch", "segment", None)


class Linear(Head):
    """On the window's embedding, pooled as `encoder.pooling` says."""

    def pool(self, read: Encoded, windows: int) -> jax.Array:
        return read.pooled


class Attention(Head):
    """A learned query a head attends to the visible tokens of each window (the "frozen" protocol of the reality check
    of ECG models, Al-Masud et al. 2026): no bias on keys and values; never across windows."""

    def __init__(self, sizes: EncoderConfig, outputs: int, rate: float, *, rngs: nnx.Rngs):
        heads = (sizes.heads, sizes.head_dim)
        super().__init__(sizes.heads * sizes.head_dim, outputs, rate, rngs=rngs)
        names, dtype = ("embed", "heads", "head_dim"), jnp.dtype(sizes.compute)
        self.norm = layer_norm(sizes.width, dtype=dtype, rngs=rngs)
        self.keys = linear(sizes.width, heads, names, bias=False, dtype=dtype, rngs=rngs)
        self.values = linear(sizes.width, heads, names, bias=False, dtype=dtype, rngs=rngs)
        self.query = vector(sizes.heads * sizes.head_dim, rngs=rngs, init=nnx.initializers.normal(0.02))

    def pool(self, read: Encoded, windows: int) -> jax.Array:
        tokens = self.norm(read.tokens)
        keys, values = self.keys(tokens), self.values(tokens).astype(jnp.float32)
        heads, head_dim = keys.shape[-2:]
        query = self.query[...].reshape(heads, head_dim)
        exact = jax.lax.Precision.HIGHEST
        scores = jnp.einsum("bvhd,hd->bvh", keys.astype(jnp.float32), query, precision=exact) / jnp.sqrt(head_dim)
        member = read.segment[:, :, None] == jnp.arange(1, windows + 1)  # [B, V, S]
        # each window's own largest score: that of the row could leave another window with nothing but zeros
        own = jnp.where(member[..., None], scores[:, :, None], -jnp.inf).max(axis=1)  # [B, S, H]
        own = jax.lax.stop_gradient(jnp.where(jnp.isfinite(own), own, 0.0))
        member = member.astype(jnp.float32)
        largest = jnp.einsum("bvs,bsh->bvh", member, own, precision=exact)
        weight = jnp.where((read.segment > 0)[..., None], jnp.exp(scores - largest), 0.0)
        total = jnp.einsum("bvs,bvh->bsh", member, weight, precision=exact)
        pooled = jnp.einsum("bvs,bvh,bvhd->bshd", member, weight, values, precision=exact)
        pooled /= jnp.where(total > 0, total, 1.0)[..., None]
        return pooled.reshape(*pooled.shape[:2], heads * head_dim)


class Average(Head):
    """The plain average of all layers' means over tokens, then LayerNorm: ECG-Soup's PPA (Nguyen et al. 2025)."""

    def __init__(self, sizes: EncoderConfig, outputs: int, rate: float, *, rngs: nnx.Rngs):
        super().__init__(sizes.width, outputs, rate, rngs=rngs)
        self.norm = layer_norm(sizes.width, dtype=jnp.float32, rngs=rngs)

    def read(self, encoder: Encoder, batch: TokenBatch, key: jax.Array | None) -> Layers:
        return encoder.layers(batch, key=key)

    def pool(self, read: Layers, windows: int) -> jax.Array:
        return self.norm(read.pooled.mean(axis=0))


class Mixture(Average):
    """Layers weighed by a gate that reads the mean of the tokens before the first block: ECG-Soup's PMA.

    The gate's last layer starts at zero, i.e. as `Average`.
    """

    def __init__(self, sizes: EncoderConfig, outputs: int, rate: float, *, rngs: nnx.Rngs):
        super().__init__(sizes, outputs, rate, rngs=rngs)
        self.gate_norm = layer_norm(sizes.width, dtype=jnp.float32, rngs=rngs)
        widths = (sizes.width, *GATE)
        self.gate = nnx.List(
            [linear(i, o, (None, None), dtype=jnp.float32, rngs=rngs) for i, o in zip(widths, widths[1:])]
        )
        self.last = linear(GATE[-1], sizes.depth, (None, None), dtype=jnp.float32, rngs=rngs)
        self.last.kernel[...] = jnp.zeros_like(self.last.kernel[...])

    def weights(self, read: Layers) -> jax.Array:
        """[B, S, L], what each layer counts; they add up to 1."""
        x = self.gate_norm(read.embedded)
        for layer in self.gate:
            x = jax.nn.gelu(layer(x), approximate=False)
        return jax.nn.softmax(self.last(x), axis=-1)

    def pool(self, read: Layers, windows: int) -> jax.Array:
        exact = jax.lax.Precision.HIGHEST
        return self.norm(jnp.einsum("bsl,lbsd->bsd", self.weights(read), read.pooled, precision=exact))


def build(name: str, sizes: EncoderConfig, outputs: int, rate: float, *, rngs: nnx.Rngs) -> Head:
    """The head of a name of `tasks.config.HEADS`; `tasks.config.check` refuses others.

    Args:
        sizes: of the encoder. outputs: how many numbers a window gives. rate: of dropout.
    """
    if name == "linear":
        return Linear(sizes.width, outputs, rate, rngs=rngs)
    kinds = {"attention": Attention, "average": Average, "mixture": Mixture}
    return kinds[name](sizes, outputs, rate, rngs=rngs)
