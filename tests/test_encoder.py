"""The encoder: published sizes, and a window's embedding that depends on nothing but the window."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from model_batches import built, pack, small_config, window

from csfm_jax.config import Config
from csfm_jax.models import config as model_config
from csfm_jax.models.encoder import Encoder
from csfm_jax.models.tokenizer import step_of
from data_pipelines.config import TokenConfig
from data_pipelines.errors import BadInput

SIZES = {
    "tiny": (dict(width=768, depth=6, heads=8, mlp=1024), 42_511_923),
    "base": (dict(width=768, depth=12, heads=12, mlp=3072), 108_630_579),
    "large": (dict(width=1024, depth=16, heads=24, mlp=4096), 266_516_531),
}


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts_of_csfm(size):
    fields, expected = SIZES[size]
    config = model_config.EncoderConfig(**fields)

    def build():
        rngs = nnx.Rngs(0)
        head = nnx.Linear(config.width, 1, rngs=rngs)
        return Encoder(config, TokenConfig(modalities=("ecg", "ppg"), channels="csfm"), rngs=rngs), head

    parameters = nnx.state(nnx.eval_shape(build), nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters)) == expected


def test_every_parameter_has_a_name_for_every_axis():
    state = nnx.state(nnx.eval_shape(lambda: Encoder(small_config().encoder, small_config().tokens, rngs=nnx.Rngs(0))))
    for variable in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Variable)):
        assert len(variable.get_metadata()["out_sharding"]) == len(variable.get_value().shape)


def run(config, rows, **changes):
    """[rows][windows] -> pooled [rows, S, D] of one fixed random encoder."""
    return _encoder(dataclasses.replace(config.encoder, **changes), config)(pack(config, rows)).pooled


_made = {}


def _encoder(of, config):
    if of not in _made:
        graphdef, state = built(lambda of=of: Encoder(of, config.tokens, rngs=nnx.Rngs(7)))
        forward = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch))
        _made[of] = lambda batch: forward(state, batch)
    return _made[of]


VARIANTS = [
    dict(position="learned", projection="shared", pooling="cls"),
    dict(position="sincos", projection="modality", pooling="mean"),
    dict(position="rotary", projection="modality", pooling="cls"),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v["position"])
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_window_is_embedded_the_same_wherever_it_stands(variant, seed):
    rng, config = np.random.default_rng(seed), small_config()

    def some():
        leads = rng.permutation(["I", "II", "V5", "RESP"])[: rng.integers(1, 4)]
        return window(config, list(leads), int(rng.integers(1, 5)), int(rng.integers(0, 4)), rng, keep=0.7)

    one, others = some(), [some() for _ in range(4)]
    one.visible[1] = others[0].visible[1] = True  # as in every real window: one signal token at least
    alone = run(config, [[one], []], **variant)[0, 0]
    order = np.r_[0, 1 + rng.permutation(len(one.channel) - 1)]
    neighbours = run(config, [[others[0], one, others[1]], [others[2], others[3]]], **variant)
    assert np.abs(alone).max() > 0.1
    np.testing.assert_allclose(neighbours[0, 1], alone, atol=1e-5)
    np.testing.assert_allclose(run(config, [others[:2], [one.take(order)]], **variant)[1, 0], alone, atol=1e-5)
    # Different numbers of rows and windows, and what the windows left free, stay zero.
    assert not np.asarray(neighbours[1, 2:]).any()

    changed = dataclasses.replace(others[0], patches=50 * np.sin(7 * others[0].patches))
    again = run(config, [[changed, one, others[1]], [others[2], others[3]]], **variant)
    np.testing.assert_allclose(again[0, 1:3], neighbours[0, 1:3], atol=1e-6)
    np.testing.assert_allclose(again[1], neighbours[1], atol=1e-6)
    assert np.abs(again[0, 0] - neighbours[0, 0]).max() > 1e-3


def test_hidden_tokens_and_padding_do_not_reach_the_encoder():
    rng, config = np.random.default_rng(0), small_config()
    batch = pack(config, [[window(config, ["I", "RESP"], 6, 4, rng, keep=0.5)], []])
    encode = _encoder(config.encoder, config)
    patches = batch.patches.copy()
    hidden = np.ones(patches.shape[:2], bool)
    for row, seen in enumerate(batch.visible):
        hidden[row, seen[seen < hidden.shape[1]]] = False
    patches[hidden] = np.nan
    got, want = encode(batch._replace(patches=patches)), encode(batch)
    np.testing.assert_array_equal(got.pooled, want.pooled)
    assert np.isfinite(got.tokens).all() and not np.asarray(got.tokens)[np.asarray(got.channel) == 0].any()


@pytest.mark.parametrize("changes", [dict(channel="V1"), dict(later=3.0)], ids=["channel", "time"])
@pytest.mark.parametrize("position", ["learned", "sincos", "rotary"])
def test_channel_and_time_matter(position, changes):
    rng, config = np.random.default_rng(0), small_config()
    one = window(config, [changes.get("channel", "I")], 5, 0, np.random.default_rng(1))
    plain = window(config, ["I"], 5, 0, np.random.default_rng(1))
    one.time[1:] += changes.get("later", 0.0)
    neighbour = window(config, ["II"], 3, 0, rng)
    out = run(config, [[plain, one, neighbour]], position=position, pooling="mean")
    assert np.abs(out[0, 0] - out[0, 1]).max() > 1e-3


def test_a_time_beyond_the_learned_table_is_nan_never_a_wrong_row():
    config = small_config(position_steps=10)
    one = window(config, ["I"], 12, 0, np.random.default_rng(0))
    assert np.isnan(run(config, [[one]], position_steps=10)[0, 0]).all()


def test_steps_are_those_of_csfm_on_its_grid():
    time = ((np.arange(100) + 0.5) * 0.1).astype(np.float32)
    for f in (step_of, jax.jit(step_of, static_argnums=1)):
        np.testing.assert_array_equal(f(time, 0.1), np.arange(100))
    borders = ((np.arange(25) + 0.5) * 0.4).astype(np.float32)  # centred between two steps
    np.testing.assert_array_equal(jax.jit(step_of, static_argnums=1)(borders, 0.1), 2 + 4 * np.arange(25))


def test_dropout_follows_its_key_and_scan_follows_remat():
    rng, config = np.random.default_rng(0), small_config(dropout=0.3)
    batch = pack(config, [[window(config, ["I", "RESP"], 5, 3, rng)]])
    keys = jax.random.split(jax.random.key(0))
    results = []
    for remat in ("none", "dots", "full"):
        of = dataclasses.replace(config.encoder, remat=remat)
        graphdef, state = built(lambda of=of: Encoder(of, config.tokens, rngs=nnx.Rngs(7)))

        def loss(state, key, graphdef=graphdef):
            return (nnx.merge(graphdef, state)(batch, key=key).pooled ** 3).sum()

        results.append(jax.jit(jax.value_and_grad(loss))(state, keys[0]))
    for value, gradient in results[1:]:
        np.testing.assert_allclose(value, results[0][0], rtol=1e-5)
        for got, want in zip(jax.tree.leaves(gradient), jax.tree.leaves(results[0][1])):
            np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max() + 1e-6)
    values = [float(jax.jit(loss)(state, key)) for key in (keys[0], keys[1], None)]
    assert len(set(values)) == 3


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_average_of_all_blocks_is_that_of_encoders_cut_off_after_each(remat):
    rng, config = np.random.default_rng(0), small_config()
    batch = pack(config, [[window(config, ["I", "RESP"], 5, 3, rng)]])
    averaged = dataclasses.replace(config.encoder, output="average", remat=remat)
    graphdef, state = built(lambda: Encoder(averaged, config.tokens, rngs=nnx.Rngs(7)))
    tokens = []
    for depth in range(1, averaged.depth + 1):
        cut = dataclasses.replace(config.encoder, depth=depth)
        shorter, _ = built(lambda cut=cut: Encoder(cut, config.tokens, rngs=nnx.Rngs(7)))
        kept = jax.tree.map(lambda leaf: leaf, state)
        kept["transformer"]["blocks"] = jax.tree.map(lambda leaf, n=depth: leaf[:n], kept["transformer"]["blocks"])
        tokens.append(nnx.merge(shorter, kept)(batch).tokens)
    assert len(tokens) > 1 and np.abs(tokens[0] - tokens[-1]).max() > 0.1
    np.testing.assert_allclose(nnx.merge(graphdef, state)(batch).tokens, np.mean(tokens, axis=0), atol=1e-5)


def test_bfloat16_is_near_float32_with_float32_parameters():
    rng, config = np.random.default_rng(0), small_config()
    rows = [[window(config, ["I", "RESP"], 5, 3, rng)]]
    np.testing.assert_allclose(run(config, rows, compute="bfloat16"), run(config, rows), atol=0.15)
    of = dataclasses.replace(config.encoder, compute="bfloat16")
    _, state = built(lambda: Encoder(of, config.tokens, rngs=nnx.Rngs(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype("float32")}


def test_a_batch_of_other_patches_is_refused():
    config = small_config()
    batch = pack(config, [[]])
    with pytest.raises(BadInput, match="batch.patches.*30 samples"):
        _encoder(config.encoder, config)(batch._replace(patches=np.zeros((1, 96, 30), np.float32)))


BAD = [
    ("encoder", dict(position="absolute"), "position"),
    ("encoder", dict(remat="dot"), "did you mean dots"),
    ("encoder", dict(output="mean"), "config.encoder.output"),
    ("encoder", dict(position="rotary", head_dim=15), "even"),
    ("encoder", dict(position_steps=99), "window.seconds.*9.9 s"),
    ("encoder", dict(dropout=1.0), "dropout"),
    ("encoder", dict(attention="cudnn"), "config.encoder.compute.*bfloat16"),
    ("decoder", dict(depth=0), "decoder.depth"),
    ("tokens", dict(modalities=("egc",)), "found 'egc'"),
    ("tokens", dict(modalities=()), "modalities"),
    ("tokens", dict(modalities=("ecg", "resp"), channels="csfm"), "channels=csfm"),
    ("tokens", dict(patch={"ecg": 25}), "tokens.patch.ppg"),
    ("objective", dict(weights={"txt": 1.0}), "did you mean text"),
    ("objective", dict(weights={"ecg": -1.0}), "negative"),
]


@pytest.mark.parametrize("part, fields, message", BAD)
def test_bad_configs_are_refused(part, fields, message):
    config = Config()
    model_config.check(config)
    changed = dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **fields)})
    with pytest.raises(BadInput, match=message):
        model_config.check(changed)
