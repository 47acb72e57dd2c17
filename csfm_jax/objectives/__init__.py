"""Objectives: what a model is pretrained to do, one a file."""

from flax import nnx

from csfm_jax.config import Config
from csfm_jax.objectives.reconstruction import MaskedReconstruction

OBJECTIVES = {"reconstruction": MaskedReconstruction}


def build(config: Config, *, rngs: nnx.Rngs) -> nnx.Module:
    """The objective that `config.objective.name` names (`models.config.check` refuses unknown names)."""
    return OBJECTIVES[config.objective.name](config, rngs=rngs)
