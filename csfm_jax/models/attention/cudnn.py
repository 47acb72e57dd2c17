"""NVIDIA's GPUs, in bfloat16: cuDNN's kernel, which takes the windows as a mask."""

import jax
import jax.numpy as jnp

from csfm_jax.models.attention.per_device import per_device

LENGTHS, WIDTHS = 2, 8  # cuDNN's lengths with a mask, and its heads' widths, are multiples of these


def attend(q, k, v, segments):
    """See `csfm_jax.models.attention.attend`. Needs float16 or bfloat16, and heads of at most 128.

    The matrix of logits is never made, but the mask is, [B, 1, N, N] in q's dtype, once for all heads, and in the
    backward pass its gradient. (cuDNN also takes windows by their offsets, which JAX has no public function for.)
    """
    return per_device(_one_device, q, k, v, segments)


def _one_device(q, k, v, segments):
    length, width = q.shape[1], q.shape[3]
    segments = jnp.pad(segments, ((0, 0), (0, -length % LENGTHS)))
    mask = (segments[:, :, None] == segments[:, None, :])[:, None]  # padding attends to padding: no row is empty
    out = jax.nn.dot_product_attention(
        *(_pad(x) for x in (q, k, v)), mask=mask, scale=width**-0.5, implementation="cudnn"
    )
    return out[:, :length, :, :width]


def _pad(x):
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % LENGTHS), (0, 0), (0, -x.shape[3] % WIDTHS)))
