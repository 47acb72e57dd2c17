"""How fast a compiled step can be at best: arithmetic, memory and networks, each at its data sheet's rate."""

from dataclasses import dataclass

from csfm_jax.config import Config
from csfm_jax.models import flops
from csfm_jax.planning.compiled import Step
from csfm_jax.planning.topology import Topology


@dataclass(frozen=True)
class Roofline:
    """Seconds that a step takes at least, by what it uses.

    Attributes:
        compute: the program's products, with those that it computes again, at the peak rate. memory: its traffic to
            HBM. interconnect: collectives within slices. network: those across slices.
    """

    compute: float
    memory: float
    interconnect: float
    network: float

    @property
    def overlapped(self) -> float:
        """With all communication hidden behind computation."""
        return max(self.compute, self.memory, self.interconnect, self.network)

    @property
    def serial(self) -> float:
        """With no communication hidden."""
        return max(self.compute, self.memory) + self.interconnect + self.network

    @property
    def binds(self) -> str:
        """What takes longest."""
        times = {name: getattr(self, name) for name in ("compute", "memory", "interconnect", "network")}
        return max(times, key=times.get)


def roofline(step: Step, topology: Topology) -> Roofline:
    """Of a step compiled for these chips; every chip's links are taken to be used all at once."""
    chip, collectives = topology.chip, step.program.collectives
    within = sum(c.times * c.moved for c in collectives if not c.crosses)
    across = sum(c.times * c.moved for c in collectives if c.crosses)
    return Roofline(
        step.program.flops / chip.peak,
        step.program.hbm_bytes / chip.hbm_bandwidth,
        within / chip.interconnect,
        across / chip.network,
    )


def flops_a_step(config: Config) -> float:
    """Of the model, as MFU counts them: analytic, of all chips together, nothing computed again."""
    return flops.count(config).train * config.data.rows
