"""The benchmark's frozen encoder: a learned query attends to its tokens.

Reproduces: Al-Masud, Lopez Alcaraz and Strodthoff, ICLR 2026 (arXiv 2509.25095, "reality check"), by their code
    (AI4HealthUOL/ecg-fm-benchmarking: run.sh, main_lite.py, models/fm_ecg.py, utils/heads.py): `frozen`, attention by a
    learned query without biases. AdamW with PyTorch's betas (0.9, 0.999), a constant rate of 1e-3, no warm-up, weight
    decay 1e-3, 100 epochs of one random crop a recording in batches of 64, the epoch of the best macro AUROC on
    validation recordings. Crops of 2.5 s, four of which are averaged over a test recording of 10 s; models that need
    them longer got 5 or 10 s (--config.data.window.seconds).
    Differs: their head has 16 heads, ours as many as the encoder; vectors and tables do not decay, theirs do; gradients
    are clipped at a norm of 1 as everywhere here, theirs are not. Tasks of other kinds keep the epoch of their own
    first figure.
Expected: PTB-XL, all 71 labels, macro AUROC 0.934 of ECG-JEPA, 0.931 of ECG-CPC (theirs). Not run by us.
Command: csfm finetune --checkpoint=RUN --recipe=benchmark_frozen --task=ptbxl_all --workdir=DIR --store=STORE
"""

import ml_collections

from csfm_jax.recipes import blank


def get_recipe() -> ml_collections.ConfigDict:
    recipe = blank()
    recipe.adaptation.trainable, recipe.adaptation.head = "head", "attention"
    recipe.data.window.seconds, recipe.data.window.most_per_recording, recipe.data.window.crops = 2.5, 1, 4
    recipe.data.rows, recipe.data.row_windows = 64, 1

    recipe.optimizer.name, recipe.optimizer.decay, recipe.optimizer.warmup_steps = "adamw", "constant", 0
    recipe.optimizer.learning_rate = 1e-3
    recipe.optimizer.beta1, recipe.optimizer.beta2, recipe.optimizer.weight_decay = 0.9, 0.999, 1e-3
    recipe.training.epochs = 100
    recipe.training.keep_best = "first"
    return recipe
