"""Benchmark xResNet1d: a supervised residual network from scratch, the best of PTB-XL's first benchmark.

Reproduces: the xresnet1d101 of Strodthoff et al., JBHI 2021 (stages of 3, 4, 23 and 3 bottlenecks of 64 filters, kernel
    5), under the protocol of the other two benchmark networks: 2.5 s crops, 64 a step, AdamW at a constant rate.
    1,824,839 parameters with a head of 71 labels, 1,920 of them for the presence flags of 12 leads.
    Differs: group norms for batch norms, the mean over time alone for mean and maximum; 100 epochs at one rate for 50
    at a rate that rises and falls; 250 Hz instead of 100, and a z-score of each lead's crop, both from the stores' one
    preprocessing.
Expected: PTB-XL, all 71 labels, macro AUROC 0.925; superclasses 0.928 (theirs). Not run by us.
Time: by arithmetic, not run: 0.040 TFLOP a step, 1.1e15 in all.
Command: csfm finetune --checkpoint=random --config=benchmark_xresnet1d --task=ptbxl_all --workdir=DIR --store=STORE
"""

import ml_collections

from csfm_jax.config import default


def get_config() -> ml_collections.ConfigDict:
    config = default()
    config.tokens.modalities = ("ecg",)
    config.tokens.channels = "csfm"  # of ECG: the twelve leads
    config.tokens.layout = "frame"
    config.tokens.text_length = 0
    config.data.window.seconds, config.data.window.crops = 2.5, 4
    # A row is one crop: 25 frames of 0.1 s, and CLS.
    config.data.rows, config.data.row_windows = 64, 1
    config.data.row_tokens = config.data.row_visible = 26

    config.backbone.name, config.backbone.xresnet1d.blocks = "xresnet1d", (3, 4, 23, 3)

    config.objective.name = "supervised"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.decay, config.optimizer.warmup_steps = "constant", 0
    config.optimizer.beta2, config.optimizer.weight_decay = 0.999, 1e-3
    # 100 epochs of one crop of each of 17,418 recordings
    config.training.steps = 27_200
    return config
