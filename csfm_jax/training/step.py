"""The training step and the evaluation step: pure functions of (state, batch), compiled once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from csfm_jax import sharding
from csfm_jax.training.state import Blueprint, TrainState
from data_pipelines.batch import TokenBatch


class StepMetrics(NamedTuple):
    """What a step tells the host: scalars, whole on every device. Sums and counts run over the global batch.

    Attributes:
        loss: what was minimised. gradient_norm: before the clip. learning_rate: of this update.
        finite: whether the update was made. bad, skipped: as in TrainState, after this step.
        sums, counts: of the objective, by "metric/modality", to be divided after summing over steps.
        tokens, visible, windows: in the batch, padding not counted.
    """

    loss: jax.Array
    gradient_norm: jax.Array
    learning_rate: jax.Array
    finite: jax.Array
    bad: jax.Array
    skipped: jax.Array
    sums: dict
    counts: dict
    tokens: jax.Array
    visible: jax.Array
    windows: jax.Array


def make_train_step(plan: Blueprint, optimizer: optax.GradientTransformation, rate: optax.Schedule, seed: int):
    """The compiled step: (TrainState, TokenBatch) -> (TrainState, StepMetrics).

    The state is donated: its buffers become the next state's. A step whose loss or gradient is not finite leaves
    parameters and optimizer as they were and is counted. Dropout's key is a function of (seed, step), so a resumed
    run draws the same.
    """

    def step(state: TrainState, batch: TokenBatch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss_of(params):
            output = nnx.merge(plan.graphdef, params)(batch, key=key)
            return output.loss, output

        (loss, output), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        updates, moments = optimizer.update(gradients, state.optimizer, state.params)
        updated = optax.apply_updates(state.params, updates), moments
        # A select, not a branch: under a branch both sides would have to be laid out the same way first.
        params, moments = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), updated, (state.params, state.optimizer)
        )
        bad = jnp.where(finite, 0, state.bad + 1)
        skipped = state.skipped + ~finite
        metrics = StepMetrics(
            loss, norm, rate(state.step - state.skipped), finite, bad, skipped, output.sums, output.counts,
            *_sizes(batch),
        )  # fmt: skip
        return TrainState(params, moments, state.step + 1, bad, skipped), metrics

    # Pinned, so that a parameter cannot drift to another placement (and the step be compiled again) after an update.
    whole = NamedSharding(plan.abstract.step.sharding.mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=(plan.shardings, whole))


def make_eval_step(plan: Blueprint):
    """The compiled evaluation: (params, TokenBatch) -> (sums, counts) by "metric/modality"; no dropout."""

    def evaluate(params: dict, batch: TokenBatch) -> tuple[dict, dict]:
        output = nnx.merge(plan.graphdef, params)(batch)
        return output.sums, output.counts

    return jax.jit(evaluate, out_shardings=NamedSharding(plan.abstract.step.sharding.mesh, PartitionSpec()))


def to_global(batch: TokenBatch, mesh: Mesh) -> TokenBatch:
    """This process's rows -> one global batch whose rows lie over the mesh's data axes."""
    rows = sharding.batch_sharding(mesh)
    return TokenBatch(*(jax.make_array_from_process_local_data(rows, np.asarray(field)) for field in batch))


def _sizes(batch: TokenBatch) -> tuple[jax.Array, jax.Array, jax.Array]:
    row_tokens = batch.channel.shape[1]
    return jnp.sum(batch.channel != 0), jnp.sum(batch.visible < row_tokens), jnp.sum(batch.window >= 0)
