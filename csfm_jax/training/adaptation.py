"""What a run trains, and how fast each layer of it: frozen parts, and learning rates that fall with depth."""

import jax
import jax.numpy as jnp
import optax

from csfm_jax.config import Config
from csfm_jax.tasks.config import AdaptationConfig
from csfm_jax.training.optimizer import make_optimizer


def frozen_parts(config: Config) -> tuple[str, ...]:
    """Parts of the parameters (their topmost names) that stay as they are: they get no gradient and no moments."""
    return ("encoder",) if config.adaptation.trainable in ("head", "lora") else ()


def run_optimizer(config: Config) -> optax.GradientTransformation:
    """The optimizer of a run: AdamW; where a whole encoder is adapted, with a rate for each layer."""
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    ours = config.adaptation
    if not ours.task or ours.trainable != "all" or ours.layer_decay == 1.0:
        return optimizer

    def slower(updates, params):
        # of the finished update, weight decay included: a group's own learning rate (BEiT's code, Bao et al. 2022)
        return jax.tree.map(
            lambda u, m: u * m.astype(u.dtype), updates, rate_factors(params, ours, config.encoder.depth)
        )

    return optax.chain(optimizer, optax.stateless(slower))


def rate_factors(params: dict, adaptation: AdaptationConfig, depth: int) -> dict:
    """What each parameter's learning rate is multiplied by.

    "layers": layer l of L (from 1) by decay^(L + 1 - l), embeddings by decay^(L + 1), the final LayerNorm and the head
    by 1 (Bao et al. 2022, Clark et al. 2020). "groups": head 1, the later half of the layers with the final LayerNorm
    by decay, the earlier half and the embeddings by decay^2.

    Args:
        params: nested dict of parameters, those of the blocks stacked on their first axis. depth: L.

    Returns:
        The same tree of arrays that broadcast against the parameters: scalars, and [L, 1, ...] for stacked ones.
    """
    below = jnp.arange(depth, 0, -1.0)  # of layer 1: L
    late, embeddings, norm = below <= depth // 2, depth + 1.0, 0.0
    if adaptation.rates == "groups":
        below, embeddings, norm = jnp.where(late, 1.0, 2.0), 2.0, 1.0

    def factor(path, leaf):
        names = [key.key for key in path]
        if names[0] != "encoder":
            return jnp.ones(())
        if names[:3] == ["encoder", "transformer", "blocks"]:
            return (adaptation.layer_decay**below).reshape(depth, *(1,) * (leaf.ndim - 1))
        return jnp.asarray(adaptation.layer_decay ** (norm if names[1] == "transformer" else embeddings))

    return jax.tree_util.tree_map_with_path(factor, params)
