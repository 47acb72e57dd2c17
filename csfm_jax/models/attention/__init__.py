"""Self-attention within windows of a packed row: one function, one file a backend."""

import jax
import jax.numpy as jnp

from csfm_jax.models.attention import blocks, cudnn, dense, reference, splash, triton
from data_pipelines.errors import BadInput

BACKENDS = {
    "reference": reference.attend,
    "dense": dense.attend,
    "blocks": blocks.attend,
    "splash": splash.attend,
    "triton": triton.attend,
    "cudnn": cudnn.attend,  # to be measured: "auto" never takes it
}
SHORT = 160  # tokens; in rows of 128 "blocks" loses to one product of all pairs, from 192 on it wins
SHORT_GPU = 512  # keys; not measured, for want of a GPU: a guess of where the matrix of all pairs is still small
_NEEDS = {
    "splash": "a TPU",
    "triton": "a GPU on which Triton compiles (NVIDIA's from Ampere on)",
    "cudnn": "a GPU of NVIDIA's",
}


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


def chosen(backend: str, keys: int) -> str:
    """What computes in this process's programs: the backend that was named, or what "auto" stands for."""
    return choose(jax.default_backend(), keys) if backend == "auto" else backend


def runs_here(backend: str) -> bool:
    """Whether a backend, or "auto", computes on this process's devices."""
    platform = jax.default_backend()
    gpu = platform == "gpu"
    return {"splash": platform == "tpu", "triton": gpu and triton.available(), "cudnn": gpu}.get(backend, True)


def check(backend: str) -> None:
    """Refuses a backend that was named and cannot compute here: only "auto" leaves the choice to us.

    Raises:
        BadInput: naming what it needs.
    """
    if not runs_here(backend):
        found = f"{backend!r} on {jax.devices()[0].device_kind}"
        remedy = "auto takes what suits the devices; so would dense or blocks, which run anywhere"
        raise BadInput("config.encoder.attention", found, _NEEDS[backend], remedy)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, *, backend: str = "auto") -> jax.Array:
    """softmax(q k / sqrt(head_dim)) v over the tokens of each query's own window; zeros for padding.

    Args:
        q, k, v: [B, N, H, head_dim], of the same tokens.
        segments: [B, N] int32, window of each token; 0 = padding.
        backend: a key of `BACKENDS`, or "auto": what `choose` says of the default platform and the tokens of a row.
            Name one when compiling for another platform than this process runs on.

    Returns:
        [B, N, H, head_dim] in q's dtype.
    """
    out = BACKENDS[chosen(backend, k.shape[1])](q, k, v, segments)
    return jnp.where((segments > 0)[:, :, None, None], out, jnp.zeros((), out.dtype))
