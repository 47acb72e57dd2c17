"""Attention within windows of a packed row: one function, one file a backend."""

import jax
import jax.numpy as jnp

from csfm_jax.models.attention import blocks, cudnn, dense, reference, splash, triton

BACKENDS = {
    "reference": reference.attend,
    "dense": dense.attend,
    "blocks": blocks.attend,
    "splash": splash.attend,
    "triton": triton.attend,
    "cudnn": cudnn.attend,  # to be measured: "auto" never takes it
}
SHORT = 256  # tokens; one window can fill such a row, and "blocks" then loses to one product of all pairs
SHORT_GPU = 512  # keys; not measured, for want of a GPU: a guess of where the matrix of all pairs is still small


def choose(platform: str, keys: int) -> str:
    """The backend that "auto" stands for. None but those of short rows makes a row's matrix of all pairs."""
    if platform == "tpu":
        return "splash"
    if platform == "cpu":
        return "reference" if keys <= SHORT else "blocks"  # its gradient is 1.6 times faster there than that of "dense"
    if keys <= SHORT_GPU:
        return "dense"
    # "blocks" runs anywhere and in little memory, but its loops are not for GPUs: only where there is no kernel.
    return "triton" if platform == "gpu" and triton.available() else "blocks"


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments_q: jax.Array,
    segments_k: jax.Array,
    *,
    backend: str = "auto",
) -> jax.Array:
    """softmax(q k / sqrt(head_dim)) v over the keys of each query's own window; zeros for padding.

    Args:
        q: [B, N, H, head_dim]. k, v: [B, K, H, head_dim].
        segments_q: [B, N] int32, window of each query; 0 = padding. segments_k: [B, K], of each key. A query that is
            not padding has at least one key (in self-attention, itself).
        backend: a key of `BACKENDS`, or "auto": what `choose` says of the default platform and the keys of a row. Name
            one when compiling for another platform than this process runs on.

    Returns:
        [B, N, H, head_dim] in q's dtype.
    """
    if backend == "auto":
        backend = choose(jax.default_backend(), k.shape[1])
    out = BACKENDS[backend](q, k, v, segments_q, segments_k)
    return jnp.where((segments_q > 0)[:, :, None, None], out, jnp.zeros((), out.dtype))
