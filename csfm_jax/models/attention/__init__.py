"""Attention within windows of a packed row: one function, one file a backend."""

import jax
import jax.numpy as jnp

from csfm_jax.models.attention import dense, reference, splash

BACKENDS = {"reference": reference.attend, "dense": dense.attend, "splash": splash.attend}
BY_PLATFORM = {"tpu": "splash", "cpu": "reference"}


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
        backend: a key of `BACKENDS`, or "auto", by the default platform: "splash" on TPU, "reference" on CPU (its
            gradient is 1.6 times faster there than "dense"), "dense" elsewhere. Name one when compiling for another
            platform than this process runs on.

    Returns:
        [B, N, H, head_dim] in q's dtype.
    """
    if backend == "auto":
        backend = BY_PLATFORM.get(jax.default_backend(), "dense")
    out = BACKENDS[backend](q, k, v, segments_q, segments_k)
    return jnp.where((segments_q > 0)[:, :, None, None], out, jnp.zeros((), out.dtype))
