"""Objectives: what a model is trained to do, one a file."""

from flax import nnx

from csfm_jax.config import Config
from csfm_jax.objectives.reconstruction import MaskedReconstruction
from csfm_jax.objectives.supervised import Supervised
from csfm_jax.objectives.translation import Translation

OBJECTIVES = {"reconstruction": MaskedReconstruction, "supervised": Supervised, "translation": Translation}


def build(config: Config, *, rngs: nnx.Rngs) -> nnx.Module:
    """The objective that `config.objective.name` names (`models.config.check` refuses unknown names)."""
    return OBJECTIVES[config.objective.name](config, rngs=rngs)
