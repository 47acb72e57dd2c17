"""The recipe's numbers: schedule, decay mask, clip."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from csfm_jax import config as config_lib
from csfm_jax import objectives, sharding
from csfm_jax.config import OptimizerConfig
from csfm_jax.training.optimizer import MOMENTUM, decay_mask, learning_rate, make_optimizer, matrices
from csfm_jax.training.state import blueprint
from data_pipelines.errors import BadInput


def test_the_rate_warms_up_peaks_and_ends_where_it_should():
    rate = learning_rate(OptimizerConfig(learning_rate=1.0, final_fraction=0.1, warmup_steps=10), 100)
    rates = np.array([float(rate(n)) for n in range(101)])
    assert rates[0] == pytest.approx(0.1) and rates[10] == pytest.approx(1.0) and rates[100] == pytest.approx(0.1)
    assert (np.diff(rates[:11]) > 0).all() and (np.diff(rates[10:]) < 0).all()
    assert rates[55] == pytest.approx(0.55)  # half way down the cosine


# after so large a part x of the steps that follow the warm-up, the rate as a part of its peak; down to a fifth of it
CLOSED = {
    "cosine": lambda x: 0.2 + 0.8 * (1 + np.cos(np.pi * x)) / 2,
    "linear": lambda x: 1 - 0.8 * x,
    "constant": np.ones_like,
}


@pytest.mark.parametrize("decay", CLOSED)
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_each_decay_is_its_closed_form(decay, warmup):
    config = OptimizerConfig(learning_rate=3e-3, decay=decay, final_fraction=0.2, warmup_steps=warmup)
    rate, steps = learning_rate(config, 50), np.arange(51)
    rising = (1 + steps * (warmup - 1) / max(warmup, 1)) / max(warmup, 1)
    falling = CLOSED[decay](np.clip(steps - warmup, 0, None) / (50 - warmup))
    expected = 3e-3 * np.where(steps < warmup, rising, falling)
    np.testing.assert_allclose(jax.vmap(rate)(steps), expected, rtol=1e-5)
    assert float(rate(60)) == pytest.approx(expected[-1])


def test_an_unknown_decay_is_refused_by_name():
    with pytest.raises(
        BadInput, match=r"config.optimizer.decay: found 'liner'; expected one of cosine, linear, .* linear"
    ):
        learning_rate(OptimizerConfig(decay="liner", warmup_steps=0), 10)


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


def sizes(**optimizer) -> config_lib.Config:
    part = {"width": 16, "depth": 2, "heads": 2, "head_dim": 8, "mlp": 32}
    tokens = {"modalities": ["ecg", "ppg"], "text_length": 4, "text_vocabulary": 20}
    values = {"tokens": tokens, "encoder": part, "decoder": {**part, "width": 8}, "optimizer": optimizer}
    return config_lib.from_dict({**values, "training": {"steps": 10}, "data": {"rows": 8}})


def normal(shapes: dict, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)


@jax.jit
def alone(gradients: list[np.ndarray]) -> jax.Array:
    """What Muon makes of one matrix [inputs, outputs] after some gradients: the direction, of AdamW's usual size."""
    muon = optax.contrib.scale_by_muon(beta=MOMENTUM)
    state = muon.init(gradients[0])
    for gradient in gradients:
        update, state = muon.update(gradient, state)
    return update * 0.2 * np.sqrt(max(update.shape))


@pytest.fixture(scope="module")
def muon_steps():
    """Shapes, two gradients, and the second update by Muon, of rate and decay 1 and 0 and without a clip."""
    config = sizes(name="muon", learning_rate=1.0, final_fraction=1.0, warmup_steps=0, weight_decay=0.0, clip_norm=1e9)
    model = nnx.eval_shape(lambda: objectives.build(config, rngs=nnx.Rngs(0)))
    shapes = nnx.to_pure_dict(nnx.state(model))
    optimizer = make_optimizer(config.optimizer, 10)
    params, gradients = normal(shapes, 0), [normal(shapes, 1), normal(shapes, 2)]
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
    return gradients, jax.tree.map(np.asarray, updates)


def test_muon_makes_every_layers_matrix_orthogonal_by_itself(muon_steps):
    gradients, updates = muon_steps
    for part, width in (("encoder", 16), ("decoder", 8)):
        ours, theirs = ([t[part]["transformer"]["blocks"] for t in trees] for trees in ([updates], gradients))
        for layer in range(2):
            for which in range(3):  # q, k and v are three matrices
                given = [
                    np.asarray(t["attention"]["qkv"]["kernel"])[layer, :, which].reshape(width, 16) for t in theirs
                ]
                found = ours[0]["attention"]["qkv"]["kernel"][layer, :, which].reshape(width, 16)
                np.testing.assert_allclose(found, -alone(given), atol=1e-5)
            given = [np.asarray(t["attention"]["out"]["kernel"])[layer].reshape(16, width) for t in theirs]
            found = ours[0]["attention"]["out"]["kernel"][layer].reshape(16, width)
            np.testing.assert_allclose(found, -alone(given), atol=1e-5)
            for name in ("up", "down"):
                given = [np.asarray(t[name]["kernel"])[layer] for t in theirs]
                np.testing.assert_allclose(ours[0][name]["kernel"][layer], -alone(given), atol=1e-5)
                # singular values near 1 before the scale: what orthogonal means to five Newton-Schulz steps
                values = np.linalg.svd(ours[0][name]["kernel"][layer], compute_uv=False) / (0.2 * np.sqrt(32))
                assert values.min() > 0.3 and values.max() < 1.4


def test_what_is_no_matrix_of_a_block_is_adamws(muon_steps):
    gradients, updates = muon_steps
    adam = optax.scale_by_adam(0.9, 0.95)
    inner, update = adam.init(gradients[0]), jax.jit(adam.update)
    for gradient in gradients:
        expected, inner = update(gradient, inner)
    expected = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(expected)}
    taken = {}
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        name = jax.tree_util.keystr(path)
        taken[name] = not np.allclose(update, -expected[name], rtol=1e-4, atol=1e-6)
    by_muon = {name for name, muon in taken.items() if muon}
    # every stacked kernel, whatever modules a block gets, and nothing else
    assert by_muon == {name for name in taken if "'blocks'" in name and name.endswith("['kernel']")}
    assert len(by_muon) == 8 and len(taken) > 30


def test_kernels_of_other_networks_blocks_are_adamws():
    squeeze = {"down": {"kernel": jnp.ones((16, 4))}, "up": {"kernel": jnp.ones((4, 16))}}  # as Net1D names them
    params = {"encoder": {"network": {"blocks": {0: {"excitation": squeeze}}}}}
    muon = make_optimizer(OptimizerConfig(name="muon", warmup_steps=0), 10)
    updates, _ = muon.update(params, muon.init(params), params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert set(jax.tree.leaves(matrices(params), is_leaf=lambda of: of is None)) == {None}


def test_muons_state_lies_where_its_parameters_lie():
    config = sizes(name="muon", warmup_steps=1)
    mesh = sharding.make_mesh(config.mesh)
    plan = blueprint(config, make_optimizer(config.optimizer, 10), mesh)
    specs = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(plan.shardings.params)}
    found = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(plan.shardings.optimizer):
        name = jax.tree_util.keystr(path)
        if own := [spec for parameter, spec in specs.items() if name.endswith(parameter)]:
            assert leaf.spec == own[0].spec, name
            found += 1
        else:
            assert not leaf.spec, name
    matrices_ = sum("'blocks'" in name and name.endswith("['kernel']") for name in specs)
    assert found == 2 * len(specs) - matrices_  # Muon keeps one moment, AdamW two


def test_an_unknown_optimizer_is_refused_by_name():
    with pytest.raises(BadInput, match=r"config.optimizer.name: found 'mion'; .* did you mean muon"):
        make_optimizer(OptimizerConfig(name="mion", warmup_steps=0), 10)
