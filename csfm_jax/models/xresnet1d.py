"""xResNet over time: He et al. 2019 ("bag of tricks"), in one dimension as Strodthoff et al. 2021 do for PTB-XL.

Group norms stand for batch norms (see `convolution`), and a window's embedding is the mean over time; the original
joins mean and maximum in its head.
"""

import jax
from flax import nnx

from csfm_jax.models.backbone_config import XResNet1dConfig
from csfm_jax.models.convolution import GroupNorm, conv, keep, pool, thinned
from csfm_jax.sharding import constrain

STEM_STRIDES = (2, 1, 1)
POOL_SIZE, POOL_STRIDE = 3, 2


class Layer(nnx.Module):
    """Convolution without bias, and norm.

    Args:
        scale: initial, of the norm.
    """

    def __init__(self, inputs, outputs, kernel, groups, dtype, *, stride=1, scale=1.0, rngs: nnx.Rngs):
        self.stride = stride
        # centred, as PyTorch pads: not the even split of "same" padding where it strides
        lead = (kernel - 1) // 2
        self.conv = conv(inputs, outputs, kernel, stride=stride, lead=lead, bias=False, dtype=dtype, rngs=rngs)
        self.norm = GroupNorm(outputs, groups, scale=scale)

    def __call__(self, x_NLC, there_NL):
        there = thinned(there_NL, self.stride)
        return self.norm(self.conv(x_NLC), there), there


class Block(nnx.Module):
    """A residual block: bottleneck (1 -> kernel -> 1), or two plain layers where `expansion` is 1.

    The last norm begins at 0, so that the block begins as its shortcut; that is averaged where the block strides.
    """

    def __init__(self, inputs, filters, stride, config: XResNet1dConfig, dtype, *, rngs: nnx.Rngs):
        outputs, kernel = filters * config.expansion, config.kernel
        make = {"groups": config.norm_groups, "dtype": dtype, "rngs": rngs}
        if config.expansion == 1:
            first = [Layer(inputs, filters, kernel, stride=stride, **make)]
            last = Layer(filters, outputs, kernel, scale=0.0, **make)
        else:
            first = [Layer(inputs, filters, 1, **make), Layer(filters, filters, kernel, stride=stride, **make)]
            last = Layer(filters, outputs, 1, scale=0.0, **make)
        self.stride = stride
        self.layers, self.last = nnx.List(first), last
        self.shortcut = None if inputs == outputs else Layer(inputs, outputs, 1, **make)

    def __call__(self, x_NLC, there_NL):
        y, there = x_NLC, there_NL
        for layer in self.layers:
            y, there = layer(y, there)
            y = jax.nn.relu(y)
        y, there = self.last(y, there)
        shortcut = x_NLC
        if self.stride > 1:
            shortcut = pool(x_NLC, there_NL, self.stride, self.stride, 0, most=False)
        if self.shortcut is not None:
            shortcut, _ = self.shortcut(shortcut, there)
        return constrain(keep(jax.nn.relu(y + shortcut), there), "batch", None, None), there


class XResNet1d(nnx.Module):
    """Three convolutions, a pool, then stages of which all but the first are strided.

    Args:
        inputs: channels of the input. dtype: of activations.
    """

    def __init__(self, config: XResNet1dConfig, inputs: int, dtype, *, rngs: nnx.Rngs):
        make = {"dtype": dtype, "rngs": rngs}
        stem, size = [], inputs
        for outputs, stride in zip(config.stem, STEM_STRIDES):
            stem.append(Layer(size, outputs, config.kernel, config.norm_groups, stride=stride, **make))
            size = outputs
        self.stem = nnx.List(stem)
        blocks = []
        for stage, (filters, count) in enumerate(zip(config.filters, config.blocks)):
            for number in range(count):
                blocks.append(Block(size, filters, 2 if stage and not number else 1, config, **make))
                size = filters * config.expansion
        self.blocks = nnx.List(blocks)
        self.stride = STEM_STRIDES[0] * POOL_STRIDE * 2 ** (len(config.filters) - 1)

    def __call__(self, x_NLC: jax.Array, there_NL: jax.Array, *, key=None) -> tuple[jax.Array, jax.Array]:
        """Args and Returns: as of `net1d.Net1D`."""
        x, there = x_NLC, there_NL
        for layer in self.stem:
            x, there = layer(x, there)
            x = jax.nn.relu(x)
        x = pool(x, there, POOL_SIZE, POOL_STRIDE, POOL_SIZE // 2, most=True)
        there = thinned(there, POOL_STRIDE)
        x = keep(x, there)
        for block in self.blocks:
            x, there = block(x, there)
        return x, there
