"""The reconstruction objective against the same numbers computed by hand."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from model_batches import built, pack, small_config, window

from csfm_jax.config import ObjectiveConfig
from csfm_jax.models.decoder import first_positions
from csfm_jax.objectives import build
from data_pipelines.signals import TEXT, modality_of


@pytest.fixture(scope="module")
def setting():
    """Objective in two parts, jitted, and a batch of two rows (and an empty one)."""
    rng, config = np.random.default_rng(0), small_config()
    rows = [["I", "V3", "RESP"], ["II"]], [["RESP"]], []
    windows = [[window(config, leads, 6, words, rng, keep=0.5) for words, leads in enumerate(row, 3)] for row in rows]
    graphdef, state = built(lambda: build(config, rngs=nnx.Rngs(3)))
    run = jax.jit(lambda state, batch: (lambda m: (m(batch), m.reconstruct(batch)))(nnx.merge(graphdef, state)))
    return config, windows, graphdef, state, run


def by_hand(batch, predicted, config):
    """metric/modality -> (sum, count), token by token."""
    out = {f"{k}/{m}": [0.0, 0] for m in config.tokens.modalities for k in ("mae", "rmse")}
    for row, at in zip(*np.nonzero(batch.target)):
        if batch.channel[row, at] == TEXT:
            continue
        name = modality_of(int(batch.channel[row, at])).name
        length = config.tokens.patch[name]
        error = np.asarray(predicted)[row, at, :length] - batch.patches[row, at, :length]
        for key, value in (("mae", np.abs(error).mean()), ("rmse", np.square(error).mean())):
            out[f"{key}/{name}"][0] += value
            out[f"{key}/{name}"][1] += 1
    return out


def test_loss_is_the_weighted_mean_of_each_modalitys_mean(setting):
    config, windows, graphdef, state, run = setting
    batch = pack(config, windows)
    output, predicted = run(state, batch)
    for key, (total, count) in by_hand(batch, predicted, config).items():
        assert count > 0 and output.counts[key] == count
        np.testing.assert_allclose(output.sums[key], total, rtol=1e-5)
    means = {m: float(output.sums[f"loss/{m}"] / output.counts[f"loss/{m}"]) for m in ("ecg", "resp", "text")}
    assert output.counts["loss/text"] == (batch.target & (batch.channel == TEXT)).sum() == output.sums["tokens/text"]
    expected = (means["ecg"] + means["resp"] + 0.1 * means["text"]) / 2.1
    np.testing.assert_allclose(output.loss, expected, rtol=1e-5)
    assert abs(means["text"] - np.log(50)) < 1.0  # an untrained guess among 50 words
    assert output.counts["tokens/ecg"] == 1 and output.sums["tokens/ecg"] == output.counts["mae/ecg"]


def test_rows_do_not_matter_only_tokens_do(setting):
    """Six rows of which four are empty, or the windows in another order: the same loss."""
    config, windows, _, state, run = setting
    want = run(state, pack(config, windows))[0]
    turned = [[], list(reversed(windows[0])), windows[1]]
    got = run(state, pack(config, turned))[0]
    np.testing.assert_allclose(got.loss, want.loss, rtol=2e-6)


def test_hidden_patches_are_not_used_and_visible_ones_are(setting):
    config, windows, _, state, run = setting
    batch = pack(config, windows)
    patches = batch.patches.copy()
    patches[batch.target] = 7.0
    assert np.array_equal(run(state, batch._replace(patches=patches))[1], run(state, batch)[1])
    patches = batch.patches.copy()
    patches[~batch.target] = np.sin(9 * patches[~batch.target])
    assert np.abs(run(state, batch._replace(patches=patches))[1] - run(state, batch)[1]).max() > 1e-3


def test_a_batch_without_targets_has_loss_zero_and_no_gradient(setting):
    config, windows, graphdef, state, run = setting
    batch = pack(config, windows)
    batch = batch._replace(target=np.zeros_like(batch.target))
    loss, gradient = jax.jit(jax.value_and_grad(lambda s: nnx.merge(graphdef, s)(batch).loss))(state)
    assert loss == 0 and not any(np.asarray(g).any() for g in jax.tree.leaves(gradient))


def test_absent_modalities_do_not_count(setting):
    config, windows, _, state, run = setting
    output, _ = run(state, pack(config, [[window(config, ["RESP"], 6, 0, np.random.default_rng(1), keep=0.5)]]))
    np.testing.assert_allclose(output.loss, output.sums["loss/resp"] / output.counts["loss/resp"], rtol=1e-6)
    assert output.counts["loss/ecg"] == 0 == output.sums["loss/ecg"]


def test_every_parameter_learns(setting):
    config, windows, graphdef, state, _ = setting
    batch = pack(config, windows)
    gradient = jax.jit(jax.grad(lambda s: nnx.merge(graphdef, s)(batch).loss))(state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


def test_normalised_targets(setting):
    config, windows, _, state, _ = setting
    objective = ObjectiveConfig(normalise_target=True)
    changed = dataclasses.replace(config, objective=objective)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: build(changed, rngs=nnx.Rngs(3))))
    run = jax.jit(lambda state, batch: (lambda m: (m(batch), m.reconstruct(batch)))(nnx.merge(graphdef, state)))
    batch = pack(config, windows)
    output, predicted = run(state, batch)
    total = 0.0
    for row, at in zip(*np.nonzero(batch.target & (batch.channel != TEXT))):
        name = modality_of(int(batch.channel[row, at])).name
        true = batch.patches[row, at, : config.tokens.patch[name]]
        error = np.asarray(predicted)[row, at, : len(true)] - true
        total += np.square(error / np.sqrt(true.var() + 1e-6)).mean()
    np.testing.assert_allclose(output.sums["loss/ecg"] + output.sums["loss/resp"], total, rtol=1e-4)
    for key, (value, _) in by_hand(batch, predicted, config).items():  # in the window's units all the same
        np.testing.assert_allclose(output.sums[key], value, rtol=1e-5)


def test_first_positions():
    wanted = np.array([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(first_positions(wanted, 2), [[1, 3], [5, 5]])
    np.testing.assert_array_equal(first_positions(wanted, 4), [[1, 3, 4, 5], [5, 5, 5, 5]])


def test_a_model_without_text():
    config = small_config()
    config = dataclasses.replace(config, tokens=dataclasses.replace(config.tokens, text_length=0))
    batch = pack(config, [[window(config, ["I"], 6, 0, np.random.default_rng(1), keep=0.5)]])
    output = jax.jit(lambda: build(config, rngs=nnx.Rngs(0))(batch))()
    assert np.isfinite(output.loss) and "loss/text" not in output.sums
