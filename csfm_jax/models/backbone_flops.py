"""Analytic forward FLOPs of the backbones on frame tokens: see `flops`."""

import math
from typing import TYPE_CHECKING

from csfm_jax.models import net1d, xresnet1d
from csfm_jax.models.waveform import Frames

if TYPE_CHECKING:
    from csfm_jax.config import Config


def forward(config: "Config") -> float:
    """Of one row: S windows of the config's length, or V frames where a row is one sequence ("scan")."""
    frames = Frames.of(config.tokens, config.data.window.seconds)
    backbone, length = config.backbone, frames.longest * frames.patch
    if backbone.name == "s4" and backbone.s4.form == "scan":
        return float(_s4(backbone.s4, frames.inputs, config.data.row_tokens * frames.patch))
    of = {"s4": _s4, "net1d": _net1d, "xresnet1d": _xresnet1d}[backbone.name]
    return float(config.data.row_windows * of(getattr(backbone, backbone.name), frames.inputs, length))


def _conv(length, kernel, inputs, outputs, groups=1):
    return 2 * length * kernel * inputs * outputs // groups


def _s4(sizes, inputs, length):
    directions = 2 if sizes.bidirectional else 1
    if sizes.form == "convolution":  # there, the product, and back; a real transform of n takes 2.5 n log2 n
        around = 2 * length
        space = 2 * 2.5 * around * math.log2(around) + 6 * length
    else:  # complex multiply-adds of states and outputs
        space = directions * 16 * length * (sizes.state // 2)
    layer = sizes.width * space + _conv(length, 1, sizes.width, 2 * sizes.width)
    return _conv(length, 1, inputs, sizes.width) + sizes.depth * layer


def _net1d(sizes, inputs, length):
    length = -(-length // net1d.STEM_STRIDE)
    total, size = _conv(length, sizes.kernel, inputs, sizes.stem), sizes.stem
    for outputs, count in zip(sizes.filters, sizes.blocks):
        for number in range(count):
            total += _conv(length, 1, size, outputs)
            length = length if number else -(-length // sizes.stride)
            total += _conv(length, sizes.kernel, outputs, outputs, outputs // sizes.group_width)
            total += _conv(length, 1, outputs, outputs) + 2 * _conv(1, 1, outputs, outputs // net1d.SQUEEZE)
            size = outputs
    return total


def _xresnet1d(sizes, inputs, length):
    total, size = 0, inputs
    for outputs, stride in zip(sizes.stem, xresnet1d.STEM_STRIDES):
        length = -(-length // stride)
        total += _conv(length, sizes.kernel, size, outputs)
        size = outputs
    length = -(-length // xresnet1d.POOL_STRIDE)
    for stage, (filters, count) in enumerate(zip(sizes.filters, sizes.blocks)):
        for number in range(count):
            strided = stage and not number
            after, outputs = -(-length // 2) if strided else length, filters * sizes.expansion
            if sizes.expansion == 1:
                total += _conv(after, sizes.kernel, size, filters) + _conv(after, sizes.kernel, filters, outputs)
            else:
                total += _conv(length, 1, size, filters) + _conv(after, sizes.kernel, filters, filters)
                total += _conv(after, 1, filters, outputs)
            total += _conv(after, 1, size, outputs) if size != outputs else 0
            length, size = after, outputs
    return total
