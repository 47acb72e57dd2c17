"""Attention backends against the definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from csfm_jax.models.attention import BACKENDS, attend, splash


def packed(length, heads=2, head_dim=16, seed=0):
    """q, k, v and segments [2, length]: contiguous windows, then padding; the second row is empty."""
    rng = np.random.default_rng(seed)
    q, k, v = rng.standard_normal((3, 2, length, heads, head_dim)).astype(np.float32)
    ends = np.sort(rng.choice(np.arange(1, length), 4, replace=False))
    segments = np.searchsorted(ends, np.arange(length), side="right") + 1
    segments = np.stack([np.where(segments == 5, 0, segments), np.zeros(length)]).astype(np.int32)
    return jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.asarray(segments)


def by_hand(q, k, v, segments):
    """The formula, query by query, in float64."""
    out = np.zeros(q.shape)
    for b, i, h in np.ndindex(q.shape[:3]):
        if segments[b, i] == 0:
            continue
        keys = np.flatnonzero(segments[b] == segments[b, i])
        logits = np.asarray(k, np.float64)[b, keys, h] @ np.asarray(q, np.float64)[b, i, h] / np.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max())
        out[b, i, h] = weights / weights.sum() @ np.asarray(v, np.float64)[b, keys, h]
    return out


def test_reference_is_the_formula():
    q, k, v, segments = packed(24)
    out = attend(q, k, v, segments, segments, backend="reference")
    np.testing.assert_allclose(out, by_hand(q, k, v, segments), atol=2e-6)
    assert not np.asarray(out)[np.asarray(segments) == 0].any()  # padding gives zeros, the empty row too


@pytest.mark.parametrize("backend", ["dense", "splash"])
@pytest.mark.parametrize("length", [40, 130])  # 130 is padded to two of splash's blocks
def test_backends_agree_with_the_reference(backend, length, monkeypatch):
    monkeypatch.setitem(BACKENDS, "splash", functools.partial(splash.attend, interpret=True))
    q, k, v, segments = packed(length)

    def total(backend, q, k, v):
        out = attend(q, k, v, segments, segments, backend=backend)
        return jnp.sum(jnp.sin(out * 3.0)), out

    run = jax.jit(jax.value_and_grad(total, argnums=(1, 2, 3), has_aux=True), static_argnums=0)
    (_, out), gradients = run(backend, q, k, v)
    (_, expected), expected_gradients = run("reference", q, k, v)
    np.testing.assert_allclose(out, expected, atol=3e-6)
    for got, want in zip(gradients, expected_gradients):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_bfloat16_stays_near_the_reference():
    q, k, v, segments = packed(64)
    out = attend(*(x.astype(jnp.bfloat16) for x in (q, k, v)), segments, segments, backend="dense")
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), by_hand(q, k, v, segments), atol=0.05)


def test_auto_is_the_reference_on_a_cpu():
    q, k, v, segments = packed(16)
    auto, reference = (attend(q, k, v, segments, segments, backend=b) for b in ("auto", "reference"))
    np.testing.assert_array_equal(auto, reference)
