"""Baselines in the supervised objective: what they read, what they refuse, whose recipe they keep."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from frame_batches import FRAMES, packed, small, window

from csfm_jax import config as configs
from csfm_jax import encoding, objectives, tasks
from csfm_jax.commands import finetune
from csfm_jax.config import ObjectiveConfig
from csfm_jax.models import config as model_config
from csfm_jax.tasks.config import AdaptationConfig
from data_pipelines.errors import BadInput

LABELS = ("rhythm/irregular", "rate/fast")


def supervised(kind, **adaptation):
    values = {"task": "simulated_rhythm", "labels": LABELS, "layer_decay": 1.0} | adaptation
    objective = ObjectiveConfig(name="supervised")
    return dataclasses.replace(small(kind), objective=objective, adaptation=AdaptationConfig(**values))


def test_the_loss_reads_a_windows_own_label_and_reaches_the_network():
    config, rng = supervised("s4"), np.random.default_rng(0)
    (batch,) = packed(config, [window(rng, FRAMES), window(rng, FRAMES)], rows=1)
    labels = np.full((1, 3, 2), np.nan, np.float32)
    labels[0, 0] = 1.0  # of the first window alone
    graphdef, params = nnx.split(objectives.build(config, rngs=nnx.Rngs(0)))

    @jax.jit
    def gradient(params, batch):
        def loss(params):
            output = nnx.merge(graphdef, params)(batch)
            return output.loss, output.counts["loss/simulated_rhythm"]

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, count), found = gradient(params, batch._replace(labels=labels))
    assert np.isfinite(loss) and count == 2
    largest = {name: float(abs(x).max()) for name, x in nnx.to_flat_state(found)}
    assert any(value > 0 for name, value in largest.items() if name[0] == "encoder")
    other = batch._replace(labels=labels, patches=np.where(batch.segment[..., None] == 2, 7.0, batch.patches))
    assert gradient(params, other)[0][0] == loss  # the unlabelled window has no part in it


@pytest.mark.parametrize(
    ("adaptation", "message"),
    [
        ({"head": "attention"}, "head='attention'.*expected the head linear"),
        ({"trainable": "lora", "lora_rank": 2}, "trainable='lora'"),
        ({"layer_decay": 0.75}, "layer_decay: found 0.75; expected 1"),
    ],
)
def test_what_only_a_transformer_has_is_refused(adaptation, message):
    with pytest.raises(BadInput, match=message):
        model_config.check(supervised("s4", **adaptation))
    with pytest.raises(BadInput, match="the backbone s4"):
        encoding.random_encoder(supervised("s4"))


def test_a_baseline_brings_its_own_recipe():
    config, task = configs.load("benchmark_s4"), tasks.get("ptbxl_superclass")
    made = finetune.recipe(config, task, "stores", ["--config.training.steps=5"], scratch=True)
    assert (made.data.window.seconds, made.data.rows, made.data.stores) == (2.5, 64, "stores")
    assert made.optimizer == config.optimizer and made.training.steps == 5
    assert (made.adaptation.task, made.adaptation.layer_decay) == ("ptbxl_superclass", 1.0)
    pretrained = finetune.recipe(configs.load("csfm_nano"), task, "stores", [], scratch=False)
    assert (pretrained.data.window.seconds, pretrained.data.rows) == (9.0, 16)
    assert pretrained.adaptation.layer_decay == 0.75
    scratch = finetune.recipe(configs.load("csfm_nano"), task, "stores", [], scratch=True)
    assert scratch.adaptation.layer_decay == 1.0  # no layer was pretrained


def test_what_a_checkpoint_was_taught_before_is_not_the_recipe():
    """A linear probe first, then the whole network: nothing of the first run's settings stays."""
    task, base = tasks.get("ptbxl_superclass"), configs.load("csfm_nano")
    words = ["--config.adaptation.trainable=head", "--config.training.steps=7", "--config.data.row_tokens=640"]
    probe = finetune.recipe(base, task, "stores", words, scratch=False)
    assert finetune.recipe(probe, task, "stores", [], scratch=False) == finetune.recipe(
        base, task, "stores", [], scratch=False
    )
