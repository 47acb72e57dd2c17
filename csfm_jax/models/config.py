"""Sizes and choices of the encoder and the decoder: the `encoder` and `decoder` parts of a config file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderConfig:
    """The transformer that sees visible tokens only. Defaults: CSFM Base (Gu et al. 2026, `network/model.py`).

    Attributes:
        width: D. depth: L. heads: H. head_dim: width of one head (64 in every CSFM). mlp: hidden width of the MLP.
        dropout: after embedding, attention and MLP; 0.1 as published.
        position: "learned" table (as published), "sincos" or "rotary", the last two on seconds.
        position_steps: rows of the learned table. position_seconds: seconds of one row.
        projection: "shared" by all modalities (as published) or one per "modality".
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
