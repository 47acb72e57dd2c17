"""GPU: JAX's Pallas kernel in Triton, which takes segment ids and never makes the matrix of all pairs."""

import functools
import warnings

import jax
import jax.numpy as jnp

from csfm_jax.models.attention.per_device import per_device

# Not measured, for want of a GPU. 32 in the backward pass is JAX's default; of its 128 in the forward pass the keys and
# values of two stages would be 128 KB in float32 (heads of 64), more shared memory than small GPUs have.
BLOCK, BLOCK_BACK = 64, 32
NARROWEST = 16  # Triton multiplies no narrower tiles


def available() -> bool:
    """Whether Triton compiles for this process's device: of NVIDIA's GPUs those from Ampere (8.0) on."""
    major, dot, _ = str(getattr(jax.devices()[0], "compute_capability", "")).partition(".")
    return not (dot and major.isdigit()) or int(major) >= 8


def attend(q, k, v, segments, *, interpret: bool = False):
    """See `csfm_jax.models.attention.attend`.

    Lengths are padded to multiples of 64 with segment 0, heads to a power of two with zeros. Under a mesh the kernel
    runs per device (rows over the data axes, heads over `tensor`): the compiler cannot split a Pallas call by itself.

    Args:
        interpret: run the kernel's program on any platform, slowly; for tests.
    """
    return per_device(functools.partial(_one_device, interpret=interpret), q, k, v, segments)


def _one_device(q, k, v, segments, *, interpret):
    with warnings.catch_warnings():
        # Since JAX 0.12 in favour of tokamax, whose kernels take no segments but a mask of all pairs.
        warnings.filterwarnings("ignore", "jax.experimental.pallas.ops.gpu.attention is deprecated", DeprecationWarning)
        from jax.experimental.pallas.ops.gpu import attention

    length, width = q.shape[1], q.shape[3]
    sizes = attention.BlockSizes(
        block_q=BLOCK,
        block_k=BLOCK,
        block_q_dkv=BLOCK_BACK,
        block_kv_dkv=BLOCK_BACK,
        block_q_dq=BLOCK_BACK,
        block_kv_dq=BLOCK_BACK,
    )
    # Padding attends to padding, so that every sum has a term; backward_pass_impl="xla" would make all pairs.
    out = attention.mha(
        *(_pad(x) for x in (q, k, v)),
        jnp.pad(segments, ((0, 0), (0, -length % BLOCK))),
        sm_scale=width**-0.5,
        block_sizes=sizes,
        backward_pass_impl="triton",
        interpret=interpret,
    )
    return out[:, :length, :, :width]


def _pad(x):
    _, length, _, width = x.shape
    power = max(NARROWEST, 1 << (width - 1).bit_length())
    return jnp.pad(x, ((0, 0), (0, -length % BLOCK), (0, 0), (0, power - width)))
