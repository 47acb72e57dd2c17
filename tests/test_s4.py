"""State spaces: the convolution and the recurrence agree, with each other, with the textbook and across packings."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from model_batches import built

from csfm_jax.models.backbone_config import S4Config
from csfm_jax.models.s4 import S4, Packing, StateSpace

convolve, recur = jax.jit(StateSpace.convolve), jax.jit(StateSpace.recur)
SMALL = S4Config(width=6, depth=2, state=8, dropout=0.3)


def space(**changes):
    graphdef, state = built(lambda: StateSpace(dataclasses.replace(SMALL, **changes), rngs=nnx.Rngs(3)))
    return nnx.merge(graphdef, state)


def steps_of(*windows):
    """`Packing.steps` of windows given as the positions of their samples."""
    return np.concatenate([np.diff(w, prepend=w[0]) for w in windows])[None].astype(np.int32)


def test_the_two_forms_agree_over_5000_samples():
    one = space()
    u = np.random.default_rng(0).standard_normal((1, 5000, 6)).astype(np.float32)
    by_fft, by_scan = convolve(one, u), recur(one, u, steps_of(np.arange(5000)))
    assert 0.5 < float(jnp.std(by_scan)) < 50
    np.testing.assert_allclose(by_fft, by_scan, atol=1e-4)


def test_both_are_the_recursion_of_the_textbook():
    """x_t = exp(A dt) x_(t-1) + (exp(A dt) - 1) / A u_t and y = 2 Re(C x) + D u, in float64, sample by sample."""
    one = space(bidirectional=True)
    u = np.random.default_rng(1).standard_normal((60, 6)).astype(np.float32)
    a = -np.exp(np.float64(one.log_decay[...])) + 1j * np.float64(one.frequency[...])
    rate = np.exp(a * np.exp(np.float64(one.log_step[...]))[:, None])
    ahead, behind = (np.float64(c[0]) + 1j * np.float64(c[1]) for c in (one.out[1], one.out[0]))

    def run(u, c, read_before):
        x, y = np.zeros(a.shape, complex), []
        for now in u:
            if read_before:
                y.append(2 * (c * x).real.sum(-1))
            x = rate * x + (rate - 1) / a * now[:, None]
            if not read_before:
                y.append(2 * (c * x).real.sum(-1))
        return np.array(y)

    expected = run(u, behind, False) + run(u[::-1], ahead, True)[::-1] + np.float64(one.skip[...]) * u
    np.testing.assert_allclose(convolve(one, u[None])[0], expected, atol=1e-4)
    np.testing.assert_allclose(recur(one, u[None], steps_of(np.arange(60)))[0], expected, atol=1e-4)


def test_causal_means_that_the_future_changes_nothing():
    u = np.random.default_rng(2).standard_normal((1, 60, 6)).astype(np.float32)
    changed = u.copy()
    changed[:, 40:] += 1.0
    for one, bidirectional in ((space(), True), (space(bidirectional=False), False)):
        for run in (partial(convolve, one), partial(recur, one, steps_BL=steps_of(np.arange(60)))):
            moved = np.abs(run(changed) - run(u)).max(axis=(0, 2))
            assert moved[40:].min() > 1e-3
            assert (moved[:40].max() > 1e-3) == bidirectional


def test_the_recurrence_starts_anew_with_each_window_and_gaps_take_their_time():
    """Windows of one row, against each of them alone on a time axis of its own, by convolution."""
    one, rng = space(), np.random.default_rng(3)
    u = rng.standard_normal((1, 60, 6)).astype(np.float32)
    gappy = np.delete(np.arange(30), np.s_[9:19])  # 20 samples with a gap of 10
    windows = (np.arange(20), gappy, np.arange(20))
    packed = recur(one, u, steps_of(*windows))
    for number, positions in enumerate(windows):
        mine = slice(20 * number, 20 * (number + 1))
        alone = np.zeros_like(u)
        alone[:, positions] = u[:, mine]
        np.testing.assert_allclose(packed[:, mine], convolve(one, alone)[:, positions], atol=1e-4)


def test_dropout_is_of_whole_channels_of_a_window_and_the_same_in_both_forms():
    graphdef, state = built(lambda: S4(SMALL, 4, jnp.float32, rngs=nnx.Rngs(0)))
    net = nnx.merge(graphdef, state)
    windows = jax.jit(lambda x, key: net(x, np.ones(x.shape[:2], bool), key=key)[0])
    x, key = np.random.default_rng(4).standard_normal((4, 20, 4)).astype(np.float32), jax.random.key(5)
    alone = windows(x, key)  # two rows of two windows
    segment = np.tile(np.repeat([1, 2], 20), (2, 1)).astype(np.int32)
    packing = Packing(np.tile(steps_of(np.arange(20), np.arange(20)), (2, 1)), segment, 2)
    rows = jax.jit(lambda x, key: net(x, np.ones(x.shape[:2], bool), packing=packing, key=key)[0])
    np.testing.assert_allclose(rows(x.reshape(2, 40, 4), key).reshape(4, 20, 6), alone, atol=1e-4)
    assert np.abs(alone - windows(x, None)).max() > 0.1
    assert np.abs(alone[0] - windows(x[[0, 0, 0, 0]], key)[1]).max() > 0.1


def test_states_are_float32_where_activations_are_bfloat16():
    net = nnx.eval_shape(lambda: S4(SMALL, 4, jnp.bfloat16, rngs=nnx.Rngs(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(net))} == {np.dtype("float32")}
    run = jax.make_jaxpr(lambda net, x: net(x, jnp.ones(x.shape[:2], bool)))
    traced = str(run(net, jax.ShapeDtypeStruct((1, 50, 4), jnp.float32)))
    assert "bf16[1,50,6]" in traced and "c64[1,6,51] = fft" in traced
