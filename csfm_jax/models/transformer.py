"""Pre-LN transformer over packed rows: blocks stacked on a leading `layers` axis and scanned."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from csfm_jax.models.attention import attend
from csfm_jax.models.layers import dropout, layer_norm, linear
from csfm_jax.models.position import rotate
from csfm_jax.sharding import constrain


@dataclass(frozen=True)
class Sizes:
    """What one transformer needs to know; see `EncoderConfig` for the fields."""

    width: int
    depth: int
    heads: int
    head_dim: int
    mlp: int
    dropout: float
    remat: str
    compute: str
    attention: str
    output: str = "last"


class Attention(nnx.Module):
    """Multi-head self-attention within segments; `head_dim` does not depend on the width; no bias on q, k, v."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        self.backend = sizes.attention
        heads, width = (sizes.heads, sizes.head_dim), sizes.width
        dtype = jnp.dtype(sizes.compute)
        axes = ("embed", "qkv", "heads", "head_dim")
        self.qkv = linear(width, (3, *heads), axes, bias=False, dtype=dtype, rngs=rngs)
        self.out = linear(heads, width, ("heads", "head_dim", "embed"), dtype=dtype, rngs=rngs)

    def __call__(self, x_BND, segment_BN, angles_BNR):
        qkv = constrain(self.qkv(x_BND), "batch", "token", "qkv", "heads", "head_dim")
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if angles_BNR is not None:
            q, k = rotate(q, angles_BNR), rotate(k, angles_BNR)
        return self.out(attend(q, k, v, segment_BN, backend=self.backend))


class Block(nnx.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)) with the exact (erf) GELU.

    Dropout follows attention's projection and both MLP layers. CSFM drops attention weights too; fused kernels never
    have them in memory, so we do not.
    """

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        self.rate = sizes.dropout
        dtype = jnp.dtype(sizes.compute)
        self.attention_norm = layer_norm(sizes.width, dtype=dtype, rngs=rngs)
        self.attention = Attention(sizes, rngs=rngs)
        self.mlp_norm = layer_norm(sizes.width, dtype=dtype, rngs=rngs)
        self.up = linear(sizes.width, sizes.mlp, ("embed", "mlp"), dtype=dtype, rngs=rngs)
        self.down = linear(sizes.mlp, sizes.width, ("mlp", "embed"), dtype=dtype, rngs=rngs)

    def __call__(self, x_BND, segment_BN, angles_BNR, key):
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        attended = self.attention(self.attention_norm(x_BND), segment_BN, angles_BNR)
        x_BND = constrain(x_BND + dropout(attended, self.rate, keys[0]), "batch", "token", None)
        hidden = constrain(self.up(self.mlp_norm(x_BND)), "batch", "token", "mlp")
        hidden = dropout(jax.nn.gelu(hidden, approximate=False), self.rate, keys[1])
        return constrain(x_BND + dropout(self.down(hidden), self.rate, keys[2]), "batch", "token", None)


class Transformer(nnx.Module):
    """`depth` blocks and a final LayerNorm.

    One block is compiled, whatever the depth: 48 layers compile as fast as 12.
    """

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        self.sizes = sizes

        @nnx.split_rngs(splits=sizes.depth)
        @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def stack(rngs):
            return Block(sizes, rngs=rngs)

        self.blocks = stack(rngs)
        self.norm = layer_norm(sizes.width, dtype=jnp.dtype(sizes.compute), rngs=rngs)

    def __call__(self, x_BND: jax.Array, segment_BN: jax.Array, angles_BNR=None, *, key=None) -> jax.Array:
        """Args:
            x_BND: tokens. segment_BN: window of each, 0 = padding. angles_BNR: of rotary positions, or None.
            key: of dropout; None = none.

        Returns:
            [B, N, D]; what stands at padding is finite and means nothing.
        """
        if self.sizes.output == "last":
            return self.norm(self._run(x_BND, segment_BN, angles_BNR, key)[0])
        _, total, _ = self._run(x_BND, segment_BN, angles_BNR, key, add=lambda x: self.norm(x).astype(jnp.float32))
        return (total / self.sizes.depth).astype(x_BND.dtype)

    def layers(self, x_BND: jax.Array, segment_BN: jax.Array, angles_BNR, summarise, *, key=None) -> jax.Array:
        """`summarise` of every block's output, stacked: [L, ...]; the final LayerNorm has no part in it.

        Args: as of a call. summarise: [B, N, D] -> an array that is small enough to be kept L times.
        """
        return self._run(x_BND, segment_BN, angles_BNR, key, summarise=summarise)[2]

    def _run(self, x_BND, segment_BN, angles_BNR, key, *, add=None, summarise=None):
        """What leaves the last block; the sum of `add`, and all of `summarise`, of what leaves each one."""
        sizes = self.sizes

        def step(carry, layer):
            (x, total), (block, layer_key) = carry, layer
            x = block(x, segment_BN, angles_BNR, layer_key)
            return (x, total + add(x) if add else None), summarise(x) if summarise else None

        if sizes.remat != "none":
            policies = jax.checkpoint_policies
            keep = {"dots": policies.dots_with_no_batch_dims_saveable, "full": policies.nothing_saveable}[sizes.remat]
            # A scan already keeps the compiler from merging the recomputation with the forward pass.
            step = jax.checkpoint(step, policy=keep, prevent_cse=False)
        keys = None if key is None else jax.random.split(key, sizes.depth)
        total = jnp.zeros(x_BND.shape, jnp.float32) if add else None
        (x_BND, total), summaries = jax.lax.scan(step, (x_BND, total), (self.blocks, keys))
        return x_BND, total, summaries
