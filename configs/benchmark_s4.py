"""Benchmark S4: a supervised state space model from scratch, the baseline that most foundation models have to beat.

Reproduces: the S4 baseline of Al-Masud, Lopez Alcaraz and Strodthoff, ICLR 2026 ("reality check"): 4 layers, width 512
    and state 8, post-norm, dropout 0.2; 2.2 M parameters with a head of 71 labels (ours: 2,207,815, 6,144 of them
    for the presence flags of 12 leads). 2.5 s crops, 64 a step, AdamW at a constant rate; crops averaged at test time.
    Differs: diagonal state spaces (S4D), which Gu et al. 2022 find as good as the original's diagonal plus low rank;
    250 Hz instead of 100, and a z-score of each lead's crop, both from the stores' one preprocessing.
Expected: PTB-XL, all 71 labels, macro AUROC 0.941; superclasses 0.932 (theirs). Not run by us.
Time: by arithmetic, not run: 0.53 TFLOP a step in float32, 1.4e16 in all.
Command: csfm finetune --checkpoint=random --config=benchmark_s4 --task=ptbxl_all --workdir=DIR --store=STORE
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

    config.backbone.name = "s4"

    config.objective.name = "supervised"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.decay, config.optimizer.warmup_steps = "constant", 0
    config.optimizer.beta2, config.optimizer.weight_decay = 0.999, 1e-3
    # 100 epochs of one crop of each of 17,418 recordings
    config.training.steps = 27_200
    return config
