"""Benchmark Net1D: a supervised convolutional network from scratch, of the kind and size of ECGFounder.

Reproduces: the Net1D baseline of Al-Masud, Lopez Alcaraz and Strodthoff, ICLR 2026 ("reality check"), the backbone of
    ECGFounder (Li et al., NEJM AI 2025): base 64, stages 64 to 1,024, kernel 16, no norms. Ours has 30,683,959
    parameters with a head of 71 labels, 12,288 of them for the presence flags of 12 leads; 33.8 M are stated there, and
    76.3 M elsewhere, for networks described alike. 2.5 s crops, 64 a step, AdamW at a constant rate.
    Differs: 250 Hz instead of 500, and a z-score of each lead's crop, both from the stores' one preprocessing.
Expected: PTB-XL, all 71 labels, macro AUROC 0.929; superclasses 0.924 (theirs). Not run by us.
Time: by arithmetic, not run: 0.063 TFLOP a step, 1.7e15 in all.
Command: csfm finetune --checkpoint=random --config=benchmark_net1d --task=ptbxl_all --workdir=DIR --store=STORE
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

    config.backbone.name = "net1d"

    config.objective.name = "supervised"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.decay, config.optimizer.warmup_steps = "constant", 0
    config.optimizer.beta2, config.optimizer.weight_decay = 0.999, 1e-3
    # 100 epochs of one crop of each of 17,418 recordings
    config.training.steps = 27_200
    return config
