"""CSFM's fine-tuning: a whole encoder, the deeper a layer the slower, under an asymmetric loss.

Reproduces: Gu et al., Nature Machine Intelligence 8(2):220-233, 2026 (arXiv 2507.01045), by their tutorial
    (guxiao0822/Cardiac-Sensing-FM: tutorial/finetune_tutorial.ipynb, network/lr_decay.py): AdamW with PyTorch's betas
    (0.9, 0.999), rate 1e-4, layer decay 0.75, weight decay 0.05 on kernels alone, 20 epochs of one random crop a
    recording in batches of 16, a tenth of the steps warm-up and then linear to 0, one linear layer on CLS, asymmetric
    loss, the epoch of the best macro F1 on validation recordings.
    Differs: the loss is a batch's mean, theirs its sum; gradients are clipped at a norm of 1 as everywhere here, theirs
    are not; F1 is that of the best threshold of each label, theirs of 0.5. A window is pooled as the checkpoint does
    it: by CLS in the published sizes.
    Not published: tasks of numbers and of survival, which refuse this loss; and of exclusive classes, to which their
    code would give the same loss after a softmax. There --config.adaptation.loss= and --config.training.keep_best= of
    one's own take the place of these two.
Expected: on VTaC's false alarms by their Tiny and its weights, AUC 0.966, F1 0.883 (theirs). Not run by us.
Command: csfm finetune --checkpoint=RUN --recipe=csfm_published --task=vtac_false_alarm --workdir=DIR --store=STORE
"""

import ml_collections

from csfm_jax.recipes import blank


def get_recipe() -> ml_collections.ConfigDict:
    recipe = blank()
    recipe.adaptation.trainable, recipe.adaptation.head = "all", "linear"
    recipe.adaptation.rates, recipe.adaptation.layer_decay = "layers", 0.75
    recipe.adaptation.loss = "asymmetric"
    recipe.data.window.seconds, recipe.data.window.most_per_recording = 10.0, 1
    recipe.data.rows, recipe.data.row_windows = 16, 1

    recipe.optimizer.name, recipe.optimizer.decay = "adamw", "linear"
    recipe.optimizer.learning_rate, recipe.optimizer.final_fraction = 1e-4, 0.0
    recipe.optimizer.beta1, recipe.optimizer.beta2, recipe.optimizer.weight_decay = 0.9, 0.999, 0.05
    recipe.training.epochs = 20  # a tenth of the steps is warm-up, as where no recipe is given
    recipe.training.keep_best = "macro_f1"
    return recipe
