"""Small configs of every backbone on frame tokens, and packed batches of made-up windows for them."""

import jax
import numpy as np
from flax import nnx
from model_batches import built

from csfm_jax.config import Config, from_dict
from csfm_jax.models.backbones import build_encoder
from data_pipelines import loader
from data_pipelines.signals import CHANNEL_ID

SIZES = {
    "s4": {"s4": {"width": 8, "depth": 2, "state": 4}},
    "scan": {"s4": {"width": 8, "depth": 2, "state": 4, "form": "scan"}},
    "net1d": {"net1d": {"stem": 8, "filters": [8, 16], "blocks": [1, 2], "kernel": 6, "group_width": 4}},
    "norms": {"net1d": {"stem": 8, "filters": [16], "blocks": [1], "kernel": 5, "group_width": 8, "norm_groups": 2}},
    "xresnet1d": {
        "xresnet1d": {"stem": [4, 4, 8], "filters": [4, 8], "blocks": [1, 1], "expansion": 2, "norm_groups": 2}
    },
    "plain": {"xresnet1d": {"stem": [4, 4, 8], "filters": [8, 8], "blocks": [1, 1], "expansion": 1, "norm_groups": 4}},
}
NAMES = {"scan": "s4", "norms": "net1d", "plain": "xresnet1d"}
PATCH, FRAMES = 10, 12


def small(kind: str, modalities=("ecg",), **changes) -> Config:
    """Windows of 12 frames of 10 samples at most."""
    values = {
        "tokens": {
            "modalities": modalities, "channels": "csfm", "layout": "frame", "text_length": 0,
            "patch": {"ecg": PATCH, "ppg": PATCH},
        },
        "data": {"window": {"seconds": PATCH * FRAMES / 250, "minimum_seconds": 0.1}},
        "backbone": {"name": NAMES.get(kind, kind), **SIZES[kind], **changes},
    }  # fmt: skip
    return from_dict(values)


def initialised(config: Config) -> tuple[nnx.GraphDef, nnx.State]:
    """A small model; what begins at zero (last norms) would hide what it multiplies, so nothing does."""
    graphdef, state = built(lambda: build_encoder(config, rngs=nnx.Rngs(7)))
    return graphdef, jax.tree.map(
        lambda x: x + 0.1 * np.sin(np.arange(x.size, dtype=np.float32)).reshape(x.shape), state
    )


def window(rng, frames, names=("I", "II", "V5"), gaps=()):
    """[(channel id, samples)] of some channels; `gaps` are (channel, frame) that are invalid."""
    made = []
    for number, name in enumerate(names):
        x = rng.standard_normal(frames * PATCH).astype(np.float32)
        for channel, frame in gaps:
            if channel in (number, None):
                x[frame * PATCH + 3] = np.nan
        made.append((CHANNEL_ID[name], x))
    return made


def packed(config, windows, rows=2, tokens=40):
    batches = loader.pack_windows(windows, config.tokens, rows=rows, row_tokens=tokens, row_windows=3)
    return batches
