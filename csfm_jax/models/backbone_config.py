"""Which network encodes windows: the `backbone` part of a config file.

The transformer's sizes are in `config.encoder`; every other network has a section of its own here, and a section of a
network that is not used may not be changed: nothing would read it.
"""

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from data_pipelines.errors import BadInput
from data_pipelines.signals import MODALITIES
from data_pipelines.windows import samples_in

if TYPE_CHECKING:
    from csfm_jax.config import Config

BACKBONES = ("transformer", "s4", "net1d", "xresnet1d")


@dataclass(frozen=True)
class S4Config:
    """Diagonal state spaces (S4D). Defaults: the supervised S4 of Al-Masud et al. 2026, 2.2 M parameters.

    Attributes:
        width: D. depth: layers. state: size of a channel's state, in real numbers (pairs of conjugates: even).
        bidirectional: a second kernel looks ahead; False is causal, as ECG-CPC needs.
        dropout: after each layer, of whole channels of a window ("tied").
        shortest_step, longest_step: the initial discretisation steps, log-uniform between them (Gu et al. 2022).
        form: "convolution" (FFT) or "scan" (recurrence on packed rows; memory grows with `state`).
    """

    width: int = 512
    depth: int = 4
    state: int = 8
    bidirectional: bool = True
    dropout: float = 0.2
    shortest_step: float = 0.001
    longest_step: float = 0.1
    form: str = "convolution"


@dataclass(frozen=True)
class Net1DConfig:
    """Net1D (Hong et al. 2020), a RegNet over time. Defaults: ECGFounder's (Li et al. 2025), which has no norms.

    Attributes:
        stem: channels of the first convolution. filters: of each stage, never fewer than of the one before.
        blocks: of each stage. kernel: samples. stride: of the first convolution of each stage (of the stem: 2).
        group_width: channels of a group of the middle convolution.
        norm_groups: of the group norm before each convolution; 0 = no norms.
    """

    stem: int = 64
    filters: tuple[int, ...] = (64, 160, 160, 400, 400, 1024, 1024)
    blocks: tuple[int, ...] = (2, 2, 2, 3, 3, 4, 4)
    kernel: int = 16
    stride: int = 2
    group_width: int = 16
    norm_groups: int = 0


@dataclass(frozen=True)
class XResNet1dConfig:
    """xResNet (He et al. 2019) over time. Defaults: xresnet1d50 of Strodthoff et al. 2021 (101: blocks 3, 4, 23, 3).

    Attributes:
        stem: channels of the three first convolutions. filters: of each stage, before `expansion`.
        blocks: of each stage. expansion: a block's outputs per filter (bottleneck); 1 = two plain convolutions.
        kernel: samples, odd. norm_groups: of the group norm that stands for batch norm.
    """

    stem: tuple[int, int, int] = (32, 32, 64)
    filters: tuple[int, ...] = (64, 64, 64, 64)
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    expansion: int = 4
    kernel: int = 5
    norm_groups: int = 8


@dataclass(frozen=True)
class BackboneConfig:
    """Attributes:
    name: "transformer" (`config.encoder`, channel tokens) or a network over all leads at once, on frame tokens:
        "s4", "net1d", "xresnet1d", each with its section below.
    compute: dtype of the activations of those, "float32" or "bfloat16"; state spaces and statistics are float32.
    """

    name: str = "transformer"
    compute: str = "float32"
    s4: S4Config = field(default_factory=S4Config)
    net1d: Net1DConfig = field(default_factory=Net1DConfig)
    xresnet1d: XResNet1dConfig = field(default_factory=XResNet1dConfig)


def width(config: "Config") -> int:
    """D: length of a window's embedding."""
    backbone = config.backbone
    return {
        "transformer": config.encoder.width,
        "s4": backbone.s4.width,
        "net1d": backbone.net1d.filters[-1],
        "xresnet1d": backbone.xresnet1d.filters[-1] * backbone.xresnet1d.expansion,
    }[backbone.name]


def split_sizes(config: BackboneConfig) -> list[tuple[str, int]]:
    """(field, size) of what a mesh's axis `fsdp` splits, of any backbone but the transformer."""
    s4, net, xresnet = config.s4, config.net1d, config.xresnet1d
    sizes = {
        "s4": [("s4.width", s4.width)],
        "net1d": [("net1d.stem", net.stem), *(("net1d.filters", n) for n in net.filters)],
        "xresnet1d": [
            *(("xresnet1d.stem", n) for n in xresnet.stem),
            *(("xresnet1d.filters", n) for n in xresnet.filters),
        ],
    }
    return sizes.get(config.name, [])


def check(config: "Config") -> None:
    """Refuses a backbone that cannot be built, or that would not read what the config says.

    Raises:
        BadInput: naming the field.
    """
    name = config.backbone.name
    where = "config.backbone"
    _choice(f"{where}.name", name, BACKBONES)
    _choice(f"{where}.compute", config.backbone.compute, ("float32", "bfloat16"))
    _check_unread(config)
    layout, wanted = config.tokens.layout, "channel" if name == "transformer" else "frame"
    if layout != wanted:
        raise BadInput(
            "config.tokens.layout", repr(layout), f'"{wanted}", which the backbone {name} reads', "set tokens.layout"
        )
    if name == "transformer":
        return
    if config.objective.name == "reconstruction":
        raise BadInput(f"{where}.name", name, "transformer, for masked reconstruction", "choose a supervised objective")
    _check_tokens(config)
    packed = name == "s4" and config.backbone.s4.form == "scan"
    if not packed:
        _check_room(config)
    {"s4": _check_s4, "net1d": _check_net1d, "xresnet1d": _check_xresnet1d}[name](config.backbone)
    if packed and len(config.tokens.modalities) > 1:
        raise BadInput(
            f"{where}.s4.form",
            "scan, with several modalities",
            "one modality",
            "set it to convolution, which joins them",
        )


def _check_unread(config):
    """Sections that the named backbone does not read must be as they are by default."""
    name, backbone = config.backbone.name, config.backbone
    sections = {f"config.backbone.{n}": getattr(backbone, n) for n in BACKBONES[1:] if n != name}
    sections |= {} if name == "transformer" else {"config.encoder": config.encoder}
    for where, section in sections.items():
        for f in dataclasses.fields(section):
            if getattr(section, f.name) != f.default:
                raise BadInput(
                    f"{where}.{f.name}", "a change", f"none: the backbone {name} does not read {where}",
                    "remove it, or set config.backbone.name",
                )  # fmt: skip
    if name == "transformer" and backbone.compute != "float32":
        raise BadInput("config.backbone.compute", "a change", "none: see config.encoder.compute", "set that one")


def _check_tokens(config):
    tokens = config.tokens
    if tokens.text_length:
        found = f"{tokens.text_length} text tokens, which {config.backbone.name} cannot read"
        raise BadInput("config.tokens.text_length", found, "0", "set it to 0")
    rates = {(MODALITIES[m].rate, tokens.patch[m]) for m in tokens.modalities}
    if len(rates) > 1:
        found = ", ".join(f"{tokens.patch[m]} samples at {MODALITIES[m].rate} Hz" for m in tokens.modalities)
        raise BadInput("config.tokens.modalities", found, "one rate and patch, to be joined in time", "leave some out")


def _check_room(config):
    """Each of a row's S windows is computed at full length, whatever it holds: a generous S is paid in full."""
    data, name = config.data, config.tokens.modalities[0]
    longest = int(samples_in(data.window.seconds, MODALITIES[name].rate)) // config.tokens.patch[name]
    if longest < 1:
        found = f"{data.window.seconds:g} s, less than a frame"
        raise BadInput("config.data.window.seconds", found, "one frame or more", "lengthen it, or shorten tokens.patch")
    if data.row_windows > 1 and data.row_windows * longest > 2 * data.row_tokens:
        found = f"{data.row_windows} windows of {longest} frames in rows of {data.row_tokens}"
        fit = max(1, data.row_tokens // (longest + 1))
        raise BadInput(
            "config.data.row_windows",
            found,
            "about as many as fit: each is computed at full length",
            f"set it to {fit}",
        )


def _check_s4(backbone):
    s4 = backbone.s4
    _choice("config.backbone.s4.form", s4.form, ("convolution", "scan"))
    _positive("config.backbone.s4", s4, ("width", "depth", "state"))
    if s4.state % 2:
        raise BadInput("config.backbone.s4.state", str(s4.state), "an even number: conjugate pairs", "add one")
    if not 0 <= s4.dropout < 1:
        raise BadInput("config.backbone.s4.dropout", f"{s4.dropout:g}", "a number in [0, 1)", "correct it")
    if not 0 < s4.shortest_step <= s4.longest_step:
        found = f"{s4.shortest_step:g}"
        raise BadInput("config.backbone.s4.shortest_step", found, f"above 0, up to {s4.longest_step:g}", "correct it")


def _check_net1d(backbone):
    where, net = "config.backbone.net1d", backbone.net1d
    _positive(where, net, ("stem", "kernel", "stride", "group_width"))
    _check_stages(where, net)
    if any(a > b for a, b in itertools.pairwise((net.stem, *net.filters))):
        found = ", ".join(map(str, net.filters))
        raise BadInput(f"{where}.filters", found, "at least the stem, never decreasing: shortcuts add zeros", "sort it")
    _divides(f"{where}.group_width", net.group_width, net.filters)
    if net.norm_groups:
        _divides(f"{where}.norm_groups", net.norm_groups, (net.stem, *net.filters))


def _check_xresnet1d(backbone):
    where, net = "config.backbone.xresnet1d", backbone.xresnet1d
    _positive(where, net, ("expansion", "kernel", "norm_groups"))
    if len(net.stem) != 3:
        raise BadInput(f"{where}.stem", f"{len(net.stem)} sizes", "three", "correct it")
    _check_stages(where, net)
    if not net.kernel % 2:
        raise BadInput(f"{where}.kernel", str(net.kernel), "an odd number", "change it by one")
    _divides(f"{where}.norm_groups", net.norm_groups, (*net.stem, *net.filters))


def _check_stages(where, net):
    if not net.filters or len(net.filters) != len(net.blocks) or min(*net.filters, *net.blocks) < 1:
        found = f"{len(net.filters)} and {len(net.blocks)} numbers"
        raise BadInput(f"{where}.filters and .blocks", found, "as many, at least one, all above 0", "correct them")


def _positive(where, section, names):
    for name in names:
        if (value := getattr(section, name)) < 1:
            raise BadInput(f"{where}.{name}", str(value), "1 or more", "correct the size")


def _divides(where, value, sizes):
    if value < 1 or any(n % value for n in sizes):
        raise BadInput(where, str(value), "a divisor of " + ", ".join(map(str, sizes)), "change it")


def _choice(field, value, choices):
    if value not in choices:
        raise BadInput(field, repr(value), "one of " + ", ".join(choices), "choose one of them")
