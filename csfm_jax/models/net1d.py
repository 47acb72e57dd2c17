"""Net1D: a RegNet over time with squeeze and excitation (Hong et al. 2020), as in ECGFounder (Li et al. 2025).

ECGFounder trains it without norms and without dropout, as here by default. Where norms are wanted, group norms stand
for the batch norms of the original (`convolution.GroupNorm`).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from csfm_jax.models.backbone_config import Net1DConfig
from csfm_jax.models.convolution import GroupNorm, conv, keep, mean_there, pool, thinned
from csfm_jax.models.layers import linear
from csfm_jax.sharding import constrain

SQUEEZE = 2  # width of the excitation's hidden layer: that of the block divided by it
STEM_STRIDE = 2


class Activation(nnx.Module):
    """Norm, if there are any, and swish."""

    def __init__(self, size: int, groups: int):
        self.norm = GroupNorm(size, groups) if groups else None

    def __call__(self, x_NLC, there_NL):
        return jax.nn.silu(x_NLC if self.norm is None else self.norm(x_NLC, there_NL))


class Excitation(nnx.Module):
    """Scales every channel of a window by what all channels are on average (Hu et al. 2018)."""

    def __init__(self, size: int, dtype, *, rngs: nnx.Rngs):
        self.down = linear(size, size // SQUEEZE, ("embed", None), dtype=dtype, rngs=rngs)
        self.up = linear(size // SQUEEZE, size, (None, "embed"), dtype=dtype, rngs=rngs)

    def __call__(self, x_NLC, there_NL):
        mean = mean_there(x_NLC, there_NL).astype(x_NLC.dtype)
        return x_NLC * jax.nn.sigmoid(self.up(jax.nn.silu(self.down(mean))))[:, None]


class Block(nnx.Module):
    """1 -> kernel (grouped, strided) -> 1 with excitation; the shortcut is max-pooled, and its new channels are zeros.

    Args:
        first: the stem has just been activated, so the block does not begin with an activation.
    """

    def __init__(self, inputs, outputs, stride, first, config: Net1DConfig, dtype, *, rngs: nnx.Rngs):
        self.stride, self.added = stride, outputs - inputs
        make = {"dtype": dtype, "rngs": rngs}
        groups = outputs // config.group_width
        self.before = None if first else Activation(inputs, config.norm_groups)
        self.enter = conv(inputs, outputs, 1, **make)
        self.activation = Activation(outputs, config.norm_groups)
        self.middle = conv(outputs, outputs, config.kernel, stride=stride, groups=groups, **make)
        self.last_activation = Activation(outputs, config.norm_groups)
        self.leave = conv(outputs, outputs, 1, **make)
        self.excitation = Excitation(outputs, **make)

    def __call__(self, x_NLC, there_NL):
        after = thinned(there_NL, self.stride)
        y = x_NLC if self.before is None else self.before(x_NLC, there_NL)
        y = keep(self.enter(y), there_NL)
        y = keep(self.middle(keep(self.activation(y, there_NL), there_NL)), after)
        y = keep(self.leave(self.last_activation(y, after)), after)
        shortcut = x_NLC
        if self.stride > 1:
            shortcut = pool(x_NLC, there_NL, self.stride, self.stride, (self.stride - 1) // 2, most=True)
        # zeros on both sides of the old channels
        shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (self.added // 2, self.added - self.added // 2)))
        return constrain(self.excitation(y, after) + shortcut, "batch", None, None), after


class Net1D(nnx.Module):
    """The stem, then stages whose first block is strided.

    Args:
        inputs: channels of the input. dtype: of activations.
    """

    def __init__(self, config: Net1DConfig, inputs: int, dtype, *, rngs: nnx.Rngs):
        self.stride = STEM_STRIDE * config.stride ** len(config.filters)
        make = {"dtype": dtype, "rngs": rngs}
        self.stem = conv(inputs, config.stem, config.kernel, stride=STEM_STRIDE, **make)
        self.activation = Activation(config.stem, config.norm_groups)
        blocks, size = [], config.stem
        for filters, count in zip(config.filters, config.blocks):
            for number in range(count):
                stride = 1 if number else config.stride
                blocks.append(Block(size, filters, stride, not blocks, config, **make))
                size = filters
        self.blocks = nnx.List(blocks)

    def __call__(self, x_NLC: jax.Array, there_NL: jax.Array, *, key=None) -> tuple[jax.Array, jax.Array]:
        """Args:
            x_NLC: [N, L, C] samples; there_NL: [N, L] bool, which of them are there. key: not used: no dropout.

        Returns:
            Features [N, ceil(L / stride), D], zeros where nothing is there, and where something is.
        """
        x, there = self.stem(x_NLC), thinned(there_NL, STEM_STRIDE)
        x = keep(self.activation(keep(x, there), there), there)
        for block in self.blocks:
            x, there = block(x, there)
        return x, there
