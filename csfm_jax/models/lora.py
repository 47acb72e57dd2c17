"""LoRA (Hu et al. 2022): low-rank updates of the kernels of an encoder's stacked blocks, which themselves stay."""

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from csfm_jax.models.config import EncoderConfig
from csfm_jax.models.encoder import Encoder
from csfm_jax.models.layers import axes

if TYPE_CHECKING:
    from csfm_jax.tasks.config import AdaptationConfig

# A as in Microsoft's code: uniform within 1 / sqrt(inputs), whatever the number of layers it is stacked with
_INIT = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=-2, out_axis=-1, batch_axis=0)


class Factors(nnx.Module):
    """A and B of one kernel [L, *ins, *outs]: a [L, *ins, r], b [L, r, *outs]; b starts at zero, so nothing changes."""

    def __init__(self, depth, rank, ins: dict[str, int], outs: dict[str, int], *, rngs: nnx.Rngs):
        shape, names = (depth, *ins.values(), rank), ("layers", *ins, None)
        flat = _INIT(rngs.params(), (depth, math.prod(ins.values()), rank), jnp.float32)
        self.a = nnx.Param(flat.reshape(shape), **axes(*names))
        self.b = nnx.Param(jnp.zeros((depth, rank, *outs.values()), jnp.float32), **axes("layers", None, *outs))


class Adapted(nnx.Module):
    """A linear map with its low-rank update beside it: neither the sum of kernels nor its gradient is ever made."""

    def __init__(self, base: nnx.LinearGeneral, factors: Factors, scale: float):
        self.base, self.factors, self.scale = base, factors, scale

    def __call__(self, x: jax.Array) -> jax.Array:
        a, b = (value[...].astype(x.dtype) for value in (self.factors.a, self.factors.b))
        low = jnp.tensordot(x, a, axes=a.ndim - 1)
        return self.base(x) + jnp.asarray(self.scale, x.dtype) * jnp.tensordot(low, b, axes=1)


class Adapters(nnx.Module):
    """Factors of the kernels of attention (q, k, v; out) and MLP (up, down) of every block.

    Args:
        sizes: of the encoder. rank, alpha: the update of a kernel is A B alpha / rank.
    """

    def __init__(self, sizes: EncoderConfig, rank: int, alpha: float, *, rngs: nnx.Rngs):
        self.scale = alpha / rank
        width, hidden = {"embed": sizes.width}, {"mlp": sizes.mlp}
        heads = {"heads": sizes.heads, "head_dim": sizes.head_dim}
        shapes = {
            "qkv": (width, {"qkv": 3} | heads),
            "out": (heads, width),
            "up": (width, hidden),
            "down": (hidden, width),
        }
        self.of = nnx.Dict({n: Factors(sizes.depth, rank, i, o, rngs=rngs) for n, (i, o) in shapes.items()})

    def adapt(self, encoder: Encoder) -> Encoder:
        """The encoder with the updates beside its kernels; the one that is given stays as it is."""
        ours = nnx.merge(*nnx.split(encoder))
        blocks = ours.transformer.blocks
        for name in self.of:
            holder = _holder(blocks, name)
            setattr(holder, name, Adapted(getattr(holder, name), self.of[name], self.scale))
        return ours


def _holder(blocks, name: str):
    return blocks.attention if name in ("qkv", "out") else blocks


def merged(encoder: dict, adapters: dict, scale: float) -> dict:
    """An encoder's parameters with the updates added to its kernels: what is used and handed on after training.

    Args:
        encoder, adapters: nested dicts of NumPy arrays, under the names of `Encoder` and `Adapters`.
        scale: alpha / rank.
    """
    blocks = dict(encoder["transformer"]["blocks"])
    blocks["attention"] = dict(blocks["attention"])
    for name, factors in adapters["of"].items():
        holder = blocks["attention"] if name in ("qkv", "out") else blocks
        kernel = np.asarray(holder[name]["kernel"])
        a, b = (np.asarray(factors[part]) for part in ("a", "b"))
        layers, rank = len(kernel), a.shape[-1]
        update = a.reshape(layers, -1, rank) @ b.reshape(layers, rank, -1)
        holder[name] = holder[name] | {"kernel": kernel + np.float32(scale) * update.reshape(kernel.shape)}
    return encoder | {"transformer": encoder["transformer"] | {"blocks": blocks}}


def encoder_params(params: dict, adaptation: "AdaptationConfig") -> dict:
    """The encoder's parameters of a checkpoint, with what LoRA has learned added to them where there is any.

    Args:
        params: of the whole objective. adaptation: of its configuration.
    """
    if not adaptation.lora_rank:
        return params["encoder"]
    return merged(params["encoder"], params["lora"], adaptation.lora_alpha / adaptation.lora_rank)
