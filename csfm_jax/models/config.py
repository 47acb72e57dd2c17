"""Sizes and choices of the encoder and the decoder: the `encoder` and `decoder` parts of a config file."""

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from csfm_jax.models import backbone_config
from csfm_jax.tasks import config as adaptation
from data_pipelines.errors import BadInput
from data_pipelines.signals import MODALITIES
from data_pipelines.windows import used_channels

if TYPE_CHECKING:
    from csfm_jax.config import Config


@dataclass(frozen=True)
class EncoderConfig:
    """The transformer that sees visible tokens only. Defaults: CSFM Base (Gu et al. 2026, `network/model.py`).

    Attributes:
        width: D. depth: L. heads: H. head_dim: width of one head (64 in every CSFM). mlp: hidden width of the MLP.
        dropout: after embedding, attention and MLP; 0.1 as published.
        position: "learned" table (as published), "sincos" or "rotary", the last two on seconds.
        position_steps: rows of the learned table. position_seconds: seconds of one row.
        projection: "shared" by all modalities (as published) or one per "modality".
        output: what a token is embedded as: what leaves the "last" block, or the "average" of what leaves each one, all
            through the final LayerNorm (ECG-Soup's IPA, Nguyen et al. 2025).
        pooling: "cls" or "mean" over a window's visible tokens but CLS.
        remat: what the backward pass keeps: "none" (keep all), "dots", "full" (keep block inputs only).
        compute: dtype of activations and products, "float32" or "bfloat16"; parameters are float32 always.
        attention: "auto" picks by platform; or a backend's name.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    head_dim: int = 64
    mlp: int = 3072
    dropout: float = 0.1
    position: str = "learned"
    position_steps: int = 100
    position_seconds: float = 0.1
    projection: str = "shared"
    output: str = "last"
    pooling: str = "cls"
    remat: str = "none"
    compute: str = "float32"
    attention: str = "auto"


@dataclass(frozen=True)
class DecoderConfig:
    """The light transformer over the whole row that reconstructs; thrown away after pretraining.

    Attributes: as in `EncoderConfig`; not stated in the paper: 256 wide and 4 blocks are He et al. 2022 scaled down.
    """

    width: int = 256
    depth: int = 4
    heads: int = 4
    head_dim: int = 64
    mlp: int = 1024


_CHOICES = {
    "config.encoder.position": ("learned", "sincos", "rotary"),
    "config.encoder.projection": ("shared", "modality"),
    "config.encoder.output": ("last", "average"),
    "config.encoder.pooling": ("cls", "mean"),
    "config.encoder.remat": ("none", "dots", "full"),
    "config.encoder.compute": ("float32", "bfloat16"),
    "config.encoder.attention": ("auto", "reference", "dense", "blocks", "splash", "triton", "cudnn"),
    "config.objective.name": ("reconstruction", "supervised", "translation"),
}


def check(config: "Config") -> None:
    """Refuses what no model can be built from, before anything is compiled.

    Raises:
        BadInput: an unknown choice, a size below 1, a modality that does not exist, an odd size where halves are
            needed, or a window longer than the learned time table.
    """
    for field, choices in _CHOICES.items():
        _, part, name = field.split(".")
        _choice(field, getattr(getattr(config, part), name), choices)
    if config.encoder.attention == "cudnn" and config.encoder.compute != "bfloat16":
        found, remedy = repr(config.encoder.compute), "set it, or choose another config.encoder.attention"
        raise BadInput("config.encoder.compute", found, "'bfloat16': cuDNN's attention has no float32", remedy)
    for part in ("encoder", "decoder"):
        for name in ("width", "depth", "heads", "head_dim", "mlp"):
            value = getattr(getattr(config, part), name)
            if value < 1:
                raise BadInput(f"config.{part}.{name}", str(value), "1 or more", "correct the size")
        for name, position in (("head_dim", "rotary"), ("width", "sincos")):
            value = getattr(getattr(config, part), name)
            if config.encoder.position == position and value % 2:
                field = f"config.{part}.{name}"
                raise BadInput(field, str(value), f"an even number for {position} positions", "change it by one")
    if not 0.0 <= config.encoder.dropout < 1.0:
        raise BadInput("config.encoder.dropout", str(config.encoder.dropout), "a number in [0, 1)", "correct it")
    _check_tokens(config)
    backbone_config.check(config)
    adaptation.check(config)
    longest = longest_seconds(config.encoder)
    if config.backbone.name == "transformer" and config.data.window.seconds > longest + 1e-6:
        raise BadInput(
            "config.data.window.seconds",
            f"{config.data.window.seconds:g} s",
            f"at most {longest:g} s, what the learned time table holds",
            "raise config.encoder.position_steps or position_seconds, or set position to sincos or rotary",
        )


def longest_seconds(encoder: EncoderConfig) -> float:
    """Longest window that the positions can tell, in seconds; infinite for positions that are functions of seconds."""
    return encoder.position_steps * encoder.position_seconds if encoder.position == "learned" else float("inf")


def _check_tokens(config):
    tokens = config.tokens
    used_channels(tokens)
    if not tokens.modalities:
        raise BadInput("config.tokens.modalities", "none", "one or more modalities", "name them")
    if tokens.channels == "csfm" and not set(tokens.modalities) <= {"ecg", "ppg"}:
        found = ", ".join(tokens.modalities)
        raise BadInput("config.tokens.modalities", found, "ecg and ppg with channels=csfm", 'set channels to "all"')
    for name in config.objective.weights:
        _choice("config.objective.weights", name, (*MODALITIES, "text"))
    if any(weight < 0 for weight in config.objective.weights.values()):
        raise BadInput("config.objective.weights", "a negative weight", "0 or more", "correct it")


def _choice(field, value, choices):
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        remedy = f"did you mean {near[0]}?" if near else "choose one of them"
        raise BadInput(field, repr(value), "one of " + ", ".join(choices), remedy)
