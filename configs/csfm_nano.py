"""CSFM nano: the same machine for two CPU cores, and for four kinds of sensors.

Reproduces: nothing published; masked reconstruction at the smallest size that learns something.
Expected: held-out loss of hidden patches stays at 1.0 (the mean) for about a thousand steps of 8 rows, then falls, when
    attention has found the same instant in another lead; frozen linear probe on PTB-XL superclasses above that of the
    same network at random initialisation (`docs/benchmarks.md` has what was measured).
Time: about ten minutes on two CPU cores.
Command: csfm train --config=csfm_nano --workdir=DIR --config.data.stores=STORES
"""

import ml_collections

from csfm_jax.config import default


def get_config() -> ml_collections.ConfigDict:
    config = default()
    config.tokens.modalities = ("ecg", "ppg", "resp", "abp")
    # Half a second (respiration one): a fifth of CSFM's tokens. Equal sample counts, so that little of P is padding.
    config.tokens.patch.update({"ecg": 125, "ppg": 125, "resp": 25, "abp": 62})
    config.tokens.text_vocabulary = 2048
    config.tokens.text_length = 32
    config.data.window.seconds = 10.0
    config.data.rows, config.data.row_tokens, config.data.row_visible, config.data.row_windows = 6, 384, 112, 6
    config.data.mask.weights = {"random": 1.0, "channel": 0.5, "time": 0.5, "modality": 0.5}

    encoder = config.encoder
    encoder.width, encoder.depth, encoder.heads, encoder.head_dim, encoder.mlp = 128, 4, 4, 32, 512
    encoder.position_steps, encoder.position_seconds = 20, 0.5
    encoder.projection = "modality"
    encoder.dropout = 0.0
    encoder.pooling = "mean"
    decoder = config.decoder
    decoder.width, decoder.depth, decoder.heads, decoder.head_dim, decoder.mlp = 96, 2, 2, 32, 384

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.training.steps = 4000
    config.training.log_every = 20
    config.training.eval_every = 500
    config.training.save_every = 500
    return config
