"""TPU: the Pallas splash kernel, which takes segment ids and never makes the matrix of all pairs."""

import functools

import jax
import jax.numpy as jnp

from csfm_jax.models.attention.per_device import per_device

LANES = 128  # the kernel's lengths are multiples of it


def attend(q, k, v, segments, *, interpret: bool = False):
    """See `csfm_jax.models.attention.attend`.

    Lengths are padded to multiples of 128 with segment 0. Under a mesh the kernel runs per device (rows over the data
    axes, heads over `tensor`): the compiler cannot split a Pallas call by itself.

    Args:
        interpret: run the kernel's program on any platform, slowly; for tests.
    """
    # The kernel does not scale; float32 because 1/sqrt(head_dim) of a bfloat16 q would round again.
    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
    return per_device(functools.partial(_one_device, interpret=interpret), q, k, v, segments)


def _one_device(q, k, v, segments, *, interpret):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    length = q.shape[1]
    q, k, v, segments = (_pad(x) for x in (q, k, v, segments))
    padded = q.shape[1]
    block = next(size for size in (512, 384, 256, 128) if padded % size == 0)
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([splash.FullMask((padded, padded))] * q.shape[2]),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        interpret=interpret,
    )
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    out = jax.vmap(kernel)(q, k, v, splash.SegmentIds(q=segments, kv=segments))
    return out.transpose(0, 2, 1, 3)[:, :length].astype(q.dtype)


def _pad(x):
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % LANES)] + [(0, 0)] * (x.ndim - 2))
