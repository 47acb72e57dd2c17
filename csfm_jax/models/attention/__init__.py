"""Attention within windows of a packed row: one function, one file a backend."""

import jax
import jax.numpy as jnp

from csfm_jax.models.attention import blocks, dense, reference, splash

BACKENDS = {
    "reference": reference.attend,
    "dense": dense.attend,
    "blocks": blocks.attend,
    "splash": splash.attend,
}
BY_PLATFORM = {"tpu": "splash", "cpu": "blocks"}
SHORT = 256  # tokens; one window can fill such a row, and "blocks" then loses to one product of all pairs


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
        backend: a key of `BACKENDS`, or "auto", by the default platform: "splash" on TPU; on CPU "blocks", for rows of
            up to `SHORT` tokens "reference" (its gradient is 1.6 times faster there than "dense"); "dense" elsewhere.
            Name one when compiling for another platform than this process runs on, and "blocks" where the dense
            matrix of a long row does not fit and there is no kernel.

    Returns:
        [B, N, H, head_dim] in q's dtype.
    """
    if backend == "auto":
        backend = BY_PLATFORM.get(jax.default_backend(), "dense")
        if backend == "blocks" and k.shape[1] <= SHORT:
            backend = "reference"
    out = BACKENDS[backend](q, k, v, segments_q, segments_k)
    return jnp.where((segments_q > 0)[:, :, None, None], out, jnp.zeros((), out.dtype))
