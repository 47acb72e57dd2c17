"""Heads of tasks: per window and nothing else, PPA and PMA, LoRA beside stacked kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_batches import built, pack, small_config, window

from csfm_jax.models import heads, lora
from csfm_jax.models.encoder import Encoder
from csfm_jax.tasks.config import HEADS, AdaptationConfig
from data_pipelines.signals import CLS

CONFIG = small_config()
SIZES = CONFIG.encoder


@pytest.fixture(scope="module")
def windows():
    rng = np.random.default_rng(0)
    return [window(CONFIG, leads, steps, 0, rng) for leads, steps in ((["I", "V3"], 4), (["II"], 6), (["RESP"], 3))]


@pytest.fixture(scope="module")
def encoder():
    """What an encoder gives for rows of windows, (Encoded, Layers); and its two parts."""
    graphdef, state = built(lambda: Encoder(SIZES, CONFIG.tokens, rngs=nnx.Rngs(0)))

    @jax.jit
    def both(state, batch):
        model = nnx.merge(graphdef, state)
        return model(batch), model.layers(batch)

    return lambda rows: both(state, pack(CONFIG, rows)), graphdef, state


def head_of(name, outputs=3):
    """A head whose every parameter was moved: queries and gates start at zero, and would hide mistakes."""
    rng = np.random.default_rng(7)
    graphdef, state = built(lambda: heads.build(name, SIZES, outputs, 0.1, rngs=nnx.Rngs(0)))
    moved = jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), state)
    return graphdef, moved


@pytest.mark.parametrize("name", HEADS)
def test_a_window_gets_the_same_whatever_lies_in_its_row(encoder, windows, name):
    graphdef, state = head_of(name)
    layered = name in ("average", "mixture")
    apply = jax.jit(lambda state, read, key: nnx.merge(graphdef, state)(read, 4, key=key))
    score = lambda rows: np.asarray(apply(state, encoder[0](rows)[layered], None))  # noqa: E731
    one, two, three = windows
    together = score([[one, two, three], [two, one], [], [three]])
    assert np.isfinite(together).all() and together.shape == (4, 4, 3)
    np.testing.assert_allclose(together[0, 0], together[1, 1], atol=1e-5)
    np.testing.assert_allclose(together[0, 1], together[1, 0], atol=1e-5)
    np.testing.assert_allclose(together[0, 2], together[3, 0], atol=1e-5)
    assert np.abs(together[0, 0] - together[0, 1]).max() > 1e-2
    # the order of tokens within a window decides nothing
    order = np.r_[0, 1 + np.random.default_rng(1).permutation(len(one.channel) - 1)]
    np.testing.assert_allclose(score([[one.take(order), three], [], [], []])[0, 0], together[0, 0], atol=1e-5)

    read = encoder[0]([[one], [], [two, three], []])[layered]
    gradient = jax.jit(
        jax.grad(lambda s, r: apply(s, r, jax.random.key(0))[0, 0].sum(), argnums=(0, 1), allow_int=True)
    )
    for leaf in jax.tree.leaves(gradient(state, read)):  # finite beside windows and rows that are not there
        assert leaf.dtype == jax.dtypes.float0 or np.isfinite(leaf).all()


def test_attention_is_softmax_over_the_windows_own_tokens(encoder, windows):
    head = nnx.merge(*head_of("attention"))
    read = encoder[0]([windows])[0]
    pooled = np.asarray(jax.jit(lambda read: head.pool(read, 4))(read))
    x = np.asarray(read.tokens[0])
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * np.asarray(head.norm.scale[...]) + np.asarray(head.norm.bias[...])
    keys, values = (np.einsum("vd,dhk->vhk", x, np.asarray(f.kernel[...])) for f in (head.keys, head.values))
    query = np.asarray(head.query[...]).reshape(SIZES.heads, SIZES.head_dim)
    for number in range(3):
        own = np.asarray(read.segment)[0] == number + 1
        scores = np.einsum("vhd,hd->vh", keys[own], query) / np.sqrt(SIZES.head_dim)
        weight = np.exp(scores - scores.max(0))
        expected = np.einsum("vh,vhd->hd", weight / weight.sum(0), values[own]).reshape(-1)
        np.testing.assert_allclose(pooled[0, number], expected, atol=1e-4)
    assert (pooled[0, 3] == 0).all()  # a window that is not there


def test_a_uniform_mixture_is_the_average_and_another_is_not(encoder, windows):
    read = encoder[0]([windows])[1]
    mixture = heads.build("mixture", SIZES, 3, 0.0, rngs=nnx.Rngs(2))
    average = heads.build("average", SIZES, 3, 0.0, rngs=nnx.Rngs(1))
    np.testing.assert_allclose(mixture.weights(read), 1 / SIZES.depth, atol=1e-7)  # as it starts
    np.testing.assert_allclose(mixture.pool(read, 4), average.pool(read, 4), atol=1e-5)
    mixture.last.bias[...] = jnp.asarray([9.0] + [-9.0] * (SIZES.depth - 1))
    np.testing.assert_allclose(mixture.pool(read, 4), average.norm(read.pooled[0]), atol=1e-4)


def test_layers_are_the_means_over_tokens_of_each_block(encoder, windows):
    batch = pack(CONFIG, [windows])
    encoded, layers = encoder[0]([windows])

    @jax.jit
    def blocks(state, batch):
        """Every block's tokens, and the last one's after the final LayerNorm."""
        model = nnx.merge(*[encoder[1], state])
        x, angles, (_, segment, _), _ = model._embed(batch, None)
        every = model.transformer.layers(x, segment, angles, lambda x: x)
        return every, model.transformer.norm(every[-1])

    every, last = map(np.asarray, blocks(encoder[2], batch))
    segment, channel = np.asarray(encoded.segment)[0], np.asarray(encoded.channel)[0]
    np.testing.assert_allclose(last[0, segment > 0], np.asarray(encoded.tokens)[0, segment > 0], atol=1e-5)
    for number in range(3):
        own = (segment == number + 1) & (channel != CLS)
        np.testing.assert_allclose(layers.pooled[:, 0, number], every[:, 0, own].mean(1), atol=1e-5)
    assert layers.pooled.shape == (SIZES.depth, 1, 4, SIZES.width) and (np.asarray(layers.pooled[:, 0, 3]) == 0).all()
    assert np.abs(layers.pooled[0] - layers.embedded).max() > 1e-3


def test_lora_starts_as_the_base_and_merges_into_its_kernels(encoder, windows):
    _, graphdef, state = encoder
    batch, rng = pack(CONFIG, [windows]), np.random.default_rng(3)
    adaptation = AdaptationConfig(task="ptbxl_age", trainable="lora", lora_rank=3, lora_alpha=6.0)
    adapters = lora.Adapters(SIZES, 3, 6.0, rngs=nnx.Rngs(0))
    adapters_def, fresh = nnx.split(adapters)
    tokens = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch).tokens)
    adapted = jax.jit(lambda a, s, batch: nnx.merge(adapters_def, a).adapt(nnx.merge(graphdef, s))(batch).tokens)
    np.testing.assert_allclose(adapted(fresh, state, batch), tokens(state, batch), atol=1e-6)

    learned = jax.tree.map(lambda x: x + jnp.asarray(0.2 * rng.standard_normal(x.shape), x.dtype), fresh)
    found = np.asarray(adapted(learned, state, batch))
    assert np.abs(found - tokens(state, batch)).max() > 1e-2
    params = {"encoder": nnx.to_pure_dict(state), "lora": nnx.to_pure_dict(learned)}
    before = np.array(params["encoder"]["transformer"]["blocks"]["up"]["kernel"])
    whole = lora.encoder_params(params, adaptation)
    np.testing.assert_array_equal(params["encoder"]["transformer"]["blocks"]["up"]["kernel"], before)
    graph, own = nnx.split(nnx.merge(graphdef, state))
    nnx.replace_by_pure_dict(own, jax.tree.map(jnp.asarray, whole))
    np.testing.assert_allclose(tokens(own, batch), found, atol=2e-4)


@pytest.mark.parametrize("depth", [1, 12])
def test_lora_begins_as_wide_whatever_the_number_of_layers(depth):
    """Uniform within 1 / sqrt(inputs), as in Microsoft's code."""
    factors = lora.Factors(depth, 16, {"embed": 400}, {"mlp": 8}, rngs=nnx.Rngs(0))
    a = np.asarray(factors.a[...])
    assert np.abs(a).max() <= 1 / 20 and np.std(a) == pytest.approx(1 / 20 / np.sqrt(3), rel=0.02)
    assert not np.asarray(factors.b[...]).any()
