"""The recipe's numbers: schedule, decay mask, clip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from csfm_jax import config as config_lib
from csfm_jax import objectives
from csfm_jax.config import OptimizerConfig
from csfm_jax.training.optimizer import decay_mask, learning_rate, make_optimizer
from data_pipelines.errors import BadInput


def test_the_rate_warms_up_peaks_and_ends_where_it_should():
    rate = learning_rate(OptimizerConfig(learning_rate=1.0, final_fraction=0.1, warmup_steps=10), 100)
    rates = np.array([float(rate(n)) for n in range(101)])
    assert rates[0] == pytest.approx(0.1) and rates[10] == pytest.approx(1.0) and rates[100] == pytest.approx(0.1)
    assert (np.diff(rates[:11]) > 0).all() and (np.diff(rates[10:]) < 0).all()
    assert rates[55] == pytest.approx(0.55)  # half way down the cosine


def test_a_run_without_warm_up_begins_at_the_peak():
    assert float(learning_rate(OptimizerConfig(learning_rate=1.0, warmup_steps=0), 10)(0)) == 1.0


@pytest.mark.parametrize("warmup", [-1, 100, 2000])
def test_a_warm_up_that_does_not_end_is_refused(warmup):
    with pytest.raises(BadInput, match="config.optimizer.warmup_steps"):
        learning_rate(OptimizerConfig(warmup_steps=warmup), 100)


def test_kernels_decay_and_vectors_tables_and_cls_do_not():
    config = config_lib.from_dict({"encoder": {"width": 16, "depth": 2, "heads": 2, "head_dim": 8, "mlp": 32}})
    model = nnx.eval_shape(lambda: objectives.build(config, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(model))
    mask = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(decay_mask(params))}
    shapes = {jax.tree_util.keystr(k): v.shape for k, v in jax.tree_util.tree_leaves_with_path(params)}
    free, decayed = {n for n, v in mask.items() if not v}, {n for n, v in mask.items() if v}
    assert all(len(shapes[name]) >= 2 for name in decayed)
    stacked_bias = next(n for n in shapes if "encoder" in n and "blocks" in n and "up" in n and "bias" in n)
    assert len(shapes[stacked_bias]) == 2 and stacked_bias in free
    for word in ("bias", "scale", "cls", "words'", "channel", "time"):
        tables = {n for n in shapes if word in n.lower() and "kernel" not in n}
        assert tables and tables <= free, word
    for word in ("qkv", "up", "down", "out", "projections", "heads"):
        assert any(word in n for n in decayed), word


def test_decay_pulls_kernels_only_and_the_clip_bounds_the_first_update():
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5, clip_norm=1.0)
    optimizer = make_optimizer(config, 10)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((3, 2))}
    updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5)
    assert (updates["bias"] == 0).all()
    huge = jax.tree.map(lambda x: 1e6 * x, params)
    _, state = optimizer.update(huge, optimizer.init(params), params)
    moments = jax.tree.leaves(state[1].mu)
    norm = np.sqrt(sum(float((m**2).sum()) for m in moments)) / (1 - config.beta1)
    assert norm == pytest.approx(1.0, rel=1e-5)
