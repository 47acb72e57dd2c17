"""The real training step, compiled for a topology that is not there."""

import dataclasses
import re
from dataclasses import dataclass

import jax

from csfm_jax import sharding
from csfm_jax.config import Config
from csfm_jax.models import config as model_config
from csfm_jax.planning import program
from csfm_jax.planning.topology import Topology
from csfm_jax.training.adaptation import run_optimizer
from csfm_jax.training.optimizer import learning_rate
from csfm_jax.training.state import Blueprint, blueprint
from csfm_jax.training.step import make_train_step
from data_pipelines import windows
from data_pipelines.rows import empty_batch

_SIZE = r"([\d.]+)([KMGT]?)"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class DoesNotFit:
    """The compiler's answer to a step that needs more memory than a chip has, in bytes."""

    needed: float
    available: float


@dataclass(frozen=True)
class Step:
    """A compiled training step.

    Attributes:
        parameters: of encoder and decoder together.
        arguments, outputs, temporaries: bytes a chip; what is donated is counted once, among the arguments.
        program: products, collectives, memory traffic and kernels, loops counted in full.
    """

    parameters: int
    arguments: int
    outputs: int
    temporaries: int
    program: program.Program

    @property
    def peak(self) -> int:
        """Bytes a chip."""
        return self.arguments + self.outputs + self.temporaries


def compile_step(config: Config, topology: Topology) -> Step | DoesNotFit:
    """Compiles the step of a run, as `csfm train` would on these chips.

    Raises:
        BadInput: the mesh or the sizes do not fit the chips; no compiler is installed.
    """
    config = for_tpu(config)
    plan, mesh = planned(config, topology.devices())
    with sharding.use(mesh):
        lowered = lowered_step(config, plan, mesh)
        try:
            executable = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return _too_large(str(error))
    memory = executable.memory_analysis()
    slice_of = [getattr(device, "slice_index", 0) for device in mesh.devices.flat]
    return Step(
        plan.parameters,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        program.read(executable.as_text(), slice_of),
    )


def planned(config: Config, devices: list[jax.Device]) -> tuple[Blueprint, jax.sharding.Mesh]:
    """A run's state and mesh on these devices, checked as `csfm train` does.

    Raises:
        BadInput: the mesh or the sizes do not fit the devices.
    """
    model_config.check(config)
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check(config, mesh)
    return blueprint(config, run_optimizer(config), mesh), mesh


def lowered_step(config: Config, plan: Blueprint, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    """The training step's program before it is compiled; call it under the mesh."""
    optimizer = run_optimizer(config)
    step = make_train_step(plan, optimizer, learning_rate(config.optimizer, config.training.steps), config)
    return step.trace(plan.abstract, abstract_batch(config, mesh)).lower()


def for_tpu(config: Config) -> Config:
    """The config with "auto" resolved as on a TPU: this process runs elsewhere."""
    if config.encoder.attention != "auto" or config.backbone.name != "transformer":
        return config
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, attention="splash"))


def abstract_batch(config: Config, mesh: jax.sharding.Mesh):
    """TokenBatch of ShapeDtypeStructs: the global batch, rows over the mesh's data axes."""
    one = empty_batch(1, windows.capacities(config.tokens, config.data), config.tokens)
    rows = sharding.batch_sharding(mesh)
    return type(one)(*(jax.ShapeDtypeStruct((config.data.rows, *x.shape[1:]), x.dtype, sharding=rows) for x in one))


def _too_large(message: str) -> DoesNotFit:
    found = re.search(rf"(?:required|Used) .*?{_SIZE}.*?(?:exceeds|of) .*?{_SIZE}", message)
    sizes = [float(n) * _UNITS[u] for n, u in re.findall(rf"{_SIZE}B?(?=[ ).,])", message) if u] if not found else []
    if found:
        sizes = [float(found[1]) * _UNITS[found[2]], float(found[3]) * _UNITS[found[4]]]
    return DoesNotFit(*(sizes + [float("nan")] * 2)[:2])
