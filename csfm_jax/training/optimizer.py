"""AdamW or Muon with warm-up and decay of the rate, a clip on the global norm, and no decay where it would do harm."""

import difflib
import math

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from csfm_jax.config import OptimizerConfig
from data_pipelines.errors import BadInput


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate as a function of the number of updates made so far.

    Linear from `learning_rate / warmup_steps` (the first update is not wasted on a rate of zero) to `learning_rate`,
    then as `decay` says: half a cosine or a straight line down to `final_fraction` of it at `steps`, or nothing.

    Raises:
        BadInput: a decay of another name, or a warm-up that does not end before the run does.
    """
    if not 0 <= config.warmup_steps < steps:
        raise BadInput(
            "config.optimizer.warmup_steps",
            str(config.warmup_steps),
            f"0 to {steps - 1}: less than config.training.steps = {steps}",
            "shorten the warm-up or train longer",
        )
    peak, warmup, end = config.learning_rate, config.warmup_steps, config.final_fraction
    decays = {
        "cosine": optax.cosine_decay_schedule(peak, steps - warmup, alpha=end),
        "linear": optax.linear_schedule(peak, peak * end, steps - warmup),
        "constant": optax.constant_schedule(peak),
    }
    decay = decays[_known("decay", config.decay, decays)]
    return optax.join_schedules([optax.linear_schedule(peak / max(warmup, 1), peak, warmup), decay], [warmup])


def _known(field: str, value: str, choices) -> str:
    if value in choices:
        return value
    near = difflib.get_close_matches(value, choices, n=1)
    remedy = f"did you mean {near[0]}?" if near else "choose one of them"
    raise BadInput(f"config.optimizer.{field}", repr(value), "one of " + ", ".join(choices), remedy)


def decay_mask(params: dict) -> dict:
    """Which parameters are decayed: kernels, i.e. what multiplies activations.

    By name, not by rank: a stacked bias [layers, width] has the rank of a matrix and a lookup table is one. Vectors,
    embedding tables and CLS stay free: shrinking them would only rescale rare rows, or move an offset to zero.

    Args:
        params: nested dict of parameters, or of their shapes.

    Returns:
        The same tree of bools.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


# The blocks' kernels, stacked on a leading axis of layers, by the name of their module: which axes are a matrix's
# inputs and outputs. Every other axis is one of matrices, each orthogonalised by itself: layers, and q, k and v.
MATRICES = {
    "qkv": MuonDimensionNumbers(reduction_axis=1, output_axis=(3, 4)),  # [layers, width, 3, heads, head_dim]
    "out": MuonDimensionNumbers(reduction_axis=(1, 2), output_axis=3),  # [layers, heads, head_dim, width]
    "up": MuonDimensionNumbers(reduction_axis=1, output_axis=2),  # [layers, width, mlp]
    "down": MuonDimensionNumbers(reduction_axis=1, output_axis=2),  # [layers, mlp, width]
}
MOMENTUM = 0.95  # Muon's, with Nesterov's step (Jordan 2024, kellerjordan.github.io/posts/muon)
UPDATE_RMS = 0.2  # AdamW's updates have about this size; so one rate and one decay serve both (Liu et al. 2025, 2.2)


def matrices(params: dict) -> dict:
    """Which parameters Muon updates: the kernels of the transformers' blocks.

    Tables, vectors and CLS are AdamW's, and so are the maps from samples and into samples and words: the input and
    output layers, for which orthogonal updates do worse (Jordan 2024).

    Args:
        params: nested dict of parameters, or of their shapes.

    Returns:
        The same tree of `MuonDimensionNumbers`, None where AdamW is meant.
    """

    def axes(path, leaf):
        names = [key.key for key in path]
        # others have blocks, too, with kernels of their own under these names
        stacked = "transformer" in names and "blocks" in names and names[-1] == "kernel"
        return MATRICES.get(names[-2]) if stacked else None

    return jax.tree_util.tree_map_with_path(axes, params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer as an optax chain: clip, direction, decay (masked), rate.

    Args:
        config: name, rates and betas.
        steps: length of the run, for the decay of the rate.

    Raises:
        BadInput: an optimizer of another name; and as `learning_rate`.
    """
    directions = {"adamw": _adam, "muon": _muon}
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        directions[_known("name", config.name, directions)](config),
        # decoupled: after the moments and before the rate, so that decay follows the schedule (Loshchilov & Hutter)
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=config.beta1, b2=config.beta2)


def _muon(config: OptimizerConfig) -> optax.GradientTransformation:
    # Put together here, because optax.contrib.muon gives its AdamW Nesterov's step, and one decay to all it updates.
    def labels(params):
        return jax.tree.map(lambda of: "adamw" if of is None else "muon", matrices(params), is_leaf=_is_axes)

    orthogonal = optax.contrib.scale_by_muon(beta=MOMENTUM, weight_dimension_numbers=matrices)
    same_size = optax.stateless(lambda updates, _: jax.tree.map(_of_usual_size, updates, matrices(updates)))
    return optax.partition({"muon": optax.chain(orthogonal, same_size), "adamw": _adam(config)}, labels)


def _is_axes(node) -> bool:
    return node is None or isinstance(node, MuonDimensionNumbers)


def _of_usual_size(update: jax.Array, of: MuonDimensionNumbers) -> jax.Array:
    inputs, outputs = (
        math.prod(update.shape[axis] for axis in (axes if isinstance(axes, tuple) else (axes,))) for axes in of
    )
    return update * (UPDATE_RMS * math.sqrt(max(inputs, outputs)))
