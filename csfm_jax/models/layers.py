"""Linear, LayerNorm, embedding and dropout as used here: float32 parameters with logical axis names."""

import jax
import jax.numpy as jnp
from flax import nnx

from csfm_jax.sharding import constrain

# Linear layers as in He et al. 2022; lookup tables and CLS as in CSFM.
LINEAR_INIT = nnx.initializers.xavier_uniform()
TABLE_INIT = nnx.initializers.normal(1.0)


def axes(*names: str | None) -> dict:
    """A parameter's metadata: its logical axis names, for `sharding.RULES`.

    Eager sharding is off: it would refuse to build a model where there is no mesh, as a user of `embed()` does.
    """
    return {"out_sharding": names, "eager_sharding": False}


def linear(shape_in, shape_out, names: tuple[str | None, ...], *, bias: bool = True, dtype, rngs) -> nnx.LinearGeneral:
    """A linear map from the trailing `shape_in` axes to `shape_out` axes; `names` of the kernel's axes, ins then outs.

    The bias is split as the kernel's outputs are, except over `embed`: vectors stay whole.
    """
    shape_in, shape_out = (s if isinstance(s, tuple) else (s,) for s in (shape_in, shape_out))
    out_names = tuple("vector" if a == "embed" else a for a in names[len(shape_in) :])
    return nnx.LinearGeneral(
        shape_in,
        shape_out,
        axis=tuple(range(-len(shape_in), 0)),
        use_bias=bias,
        dtype=dtype,
        kernel_init=LINEAR_INIT,
        kernel_metadata=axes(*names),
        bias_metadata=axes(*out_names),
        rngs=rngs,
    )


def layer_norm(size: int, *, dtype, rngs) -> nnx.LayerNorm:
    """LayerNorm as PyTorch computes it: eps 1e-5 and the two-pass variance, statistics in float32."""
    return nnx.LayerNorm(
        size,
        epsilon=1e-5,
        use_fast_variance=False,
        dtype=dtype,
        scale_metadata=axes("vector"),
        bias_metadata=axes("vector"),
        rngs=rngs,
    )


def table(rows: int, width: int, names: tuple[str, str], *, rngs: nnx.Rngs) -> nnx.Param:
    """A learned lookup table [rows, width], N(0, 1) as published."""
    return nnx.Param(TABLE_INIT(rngs.params(), (rows, width), jnp.float32), **axes(*names))


def lookup(rows: nnx.Param, index: jax.Array) -> jax.Array:
    """Rows of a table by index, [...] -> [..., width]; NaN out of range, never another row."""
    # Whole on every device before the lookup, as a matrix is before its product; else the compiler gathers the result
    # for the whole batch on every device.
    return jnp.take(constrain(rows[...], None, None), index, axis=0, mode="fill")


def vector(width: int, *, rngs: nnx.Rngs, init=TABLE_INIT) -> nnx.Param:
    """One learned vector [width]."""
    return nnx.Param(init(rngs.params(), (width,), jnp.float32), **axes("vector"))


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout; the identity without a key. A function of its key, so that recomputing drops the same."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
