"""Which parameters a fine-tuning run moves, and by how much; losses alike on one device and several."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from test_step import fake_batch  # rows of windows of different lengths, the last one empty

from csfm_jax import config as config_lib
from csfm_jax import objectives, sharding
from csfm_jax.models import config as model_config
from csfm_jax.tasks.config import AdaptationConfig
from csfm_jax.training.adaptation import rate_factors, run_optimizer
from csfm_jax.training.optimizer import learning_rate, make_optimizer
from csfm_jax.training.state import blueprint
from csfm_jax.training.step import make_train_step, to_global
from data_pipelines.errors import BadInput

DEPTH = 3
FAKE = {"rows": 8, "row_tokens": 48, "row_visible": 20, "row_windows": 4}  # the shape of `fake_batch`


def config_of(adaptation, **more):
    values = {
        "tokens": {"modalities": ["ecg", "ppg"], "text_length": 0},
        "data": {"rows": 4, "row_tokens": 32, "row_visible": 32, "row_windows": 3},
        "encoder": {"width": 8, "depth": DEPTH, "heads": 2, "head_dim": 4, "mlp": 16, "dropout": 0.0},
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0, "weight_decay": 0.1},
        "training": {"steps": 10},
        "objective": {"name": "supervised"},
        "adaptation": {"task": "simulated_rhythm", "labels": ["rhythm/irregular", "rate/fast"]} | adaptation,
    }
    return config_lib.from_dict(values | more)


def parameters(config):
    """Random ones of a config's objective: no initialiser is compiled."""
    rng = np.random.default_rng(0)
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: objectives.build(config, rngs=nnx.Rngs(0)))))
    return jax.tree.map(lambda x: rng.normal(0, 1, x.shape).astype(np.float32), shapes)


def updates(config, make):
    """The first update of random gradients."""
    whole = parameters(config)
    encoder = whole["encoder"]["transformer"]
    params = {  # one of each kind: the rule is the same for all
        "encoder": {
            "tokenizer": {"cls": whole["encoder"]["tokenizer"]["cls"]},
            "transformer": {"blocks": {"up": encoder["blocks"]["up"]}, "norm": {"scale": encoder["norm"]["scale"]}},
        },
        "head": whole["head"],
    }
    gradients = jax.tree.map(lambda x: np.cos(x).astype(np.float32), params)
    optimizer = make(config)
    found, _ = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p))(gradients, params)
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(found)}


def test_each_layers_update_is_scaled_as_beits_rule_says():
    config = config_of({"layer_decay": 0.5})
    plain = updates(config, lambda c: make_optimizer(c.optimizer, c.training.steps))
    scaled = updates(config, run_optimizer)
    assert scaled.keys() == plain.keys()
    seen = set()
    for name, update in scaled.items():
        if "'blocks'" in name:
            expected = [0.5 ** (DEPTH + 1 - layer) for layer in range(1, DEPTH + 1)]
            expected, kind = np.reshape(expected, (DEPTH, *(1,) * (update.ndim - 1))), "blocks"
        elif "'tokenizer'" in name:
            expected, kind = 0.5 ** (DEPTH + 1), "embeddings"
        else:
            expected, kind = 1.0, "head" if "'head'" in name else "norm"
        np.testing.assert_allclose(update, plain[name] * expected, rtol=1e-5, err_msg=name)
        seen.add(kind)
    assert seen == {"blocks", "embeddings", "head", "norm"}


def test_three_groups_are_head_late_and_early():
    config = config_of({"rates": "groups", "layer_decay": 0.1})
    factors = rate_factors(parameters(config), config.adaptation, DEPTH)
    encoder = factors["encoder"]["transformer"]
    np.testing.assert_allclose(encoder["blocks"]["up"]["kernel"].ravel(), [0.01, 0.01, 0.1], rtol=1e-5)
    assert float(encoder["norm"]["scale"]) == pytest.approx(0.1)
    assert float(factors["encoder"]["tokenizer"]["cls"]) == pytest.approx(0.01)
    assert float(factors["head"]["out"]["kernel"]) == 1


@pytest.mark.parametrize("adaptation", [{"trainable": "head"}, {"trainable": "lora", "lora_rank": 2}])
def test_a_frozen_encoder_has_no_moments(adaptation):
    config = config_of(adaptation)
    plan = blueprint(config, run_optimizer(config), sharding.make_mesh(config.mesh, jax.devices()[:1]))
    assert plan.abstract.params.keys() == {"encoder", "head", *(["lora"] if "lora_rank" in adaptation else [])}
    moments = optax.tree_utils.tree_get(plan.abstract.optimizer, "mu")
    assert moments.keys() == plan.abstract.params.keys() - {"encoder"}


def test_a_step_moves_head_and_adapters_and_no_bit_of_a_frozen_encoder():
    target = {"task": "simulated_heart_rate", "labels": ["heart_rate"], "mean": [80.0], "scale": [20.0]}
    config = config_of({"trainable": "lora", "lora_rank": 2} | target, data=FAKE)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    optimizer = run_optimizer(config)
    plan, batch = blueprint(config, optimizer, mesh), fake_batch(0)
    params = parameters(config)
    zero = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), plan.abstract)
    truth = np.where(batch.window >= 0, 95.0, np.nan).astype(np.float32)[..., None]
    with sharding.use(mesh):
        step = make_train_step(plan, optimizer, learning_rate(config.optimizer, 10), config)
        state = jax.tree.map(jax.device_put, zero._replace(params=params), plan.shardings)
        state, metrics = step(state, to_global(batch._replace(labels=truth), mesh))
        metrics = metrics.fetch()
    jax.tree.map(np.testing.assert_array_equal, state.params["encoder"], params["encoder"])
    for part in ("head", "lora"):
        for leaf, before in zip(jax.tree.leaves(state.params[part]), jax.tree.leaves(params[part])):
            assert (leaf != before).any(), part
    windows = (batch.window >= 0).sum()
    assert metrics.made and metrics.counts["mae/heart_rate"] == metrics.counts["loss/simulated_heart_rate"] == windows
    # Huber's loss beyond its corner is |error| - 1/2 in deviations; the error is in beats a minute
    assert metrics.sums["mae/heart_rate"] / windows > 20 * metrics.loss


@pytest.mark.parametrize(
    ("adaptation", "named"),
    [
        ({"head": "quadratic"}, "config.adaptation.head"),
        ({"loss": "cox"}, "config.adaptation.loss"),
        ({"trainable": "lora"}, "config.adaptation.lora_rank"),
        ({"lora_rank": 4}, "config.adaptation.lora_rank"),
        ({"layer_decay": 1.5}, "config.adaptation.layer_decay"),
        ({"layer_decay": 0.5, "trainable": "head"}, "config.adaptation.layer_decay: found 0.5, which nothing reads"),
        ({"rates": "groups", "trainable": "head"}, "config.adaptation.rates: found groups, which nothing reads"),
        ({"rates": "groups", "layer_decay": 1.0}, "config.adaptation.rates: found groups, which nothing reads"),
        ({"lora_alpha": 8.0}, "config.adaptation.lora_alpha: found 8.0, which nothing reads"),
        ({"loss": "focal", "weigh_positives": True}, "config.adaptation.weigh_positives"),
        ({"task": ""}, "config.objective.name"),
        ({"task": "ptbxl_superclas"}, "did you mean ptbxl_superclass"),
        ({"labels": []}, "config.adaptation.labels"),
    ],
)
def test_what_does_not_fit_together_is_refused(adaptation, named):
    with pytest.raises(BadInput, match=named):
        model_config.check(config_of(adaptation))


def test_a_cox_loss_is_not_computed_in_parts():
    survival = {"task": "code15_mortality", "labels": ["death", "followup_years"]}
    model_config.check(config_of(survival))
    with pytest.raises(BadInput, match="config.training.accumulate"):
        model_config.check(config_of(survival, training={"steps": 10, "accumulate": 2}))


def test_pretraining_knows_no_adaptation():
    model_config.check(config_lib.Config())
    assert config_lib.Config().adaptation == AdaptationConfig()


CASES = {
    "survival": {"task": "code15_mortality", "labels": ["death", "followup_years"]},
    "multilabel": {"weigh_positives": True, "positive_weight": [2.0, 3.0]},
}


def test_two_devices_give_the_loss_and_gradient_of_one():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    ended = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found.keys() == CASES.keys()
    for name, (one, two) in found.items():
        assert one["loss"] > 0 and one["norm"] > 0 and one["count"] > 5, name
        for figure in ("loss", "norm", "count"):
            assert two[figure] == pytest.approx(one[figure], rel=1e-5), (name, figure)


def compared() -> dict:
    """Of every case: loss, norm of its gradient and what it is a mean over, on one device and on two."""
    found, rng, batch = {}, np.random.default_rng(0), fake_batch(0)
    labels = np.stack([rng.random(batch.window.shape) < 0.5, rng.integers(1, 9, batch.window.shape)], axis=-1)
    labels = np.where((batch.window >= 0)[..., None], labels, np.nan).astype(np.float32)
    for name, adaptation in CASES.items():
        config = config_of(adaptation)
        batch = batch._replace(labels=labels if name == "survival" else labels % 2)
        params = parameters(config)
        graphdef, _ = nnx.split(nnx.eval_shape(lambda config=config: objectives.build(config, rngs=nnx.Rngs(0))))

        def loss(head, batch, graphdef=graphdef, params=params):  # the way back through an encoder is no loss's matter
            output = nnx.merge(graphdef, params | {"head": head})(batch)
            return output.loss, output.counts

        found[name] = []
        for devices in (1, 2):
            mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
            with sharding.use(mesh):
                (value, counts), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(
                    params["head"], jax.device_put(batch, sharding.batch_sharding(mesh))
                )
            (count,) = (float(v) for k, v in counts.items() if k.startswith("loss/"))
            found[name].append({"loss": float(value), "norm": float(optax.tree.norm(slope)), "count": count})
    return found


if __name__ == "__main__":
    print(json.dumps(compared()))
