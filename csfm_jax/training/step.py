"""The training step and the evaluation step: pure functions of (state, batch), compiled once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from csfm_jax import sharding
from csfm_jax.config import Config
from csfm_jax.training.packed import Packed, pack
from csfm_jax.training.state import Blueprint, TrainState
from data_pipelines.batch import TokenBatch, windows_digest


class StepMetrics(NamedTuple):
    """What a step tells the host, `Packed` on its way: scalars. Sums and counts run over the global batch.

    Attributes:
        loss: what was minimised. gradient_norm: before the clip. learning_rate: of this update.
        made: whether the update was made. bad, skipped, usual_norm: as in TrainState, after this step.
        sums, counts: of the objective, by "metric/modality", to be divided after summing over steps.
        tokens, visible, windows: in the batch, padding not counted. windows_digest: of `batch.windows_digest`.
    """

    loss: float
    gradient_norm: float
    learning_rate: float
    made: bool
    bad: int
    skipped: int
    usual_norm: float
    sums: dict[str, float]
    counts: dict[str, float]
    tokens: int
    visible: int
    windows: int
    windows_digest: int


def make_train_step(plan: Blueprint, optimizer: optax.GradientTransformation, rate: optax.Schedule, config: Config):
    """The compiled step: (TrainState, TokenBatch) -> (TrainState, `Packed` StepMetrics).

    With `training.accumulate` above 1 the batch is computed in so many parts, one after the other; the loss is that of
    the whole batch.

    The state is donated: its buffers become the next state's. A step whose loss or gradient is not finite, or whose
    gradient is a spike (`training.spike`), leaves parameters and optimizer as they were and is counted. So does a
    batch that has nothing to teach (no label, no event: a gradient of zeros), or momentum and decay would move the
    parameters by themselves; it is no sign of trouble. Dropout's key is a function of (seed, step), so a resumed run
    draws the same.
    """

    def step(state: TrainState, batch: TokenBatch) -> tuple[TrainState, Packed]:
        key = jax.random.fold_in(jax.random.key(config.training.seed), state.step)
        output, gradients = _gradients(plan, state.params, batch, key, config.training.accumulate)
        loss, norm = output.loss, optax.tree.norm(gradients)
        usual, nothing = state.usual_norm, norm == 0
        made = jnp.isfinite(loss) & jnp.isfinite(norm) & ~nothing
        if spike := config.training.spike:
            made &= (usual == 0) | (norm <= spike * usual)

        trained = plan.trained(state.params)
        updates, moments = optimizer.update(gradients, state.optimizer, trained)
        updated = optax.apply_updates(trained, updates), moments
        # A select, not a branch: under a branch both sides would have to be laid out the same way first.
        trained, moments = jax.tree.map(lambda new, old: jnp.where(made, new, old), updated, (trained, state.optimizer))
        params = state.params | trained
        average = _averaged(state, params, made, config.training.ema)
        bad = jnp.where(made, 0, jnp.where(nothing, state.bad, state.bad + 1))
        skipped = state.skipped + ~made
        usual = jnp.where(made, jnp.where(usual == 0, norm, 0.99 * usual + 0.01 * norm), usual)
        metrics = StepMetrics(
            loss, norm, rate(state.step - state.skipped), made, bad, skipped, usual, output.sums, output.counts,
            *_sizes(batch),
        )  # fmt: skip
        return TrainState(params, moments, state.step + 1, bad, skipped, usual, average), pack(metrics)

    # Pinned, so that a parameter cannot drift to another placement (and the step be compiled again) after an update.
    state, rows, whole = plan.shardings, sharding.batch_sharding(plan.mesh), NamedSharding(plan.mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, in_shardings=(state, rows), out_shardings=(state, whole))


def _averaged(state: TrainState, params: dict, made: jax.Array, decay: float) -> dict | None:
    """The running average after a step that was `made`: decay x average + (1 - decay) x parameters."""
    if state.average is None:
        return None
    # Shorter at first, or the random initialisation would weigh in for tens of thousands of steps (as in TensorFlow's
    # ExponentialMovingAverage with num_updates).
    updates = state.step - state.skipped
    share = jnp.where(made, 1 - jnp.minimum(decay, (1 + updates) / (10 + updates)), 0)
    return jax.tree.map(lambda old, new: old + share * (new - old), state.average, params)


def _gradients(plan: Blueprint, params: dict, batch: TokenBatch, key: jax.Array, parts: int):
    """The objective's output for a batch, and the gradient of its loss for the parameters that are trained."""
    everything, params = params, plan.trained(params)

    def loss_of(params, batch, key, targets):
        output = nnx.merge(plan.graphdef, everything | params)(batch, key=key, targets=targets)
        return output.loss, output

    gradient_of = jax.grad(loss_of, has_aux=True)
    if parts == 1:
        gradients, output = gradient_of(params, batch, key, None)
        return output, gradients
    targets = nnx.merge(plan.graphdef, everything).target_counts(batch)

    def add(total, part):
        number, batch = part
        gradients, output = gradient_of(params, batch, jax.random.fold_in(key, number), targets)
        # placed as the parameters are: the sum of parts needs no more memory than one gradient
        total = jax.tree.map(jnp.add, total, gradients)
        return jax.lax.with_sharding_constraint(total, shardings), output

    shardings = plan.trained(plan.shardings.params)
    zero = jax.lax.with_sharding_constraint(jax.tree.map(jnp.zeros_like, params), shardings)
    gradients, outputs = jax.lax.scan(add, zero, (jnp.arange(parts), _in_parts(batch, parts)))
    output = jax.tree.map(lambda x: x.sum(axis=0), outputs)
    one = {name: jnp.float32(1) for name in output.counts if name.startswith("tokens/")}  # it is one batch
    return output._replace(counts=output.counts | one), gradients


def _in_parts(batch: TokenBatch, parts: int) -> TokenBatch:
    """[B, ...] -> [parts, B / parts, ...]: every so many-th row, so that no row leaves its device."""

    def split(x):
        x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return sharding.constrain(x, None, "batch", *(None,) * (x.ndim - 2))

    return TokenBatch(*map(split, batch))


def make_eval_step(plan: Blueprint):
    """The compiled evaluation: (params, TokenBatch) -> (sums, counts) by "metric/modality"; no dropout."""

    def evaluate(params: dict, batch: TokenBatch) -> tuple[dict, dict]:
        output = nnx.merge(plan.graphdef, params)(batch)
        return output.sums, output.counts

    return _of_params(evaluate, plan)


def make_predict_step(plan: Blueprint):
    """The compiled prediction of a task: (params, TokenBatch) -> (sums and counts as of `make_eval_step`,
    predictions [B, S, outputs], labels [B, S, K], window [B, S]), whole on every device; no dropout."""

    def predict(params: dict, batch: TokenBatch) -> tuple[tuple[dict, dict], tuple]:
        objective = nnx.merge(plan.graphdef, params)
        output = objective(batch)
        return (output.sums, output.counts), (objective.predict(batch), batch.labels, batch.window)

    return _of_params(predict, plan)


def _of_params(function, plan: Blueprint):
    """(params, TokenBatch) -> what is whole on every device, compiled."""
    taken = plan.shardings.params, sharding.batch_sharding(plan.mesh)
    return jax.jit(function, in_shardings=taken, out_shardings=NamedSharding(plan.mesh, PartitionSpec()))


def to_global(batch: TokenBatch, mesh: Mesh) -> TokenBatch:
    """This process's rows (`sharding.rows_share`) -> the global batch, as the compiled steps take it.

    A single process has all of it: its NumPy arrays stay what they are, and the step lays their rows over the mesh's
    data axes when it is called: 0.03 ms of the host's time on one device, where making global arrays first takes 2.
    """
    if jax.process_count() == 1:
        return batch
    return jax.make_array_from_process_local_data(sharding.batch_sharding(mesh), TokenBatch(*map(np.asarray, batch)))


def _sizes(batch: TokenBatch) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    row_tokens = batch.channel.shape[1]
    tokens, visible = jnp.sum(batch.channel != 0), jnp.sum(batch.visible < row_tokens)
    return tokens, visible, jnp.sum(batch.window >= 0), windows_digest(batch.window)
