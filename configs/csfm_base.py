"""CSFM Base: masked reconstruction of ECG, PPG and reports, one transformer for any subset of sensors.

Reproduces: Gu et al., Nature Machine Intelligence 8(2):220-233, 2026 (arXiv 2507.01045). The encoder is exactly theirs:
    108,630,579 parameters with text embedding and a one-class head. Masking 75 % of signal and 50 % of text tokens is
    reported; decoder, loss weights, optimizer and schedule are not stated there: those of He et al. 2022, scaled down.
Expected: fine-tuned, CinC 2017 macro-F1 0.677; CODE-15 1-year mortality AUC 0.844; VTaC false alarms AUC 0.967 (their
    figures, from MIMIC-III-WDB, MIMIC-IV-ECG and CODE-Full, 1.7 million people). Not run by us.
Time: by arithmetic, not run: 568 GFLOP a row to train, decoder included, 1.5e19 in all for 100,000 steps of
    256 rows: 3.2 hours on 16 TPU v5e (197 TFLOP/s) at an assumed 40 % of peak.
Command: csfm train --config=configs/csfm_base.py --workdir=DIR --config.data.stores=STORES
"""

import ml_collections

from csfm_jax.config import default


def get_config() -> ml_collections.ConfigDict:
    config = default()
    config.tokens.modalities = ("ecg", "ppg")
    config.tokens.channels = "csfm"
    config.tokens.text_vocabulary = 30522  # BERT uncased's, as published; a store's own tokenizer is smaller and fits
    config.data.window.seconds = 10.0
    # Two 12-lead windows with report (1,265 tokens each) fill 98.8 % of a row.
    config.data.row_tokens, config.data.row_visible, config.data.row_windows = 2560, 704, 8
    config.data.rows = 256
    config.data.mask.keep_signal, config.data.mask.keep_text = 0.25, 0.5
    # Not stated whether tokens, channels or time are hidden, only that masking runs over channels and time.
    config.data.mask.weights = {"random": 1.0, "channel": 0.5, "time": 0.5, "modality": 0.5}

    encoder = config.encoder
    encoder.width, encoder.depth, encoder.heads, encoder.head_dim, encoder.mlp = 768, 12, 12, 64, 3072
    encoder.compute = "bfloat16"
    encoder.remat = "dots"

    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 5000
    config.training.steps = 100_000
    return config
