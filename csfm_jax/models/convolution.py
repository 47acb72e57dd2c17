"""What convolutional backbones are made of: convolutions, norms and pools along time that never see what is absent.

Windows of a batch differ in length and have gaps. What is absent is zero at every layer, statistics are of what is
there, and paddings do not depend on the length of the batch: a window gives what it gives alone. Batch norm cannot do
that, and would mix patients; group norm stands for it (Wu & He 2018).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from csfm_jax.models.layers import axes

CONV_INIT = nnx.initializers.he_normal()


def conv(inputs: int, outputs: int, kernel: int, *, stride=1, groups=1, lead=None, bias=True, dtype, rngs) -> nnx.Conv:
    """A convolution along time: [N, L, inputs] -> [N, ceil(L / stride), outputs].

    Args:
        lead: zeros before the first sample; default as "same" padding of a length that `stride` divides. Behind the
            last there are always as many as needed.
    """
    lead = max(0, (kernel - stride) // 2) if lead is None else lead
    return nnx.Conv(
        inputs,
        outputs,
        kernel,
        strides=stride,
        padding=((lead, kernel - 1 - lead),),
        feature_group_count=groups,
        use_bias=bias,
        dtype=dtype,
        kernel_init=CONV_INIT,
        kernel_metadata=axes(None, None, "embed"),
        bias_metadata=axes("vector"),
        conv_general_dilated=jax.lax.conv_general_dilated if groups == 1 else _by_groups,
        rngs=rngs,
    )


def _by_groups(x_NLC, kernel_KIO, strides, padding, **rest):
    """A grouped convolution whose kernel's gradient is, on CPUs, one matrix product a group.

    There XLA computes that gradient number by number: ten times as long in Net1D's deep stages.
    """

    def own(x_NLC, kernel_KIO):
        return jax.lax.conv_general_dilated(x_NLC, kernel_KIO, strides, padding, **rest)

    def by_xla(x_NLC, kernel_KIO, dy_NLO):
        return jax.vjp(lambda kernel: own(x_NLC, kernel), kernel_KIO)[1](dy_NLO)[0]

    def by_products(x_NLC, kernel_KIO, dy_NLO):
        taps, groups, (rows, after, _) = len(kernel_KIO), rest["feature_group_count"], dy_NLO.shape
        x_NLC = jnp.pad(x_NLC, ((0, 0), *padding, (0, 0)))
        x_GNLI = x_NLC.reshape(*x_NLC.shape[:2], groups, -1).transpose(2, 0, 1, 3)
        last = (after - 1) * strides[0] + 1
        seen_GNLQ = jnp.concatenate([x_GNLI[:, :, k : k + last : strides[0]] for k in range(taps)], axis=-1)
        dy_NLGO = dy_NLO.reshape(rows, after, groups, -1)
        gradient = jnp.einsum("gnlq,nlgo->qgo", seen_GNLQ, dy_NLGO, precision=rest["precision"])
        return gradient.reshape(kernel_KIO.shape)

    def backward(given, dy_NLO):
        (dx_NLC,) = jax.vjp(lambda x: own(x, given[1]), given[0])[1](dy_NLO)
        return dx_NLC, jax.lax.platform_dependent(*given, dy_NLO, cpu=by_products, default=by_xla)

    convolve = jax.custom_vjp(own)
    convolve.defvjp(lambda *given: (own(*given), given), backward)
    return convolve(x_NLC, kernel_KIO)


def keep(x_NLC: jax.Array, there_NL: jax.Array) -> jax.Array:
    """Zeros where nothing is there."""
    return jnp.where(there_NL[..., None], x_NLC, jnp.zeros((), x_NLC.dtype))


def thinned(there_NL: jax.Array, stride: int) -> jax.Array:
    """[N, ceil(L / stride)] bool: whether some of the samples that an output stands for are there."""
    rows, length = there_NL.shape
    padded = jnp.pad(there_NL, ((0, 0), (0, -length % stride)))
    return padded.reshape(rows, -1, stride).any(axis=2)


def pool(x_NLC: jax.Array, there_NL: jax.Array, size: int, stride: int, lead: int, *, most: bool) -> jax.Array:
    """Maximum (`most`) or mean of what is there, of `size` samples: [N, ceil(L / stride), C]; zeros where nothing is.

    Args:
        lead: places before the first sample.
    """
    window = {
        "window_dimensions": (1, size, 1),
        "window_strides": (1, stride, 1),
        "padding": ((0, 0), (lead, max(0, size - 1 - lead)), (0, 0)),
    }
    there = there_NL[..., None]
    if most:
        # constants of NumPy: JAX differentiates a maximum only where it sees what it begins with
        low = np.array(-np.inf, x_NLC.dtype)
        out = jax.lax.reduce_window(jnp.where(there, x_NLC, low), low, jax.lax.max, **window)
        return jnp.where(out == low, jnp.zeros((), x_NLC.dtype), out)
    zero = np.zeros((), x_NLC.dtype)
    total = jax.lax.reduce_window(jnp.where(there, x_NLC, zero), zero, jax.lax.add, **window)
    count = jax.lax.reduce_window(there.astype(x_NLC.dtype), zero, jax.lax.add, **window)
    return total / jnp.maximum(count, 1)


def mean_there(x_NLC: jax.Array, there_NL: jax.Array) -> jax.Array:
    """[N, C] float32, the mean over the time that is there; zeros where none is."""
    weight = there_NL.astype(jnp.float32)
    weight /= jnp.maximum(weight.sum(axis=1, keepdims=True), 1.0)
    exact = jax.lax.Precision.HIGHEST  # as in `encoder.pool`
    return jnp.einsum("nl,nlc->nc", weight, x_NLC.astype(jnp.float32), precision=exact)


class GroupNorm(nnx.Module):
    """Group norm over the time that is there, with float32 statistics; eps and two-pass variance as in PyTorch.

    Args:
        scale: initial; 0 makes a residual block begin as its shortcut.
    """

    def __init__(self, size: int, groups: int, *, scale: float = 1.0):
        self.groups = groups
        self.scale = nnx.Param(jnp.full(size, scale, jnp.float32), **axes("vector"))
        self.bias = nnx.Param(jnp.zeros(size, jnp.float32), **axes("vector"))

    def __call__(self, x_NLC: jax.Array, there_NL: jax.Array) -> jax.Array:
        rows, length, size = x_NLC.shape
        x = keep(x_NLC.astype(jnp.float32), there_NL).reshape(rows, length, self.groups, -1)
        there = there_NL[:, :, None, None]
        count = jnp.maximum(there.sum(axis=1, keepdims=True) * x.shape[-1], 1)
        x -= x.sum(axis=(1, 3), keepdims=True) / count
        variance = jnp.square(jnp.where(there, x, 0.0)).sum(axis=(1, 3), keepdims=True) / count
        x = (x * jax.lax.rsqrt(variance + 1e-5)).reshape(rows, length, size)
        return keep(x * self.scale[...] + self.bias[...], there_NL).astype(x_NLC.dtype)
