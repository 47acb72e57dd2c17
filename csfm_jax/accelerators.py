"""TPU slices by name: how many chips and hosts one has, and what each cloud interface calls it. No JAX here.

Sources. Topologies and hosts of v4, v5e, v5p, v6e: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; of TPU7x (Ironwood):
cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus, which has the node labels too. Runtime versions:
cloud.google.com/tpu/docs/runtimes; TPU7x is not offered by the Cloud TPU API. Names as `xpk --tpu-type` takes them:
AI-Hypercomputer/xpk, core/system_characteristics.py. Chips, hosts and devices are those of
`jax.experimental.topologies.get_topology_desc`, and tested against it.
"""

import math
import re
from dataclasses import dataclass

from data_pipelines.errors import BadInput

_PLANES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# One shape for each number of chips, the one that a name such as v5p-128 stands for.
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")


@dataclass(frozen=True)
class Generation:
    """One generation of TPUs.

    Attributes:
        topologies: those that exist. type: prefix of the accelerator's type (v5litepod-16).
        counted: what the type's number counts for each chip (TensorCores, or the chip itself).
        devices: JAX devices a chip.
        gke: value of the node label cloud.google.com/gke-tpu-accelerator.
        runtime: runtime version of TPU VMs; None where the Cloud TPU API does not offer the generation.
        xpk: topologies that xpk schedules; all where None.
    """

    topologies: tuple[str, ...]
    type: str
    counted: int
    devices: int
    gke: str
    runtime: str | None
    xpk: tuple[str, ...] | None = None


GENERATIONS = {
    # megacore: the two TensorCores of a v4 or v5p chip are one device
    "v4": Generation(_CUBES, "v4", 2, 1, "tpu-v4-podslice", "tpu-ubuntu2204-base"),
    "v5e": Generation(_PLANES, "v5litepod", 1, 1, "tpu-v5-lite-podslice", "v2-alpha-tpuv5-lite", _PLANES[2:]),
    "v5p": Generation((*_CUBES, "16x16x16", "16x16x24"), "v5p", 2, 1, "tpu-v5p-slice", "v2-alpha-tpuv5"),
    "v6e": Generation(_PLANES, "v6e", 1, 1, "tpu-v6e-slice", "v2-alpha-tpuv6e"),
    "tpu7x": Generation((*_CUBES, "16x16x16"), "tpu7x", 2, 2, "tpu7x", None),
}


@dataclass(frozen=True)
class Slice:
    """A TPU slice that exists, e.g. v5e:16x16."""

    generation: str
    shape: str

    @classmethod
    def parse(cls, text: str) -> "Slice":
        """Reads "v5e:16x16".

        Raises:
            BadInput: there is no such slice; lists those that there are.
        """
        generation, _, shape = text.partition(":")
        if generation not in GENERATIONS:
            known = ", ".join(f"{name}:{of.topologies[3]}" for name, of in GENERATIONS.items())
            raise BadInput("--topology", repr(text), f"GENERATION:SHAPE, such as {known}", "correct it")
        if shape not in GENERATIONS[generation].topologies:
            known = ", ".join(sorted(GENERATIONS[generation].topologies, key=_volume))
            raise BadInput("--topology", repr(text), f"a shape that {generation} comes in: {known}", "choose one")
        return cls(generation, shape)

    @property
    def of(self) -> Generation:
        return GENERATIONS[self.generation]

    @property
    def chips(self) -> int:
        return _volume(self.shape)

    @property
    def chips_a_host(self) -> int:
        # GKE has v5e:2x4 and v6e:2x4 as one host of eight too; two of four are what JAX and xpk expect.
        return min(4, self.chips)

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_a_host

    @property
    def type(self) -> str:
        """As `gcloud --accelerator-type`, `xpk --tpu-type` and SkyPilot (after "tpu-") call it: v5litepod-256."""
        return f"{self.of.type}-{self.chips * self.of.counted}"


def _volume(shape: str) -> int:
    return math.prod(int(side) for side in re.split("x", shape))
