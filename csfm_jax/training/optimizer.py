"""AdamW with linear warm-up, cosine decay, a clip on the global norm, and no decay where it would do harm."""

import jax
import optax

from csfm_jax.config import OptimizerConfig
from data_pipelines.errors import BadInput


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate as a function of the number of updates made so far.

    Linear from `learning_rate / warmup_steps` (the first update is not wasted on a rate of zero) to `learning_rate`,
    then half a cosine down to `final_fraction` of it at `steps`.

    Raises:
        BadInput: the warm-up does not end before the run does.
    """
    if not 0 <= config.warmup_steps < steps:
        raise BadInput(
            "config.optimizer.warmup_steps",
            str(config.warmup_steps),
            f"0 to {steps - 1}: less than config.training.steps = {steps}",
            "shorten the warm-up or train longer",
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / max(config.warmup_steps, 1),
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=steps,
        end_value=config.learning_rate * config.final_fraction,
    )


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


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW as an optax chain: clip, moments, decay (masked), rate.

    Args:
        config: rates and betas.
        steps: length of the run, for the cosine.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2),
        # decoupled: after the moments and before the rate, so that decay follows the schedule (Loshchilov & Hutter)
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )
