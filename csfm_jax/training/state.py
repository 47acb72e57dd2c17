"""What a training step carries over to the next: parameters, optimizer state, counters, and a running average."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from csfm_jax import objectives, sharding
from csfm_jax.config import Config
from csfm_jax.training import adaptation


class TrainState(NamedTuple):
    """The arrays of a run, all of them global (a host-local leaf could not be saved by several processes).

    Attributes:
        params: nested dict of float32 arrays under plain names ("encoder" / "transformer" / "blocks" / ...).
        optimizer: optax state of the same shardings, of the parameters that are trained.
        step: int32, steps taken, skipped ones included.
        bad: int32, skipped steps in a row up to now. skipped: int32, skipped steps in all: not finite, or a spike.
        usual_norm: float32, running mean of the gradient's norm over the steps that were made; 0 before the first.
        average: running average of the parameters, of their shardings; None without `training.ema`.
    """

    params: dict
    optimizer: Any
    step: jax.Array
    bad: jax.Array
    skipped: jax.Array
    usual_norm: jax.Array
    average: dict | None = None

    @property
    def weights(self) -> dict:
        """What the run has learned, for validation: the average where there is one, else the parameters."""
        return self.params if self.average is None else self.average


@dataclass(frozen=True)
class Blueprint:
    """An objective's structure, and the shapes and placement of a run's state: known before any array exists.

    Attributes:
        graphdef: `nnx.merge(graphdef, params)` is the objective again; split once, merged inside jit, because
            `nnx.jit` costs several times more on the host at every call.
        abstract: TrainState of ShapeDtypeStructs, with shardings; what a checkpoint is restored into.
        build: the function that makes the initial TrainState, to be jitted under the mesh.
        frozen: topmost names of parameters that no step changes, and for which the optimizer keeps nothing.
    """

    graphdef: nnx.GraphDef
    abstract: TrainState
    build: Any
    frozen: tuple[str, ...] = ()

    def trained(self, params: dict) -> dict:
        """The part of `TrainState.params`, or of a tree like it, that is trained."""
        return {name: part for name, part in params.items() if name not in self.frozen}

    @property
    def mesh(self) -> Mesh:
        return self.abstract.step.sharding.mesh

    @property
    def shardings(self) -> TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    @property
    def parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract.params))

    def initial(self) -> TrainState:
        """The state at step 0, born sharded: no device ever holds more than its part."""
        with sharding.use(self.mesh):
            return self.initialisation()()

    def initialisation(self):
        """The function that makes it, to be called, or lowered, under the mesh."""
        return jax.jit(self.build, out_shardings=self.shardings)

    def resumed(
        self, params: dict, optimizer: Any, average: dict | None, step: int, bad: int, skipped: int, usual_norm: float
    ) -> TrainState:
        """The state as it was saved; the arrays already have their shardings."""
        scalars = np.int32(step), np.int32(bad), np.int32(skipped), np.float32(usual_norm)
        return TrainState(params, optimizer, *map(jax.device_put, scalars, self.shardings[2:6]), average)


def blueprint(config: Config, optimizer: optax.GradientTransformation, mesh: Mesh) -> Blueprint:
    """Traces the objective of a config without making its arrays.

    Every array of the objective is taken for a parameter.
    """

    def objective() -> nnx.Module:
        return objectives.build(config, rngs=nnx.Rngs(config.training.seed))

    with sharding.use(mesh):  # turns the parameters' logical axis names into placements
        graphdef, params = nnx.get_abstract_model(objective, mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, nnx.to_pure_dict(params))
    whole, frozen = NamedSharding(mesh, PartitionSpec()), adaptation.frozen_parts(config)

    def trained(params: dict) -> dict:
        return {name: part for name, part in params.items() if name not in frozen}

    def first(pure: dict) -> TrainState:
        zero = jnp.zeros((), jnp.int32)
        # copies: the step donates its state, and no buffer can be given away twice
        average = jax.tree.map(jnp.copy, pure) if config.training.ema else None
        return TrainState(pure, optimizer.init(trained(pure)), zero, zero, zero, jnp.zeros((), jnp.float32), average)

    def build() -> TrainState:
        return first(nnx.to_pure_dict(nnx.state(objective())))

    with sharding.use(mesh):
        shapes = jax.eval_shape(first, nnx.to_pure_dict(params))  # without tracing the objective once more
    # moments lie where their parameters lie; everything else (counters) is whole on every device
    of_optimizer = optax.tree_utils.tree_map_params(
        optimizer,
        lambda moment, s: moment if _is_none_here(moment) else s,
        shapes.optimizer,
        trained(placed),
        transform_non_params=lambda _: whole,
        is_leaf=_is_none_here,
    )
    averaged = placed if config.training.ema else None
    shardings = TrainState(placed, of_optimizer, whole, whole, whole, whole, averaged)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    return Blueprint(graphdef, abstract, build, frozen)


def _is_none_here(moment) -> bool:
    # where optax.partition hands a parameter to another of its optimizers
    return isinstance(moment, optax.MaskedNode)
