"""The config of tests' runs: a network of a few thousand parameters, one program for all of them."""

import ml_collections

from csfm_jax.config import default

STEPS = 40


def get_config() -> ml_collections.ConfigDict:
    c = default()
    c.tokens.modalities, c.tokens.text_length = ("ecg", "ppg"), 0
    c.tokens.patch.ecg = c.tokens.patch.ppg = 125
    c.data.rows, c.data.row_tokens, c.data.row_visible, c.data.row_windows = 2, 160, 60, 6
    c.data.window.seconds = 5.0
    for part in (c.encoder, c.decoder):
        part.width, part.depth, part.heads, part.head_dim, part.mlp = 8, 1, 1, 8, 16
    c.optimizer.warmup_steps = 5
    c.training.steps = STEPS
    return c
