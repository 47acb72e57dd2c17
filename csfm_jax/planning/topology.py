"""TPU topologies without a TPU: what their chips can do, and devices to compile for.

The compiler comes with `libtpu` (the extra `[tpu]`), which compiles for any topology on any Linux machine.
"""

import math
import os
import re
from dataclasses import dataclass

import jax

from csfm_jax.models import flops
from data_pipelines.errors import BadInput


@dataclass(frozen=True)
class Chip:
    """One chip of a TPU generation, by its maker's data sheet (cloud.google.com/tpu/docs/v5e, v5p, v6e; November 2026).

    Attributes:
        kind: `jax.Device.device_kind`, the key of `flops.PEAK`.
        hbm: bytes that a program may use, as the compiler says when it refuses one. hbm_bandwidth: bytes a second.
        interconnect: bytes a second that leave a chip over all its links together (half of the bidirectional figure).
        network: bytes a second a chip between slices (the data-centre network, a host's share divided by its chips).
        chips_per_host: of the slices that training uses.
        shapes: slices that exist.
    """

    kind: str
    hbm: float
    hbm_bandwidth: float
    interconnect: float
    network: float
    chips_per_host: int
    shapes: tuple[str, ...]

    @property
    def peak(self) -> float:
        """FLOP/s in bfloat16."""
        return flops.PEAK[self.kind]["bfloat16"]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
CHIPS = {
    "v5e": Chip("TPU v5 lite", 15.75 * 2**30, 819e9, 200e9, 3.125e9, 4, _FLAT),
    "v5p": Chip("TPU v5", 95.74 * 2**30, 2765e9, 600e9, 6.25e9, 4, _CUBES),
    "v6e": Chip("TPU v6 lite", 31.25 * 2**30, 1600e9, 400e9, 12.5e9, 4, _FLAT),
}


@dataclass(frozen=True)
class Topology:
    """Slices of one shape. `name`: "v5e:16x16"; `slices` of them are joined by the data-centre network."""

    name: str
    slices: int = 1

    def __post_init__(self):
        generation, _, shape = self.name.partition(":")
        if generation not in CHIPS or shape not in CHIPS[generation].shapes:
            known = CHIPS[generation].shapes if generation in CHIPS else ()
            expected = ", ".join(f"{generation}:{s}" for s in known) or ", ".join(f"{g}:SHAPE" for g in CHIPS)
            raise BadInput(f"--topology={self.name}", "no such topology", f"one of {expected}", "correct it")
        if self.slices < 1:
            raise BadInput("--slices", str(self.slices), "1 or more", "correct it")

    @property
    def chip(self) -> Chip:
        return CHIPS[self.name.partition(":")[0]]

    @property
    def chips(self) -> int:
        """Of all slices together."""
        return self.slices * math.prod(map(int, re.findall(r"\d+", self.name.partition(":")[2])))

    @property
    def hosts(self) -> int:
        return max(self.slices, self.chips // self.chip.chips_per_host)

    def devices(self) -> list[jax.Device]:
        """Devices to compile for; nothing can be run on them.

        Raises:
            BadInput: `libtpu` is not installed.
        """
        # nothing on this machine needs to be asked for, and two processes may compile at once
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
        from jax.experimental import topologies

        sizes = {"num_slices": self.slices} if self.slices > 1 else {}
        try:
            return topologies.get_topology_desc(self.name, "tpu", **sizes).devices
        except (RuntimeError, NotImplementedError) as error:
            if "libtpu" in str(error) or "not installed" in str(error):
                expected = "the TPU compiler: pip install 'csfm_jax[tpu]'"
                raise BadInput("csfm plan", "no libtpu", expected, "install it; no TPU is needed") from None
            raise
