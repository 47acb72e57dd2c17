"""TPU topologies without a TPU: what their chips can do, and devices to compile for.

The compiler comes with `libtpu` (the extra `[tpu]`), which compiles for any topology on any Linux machine.
"""

import importlib.util
import os
from dataclasses import dataclass

import jax

from csfm_jax.accelerators import Slice
from csfm_jax.models import flops
from data_pipelines.errors import BadInput


@dataclass(frozen=True)
class Chip:
    """How fast one chip is, by its maker's data sheet (cloud.google.com/tpu/docs/v5e, v5p, v6e; November 2026).

    Attributes:
        kind: `jax.Device.device_kind`, the key of `flops.PEAK`.
        hbm: bytes that a program may use, as the compiler says when it refuses one. hbm_bandwidth: bytes a second.
        interconnect: bytes a second that leave a chip over all its links together (half of the bidirectional figure).
        network: bytes a second a chip between slices (the data-centre network, a host's share divided by its chips).
    """

    kind: str
    hbm: float
    hbm_bandwidth: float
    interconnect: float
    network: float

    @property
    def peak(self) -> float:
        """FLOP/s in bfloat16."""
        return flops.PEAK[self.kind]["bfloat16"]


CHIPS = {
    "v5e": Chip("TPU v5 lite", 15.75 * 2**30, 819e9, 200e9, 3.125e9),
    "v5p": Chip("TPU v5", 95.74 * 2**30, 2765e9, 600e9, 6.25e9),
    "v6e": Chip("TPU v6 lite", 31.25 * 2**30, 1600e9, 400e9, 12.5e9),
}


@dataclass(frozen=True)
class Topology:
    """Slices of one shape. `name`: "v5e:16x16"; `slices` of them are joined by the data-centre network."""

    name: str
    slices: int = 1

    def __post_init__(self):
        if self.slice.generation not in CHIPS:
            expected = "a generation whose speeds are known: " + ", ".join(CHIPS)
            raise BadInput("--topology", repr(self.name), expected, "choose one of them")
        if self.slices < 1:
            raise BadInput("--slices", str(self.slices), "1 or more", "correct it")

    @property
    def slice(self) -> Slice:
        return Slice.parse(self.name)

    @property
    def chip(self) -> Chip:
        return CHIPS[self.slice.generation]

    @property
    def chips(self) -> int:
        """Of all slices together."""
        return self.slices * self.slice.chips

    @property
    def hosts(self) -> int:
        return self.slices * self.slice.hosts

    def devices(self) -> list[jax.Device]:
        """Devices to compile for; nothing can be run on them.

        Raises:
            BadInput: `libtpu` is not installed.
        """
        if importlib.util.find_spec("libtpu") is None:
            expected = "the TPU compiler: pip install 'csfm_jax[tpu]'"
            raise BadInput("csfm plan", "no libtpu", expected, "install it; no TPU is needed")
        # nothing on this machine needs to be asked for, and two processes may compile at once
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
        from jax.experimental import topologies

        sizes = {"num_slices": self.slices} if self.slices > 1 else {}
        return topologies.get_topology_desc(self.name, "tpu", **sizes).devices
