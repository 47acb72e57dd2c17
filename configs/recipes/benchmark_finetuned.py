"""The benchmark's fine-tuning: a whole encoder in three groups of rates: head, late half, early half.

Reproduces: Al-Masud, Lopez Alcaraz and Strodthoff, ICLR 2026 (arXiv 2509.25095, "reality check"), by their code
    (AI4HealthUOL/ecg-fm-benchmarking: run.sh, main_lite.py, models/fm_ecg.py): `finetuning_linear`, one linear layer on
    the pooled tokens. AdamW with PyTorch's betas (0.9, 0.999), constant rates of 1e-3 (head), 1e-4 and 1e-5, no
    warm-up, weight decay 1e-3, 100 epochs of one random crop a recording in batches of 64, the epoch of the best macro
    AUROC on validation recordings. Crops of 2.5 s, four of which are averaged over a test recording of 10 s; models
    that need them longer got 5 or 10 s (--config.data.window.seconds).
    Differs: halves are of the blocks, theirs are named model by model; a window is pooled as the checkpoint does it,
    theirs by the mean of its tokens (--config.encoder.pooling=mean); vectors and tables do not decay, theirs do;
    gradients are clipped at a norm of 1 as everywhere here, theirs are not. Tasks of other kinds keep the epoch of
    their own first figure.
Expected: PTB-XL, all 71 labels, macro AUROC 0.940 of ECG-JEPA, 0.949 of ECG-CPC (theirs). Not run by us.
Command: csfm finetune --checkpoint=RUN --recipe=benchmark_finetuned --task=ptbxl_all --workdir=DIR --store=STORE
"""

import ml_collections

from csfm_jax.recipes import blank


def get_recipe() -> ml_collections.ConfigDict:
    recipe = blank()
    recipe.adaptation.trainable, recipe.adaptation.head = "all", "linear"
    recipe.adaptation.rates, recipe.adaptation.layer_decay = "groups", 0.1
    recipe.data.window.seconds, recipe.data.window.most_per_recording, recipe.data.window.crops = 2.5, 1, 4
    recipe.data.rows, recipe.data.row_windows = 64, 1

    recipe.optimizer.name, recipe.optimizer.decay, recipe.optimizer.warmup_steps = "adamw", "constant", 0
    recipe.optimizer.learning_rate = 1e-3
    recipe.optimizer.beta1, recipe.optimizer.beta2, recipe.optimizer.weight_decay = 0.9, 0.999, 1e-3
    recipe.training.epochs = 100
    recipe.training.keep_best = "first"
    return recipe
