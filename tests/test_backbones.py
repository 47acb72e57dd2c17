"""Backbones on frame tokens: one interface, windows that do not see each other, absence, sizes, meshes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from frame_batches import FRAMES, PATCH, SIZES, initialised, packed, small, window
from hypothesis import given, settings
from hypothesis import strategies as st

from csfm_jax import sharding
from csfm_jax.config import Config, find, from_dict, load
from csfm_jax.evaluation.study_models import BASELINES
from csfm_jax.models import backbone_config, convolution, flops
from csfm_jax.models import config as model_config
from csfm_jax.models.backbones import build_encoder
from csfm_jax.models.encoder import Encoder
from csfm_jax.models.waveform import Frames
from csfm_jax.training.optimizer import decay_mask
from data_pipelines import windows
from data_pipelines.errors import BadInput
from data_pipelines.rows import empty_batch
from data_pipelines.signals import CHANNEL_ID

_made = {}


def encode(config: Config):
    key = repr(config)
    if key not in _made:
        graphdef, state = initialised(config)
        forward = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch))
        _made[key] = lambda batch: jax.tree.map(np.asarray, forward(state, batch))
    return _made[key]


def embeddings(config, windows, **shape):
    """{window: pooled} and {window: tokens in order} of all windows, packed together."""
    pooled, tokens = {}, {}
    for batch in packed(config, windows, **shape):
        out = encode(config)(batch)
        for row, slot in zip(*np.nonzero(batch.window >= 0)):
            pooled[batch.window[row, slot]] = out.pooled[row, slot]
            tokens[batch.window[row, slot]] = out.tokens[row][out.segment[row] == slot + 1]
        assert not out.pooled[batch.window < 0].any() and not out.tokens[out.segment == 0].any()
    return pooled, tokens


@pytest.mark.parametrize("kind", SIZES)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_packed_window_gives_what_it_gives_alone(kind, seed):
    rng, config = np.random.default_rng(seed), small(kind)
    gaps = [(None, 3), (0, 5), (1, 0)]
    windows = [window(rng, int(rng.integers(1, FRAMES + 1))) for _ in range(3)]
    windows += [window(rng, FRAMES, gaps=gaps), window(rng, 8, ["V1"], gaps=[(None, 7)])]
    pooled, tokens = embeddings(config, windows)
    assert len(pooled) == 5
    for number, one in enumerate(windows):
        alone, alone_tokens = embeddings(config, [one])
        assert np.abs(alone[0]).max() > 1e-3
        np.testing.assert_allclose(pooled[number], alone[0], atol=2e-5)
        np.testing.assert_allclose(tokens[number], alone_tokens[0], atol=2e-5)
        np.testing.assert_allclose(tokens[number][0], pooled[number], atol=1e-6)  # CLS


def test_the_end_of_a_window_is_not_the_room_that_the_model_has():
    """The same window in models of windows of 12 and 24 frames; convolutional ones: test_backbones_torch.py."""
    config, one = small("s4"), window(np.random.default_rng(1), 7)
    longer = dataclasses.replace(config.data.window, seconds=2 * config.data.window.seconds)
    longer = dataclasses.replace(config, data=dataclasses.replace(config.data, window=longer))
    np.testing.assert_allclose(embeddings(longer, [one])[0][0], embeddings(config, [one])[0][0], atol=2e-5)


@pytest.mark.parametrize("stride, length", [(1, 9), (2, 9), (2, 16), (3, 2)])
def test_a_grouped_convolution_has_the_gradients_of_xla(stride, length):
    rng = np.random.default_rng(stride)
    x, kernel = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, length, 12), (5, 3, 8)))

    def gradients(form=None):
        def loss(kernel, x):
            one = convolution.conv(12, 8, 5, stride=stride, groups=4, dtype=jnp.float32, rngs=nnx.Rngs(0))
            one.kernel[...], one.conv_general_dilated = kernel, form or one.conv_general_dilated
            assert one(x).shape == (2, -(-length // stride), 8)
            return jnp.square(one(x)).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(kernel, x)

    for ours, theirs in zip(gradients(), gradients(jax.lax.conv_general_dilated), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_scan_and_convolution_are_one_model():
    rng = np.random.default_rng(2)
    windows = [window(rng, FRAMES, gaps=[(None, 3), (None, 4), (0, 6)]), window(rng, 5), window(rng, 9)]
    by_fft, by_scan = (embeddings(small(kind), windows) for kind in ("s4", "scan"))
    for number in range(3):
        np.testing.assert_allclose(by_scan[0][number], by_fft[0][number], atol=1e-4)
        np.testing.assert_allclose(by_scan[1][number], by_fft[1][number], atol=1e-4)


@pytest.mark.parametrize("kind", ["s4", "scan", "net1d", "xresnet1d"])
def test_hidden_frames_are_absent(kind):
    config, rng = small(kind), np.random.default_rng(3)
    one = window(rng, 10)
    (batch,) = packed(config, [one])
    seen = batch.visible.copy()
    seen[0, :8] = [0, 1, 2, 5, 6, 7, 9, 10]
    seen[0, 8:] = batch.channel.shape[1]
    holes = [(c, x.copy()) for c, x in one]
    poisoned = batch.patches.copy()
    for hidden in (3, 4, 8):
        poisoned[0, hidden] = np.nan
    out = encode(config)(batch._replace(visible=seen, patches=poisoned))
    for _, x in holes:
        for frame in (2, 3, 7):
            x[frame * PATCH : (frame + 1) * PATCH] = np.nan
    # normalisation is of the whole window, so the frames that stay are taken from it
    (with_holes,) = packed(config, [holes])
    kept = with_holes.patches.copy()
    kept[0, :8] = batch.patches[0, seen[0, :8]]
    want = encode(config)(with_holes._replace(patches=kept))
    np.testing.assert_allclose(out.pooled, want.pooled, atol=2e-5)
    assert np.isfinite(out.pooled).all() and np.abs(out.pooled - encode(config)(batch).pooled).max() > 1e-4


def test_a_lead_of_zeros_is_not_an_absent_lead():
    rng = np.random.default_rng(4)
    one = window(rng, FRAMES, ["I", "II"])
    flat = [*one, (CHANNEL_ID["V1"], np.zeros(FRAMES * PATCH, np.float32))]
    for kind in ("s4", "net1d", "xresnet1d"):
        pooled, _ = embeddings(small(kind), [one, flat])
        assert np.abs(pooled[0] - pooled[1]).max() > 1e-4


def test_two_sensors_are_joined_in_time():
    config, rng = small("s4", ("ecg", "ppg")), np.random.default_rng(5)
    both = window(rng, 9, ["I", "PPG"])
    late = [both[0], (both[1][0], np.roll(both[1][1], PATCH))]
    pooled, tokens = embeddings(config, [both, late, both[:1], both[1:]])
    for a in range(4):
        for b in range(a):
            assert np.abs(pooled[a] - pooled[b]).max() > 1e-4
    assert tokens[0].shape == (1 + 18, 8)
    np.testing.assert_allclose(tokens[0][1:10], tokens[0][10:], atol=1e-6)  # the same instants
    np.testing.assert_allclose(embeddings(config, [both])[0][0], pooled[0], atol=2e-5)


@pytest.mark.parametrize("kind", ["s4", "net1d", "norms", "xresnet1d"])
def test_a_window_that_is_too_long_is_nan_never_a_shorter_one(kind):
    rng = np.random.default_rng(6)
    pooled, _ = embeddings(small(kind), [window(rng, FRAMES + 1), window(rng, FRAMES)])
    assert np.isnan(pooled[0]).all() and np.isfinite(pooled[1]).all()
    assert np.isfinite(embeddings(small("scan"), [window(rng, FRAMES + 1)])[0][0]).all()  # rows have no such bound


def test_other_frames_are_refused():
    config = small("s4")
    (batch,) = packed(small("s4", ("ecg", "ppg")), [window(np.random.default_rng(0), 3)], rows=1)
    with pytest.raises(BadInput, match="batch.patches.*frames with their flags"):
        shapes(config)(batch._replace(patches=batch.patches[..., :-1]))


def count(config) -> int:
    return sum(x.size for x in jax.tree.leaves(abstract(config)))


def abstract(config):
    return nnx.state(shapes(config), nnx.Param)


_shapes = {}


def shapes(config):
    """The encoder without its numbers; of ECGFounder's size they take seconds even to imagine."""
    key = repr((config.backbone, Frames.of(config.tokens, 1.0)))
    if key not in _shapes:
        _shapes[key] = nnx.eval_shape(lambda: build_encoder(config, rngs=nnx.Rngs(0)))
    return _shapes[key]


def twelve_leads(name: str, **sizes) -> Config:
    tokens = {"modalities": ["ecg"], "channels": "csfm", "layout": "frame", "text_length": 0}
    data = {"rows": 1, "row_tokens": 101, "row_windows": 1}
    return from_dict({"tokens": tokens, "data": data, "backbone": {"name": name, name: sizes}})


def test_parameter_counts_are_those_published():
    """Without the 12 presence flags, which the originals lack."""
    s4 = count(twelve_leads("s4")) - 12 * 512
    assert round((s4 + 512 * 71 + 71) / 1e6, 1) == 2.2  # Al-Masud et al. 2026, with a head of 71 labels
    # ECGFounder's, layer by layer, without the norms that it does not use
    stages, inputs, expected = [(64, 2), (160, 2), (160, 2), (400, 3), (400, 3), (1024, 4), (1024, 4)], 64, 0
    expected += 16 * 12 * 64 + 64
    for size, blocks in stages:
        for _ in range(blocks):
            expected += (inputs + 1) * size + (16 * 16 + 1) * size + (size + 1) * size
            expected += (size + 1) * (size // 2) + (size // 2 + 1) * size
            inputs = size
    assert count(twelve_leads("net1d")) - 12 * 16 * 64 == expected == 30_598_896
    # xresnet1d50: a stem, and bottlenecks of 64 filters whose first has another input, each layer with its norm
    first = 64 * 64 + 5 * 64 * 64 + 64 * 256 + 64 * 256 + 2 * (64 + 64 + 256 + 256)
    other = 256 * 64 + 5 * 64 * 64 + 64 * 256 + 2 * (64 + 64 + 256)
    stem = 5 * (12 * 32 + 32 * 32 + 32 * 64) + 2 * (32 + 32 + 64)
    assert count(twelve_leads("xresnet1d")) - 5 * 12 * 32 == stem + first + 15 * other


@pytest.mark.parametrize(
    "name, sizes",
    [("s4", {"depth": 1}), ("s4", {"depth": 1, "form": "scan"}), ("net1d", {"blocks": [1] * 7}), ("xresnet1d", {})],
)
def test_flops_are_near_the_compilers(name, sizes):
    """Which counts activations and what becomes of padding too; one layer of S4, so that a scan hides nothing."""
    config = twelve_leads(name, **sizes)
    batch = empty_batch(1, (101, 101, 1), config.tokens)
    graphdef, state = nnx.split(shapes(config))
    lowered = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch)).lower(state, batch)
    assert 0.95 < lowered.cost_analysis()["flops"] / flops.count(config).forward < 1.25
    assert flops.count(config).train == 3 * flops.count(config).forward


@pytest.mark.parametrize("name", BASELINES)
def test_shipped_baselines_can_be_built_and_their_headers_count_right(name):
    config = load(name)
    backbone_config.check(config)
    parameters = count(config) + (backbone_config.width(config) + 1) * 71
    assert f"{parameters:,}" in find(name).read_text()
    row = windows.samples_in(config.data.window.seconds, 250) // config.tokens.patch["ecg"] + 1
    assert config.data.row_tokens == row * config.data.row_windows


@pytest.mark.parametrize("kind", SIZES)
def test_every_parameter_has_a_name_for_every_axis_and_state_spaces_do_not_decay(kind):
    state = abstract(small(kind))
    for variable in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Variable)):
        names = variable.get_metadata()["out_sharding"]
        assert len(names) == len(variable.get_value().shape) and set(names) <= {None, *dict(sharding.RULES)}
    decayed = jax.tree_util.tree_leaves_with_path(decay_mask(nnx.to_pure_dict(state)))
    for path, decays in decayed:
        assert decays == ("kernel" in str(path[-1])) and not (decays and "space" in str(path))


def test_the_transformer_stays_what_it_was():
    config = load("csfm_nano")
    model_config.check(config)
    assert type(nnx.eval_shape(lambda: build_encoder(config, rngs=nnx.Rngs(0)))) is Encoder
    assert backbone_config.width(config) == 128
    for kind, expected in (("s4", 8), ("net1d", 16), ("xresnet1d", 16)):
        assert backbone_config.width(small(kind)) == expected


BAD = [
    ("backbone", dict(name="lstm"), "config.backbone.name"),
    ("backbone", dict(name="s4", net1d={"kernel": 8}), "config.backbone.net1d.kernel.*does not read"),
    ("encoder", dict(width=64), "config.encoder.width.*does not read"),
    ("tokens", dict(layout="channel"), "config.tokens.layout.*frame"),
    ("tokens", dict(text_length=8), "config.tokens.text_length"),
    ("tokens", dict(modalities=("ecg", "resp")), "config.tokens.modalities.*one rate"),
    ("objective", dict(name="reconstruction"), "config.backbone.name.*supervised"),
    ("data", dict(row_windows=60), "config.data.row_windows.*set it to 25"),
    ("data", dict(window={"seconds": 0.05, "minimum_seconds": 0.01}), "config.data.window.seconds.*frame"),
    ("backbone", dict(name="s4", s4={"state": 7}), "s4.state.*even"),
    ("backbone", dict(name="s4", s4={"dropout": 1.0}), "s4.dropout"),
    ("backbone", dict(name="s4", s4={"shortest_step": 0.5}), "s4.shortest_step"),
    ("backbone", dict(name="net1d", net1d={"filters": [64, 32], "blocks": [1, 1]}), "net1d.filters.*decreasing"),
    ("backbone", dict(name="net1d", net1d={"filters": [64, 128]}), "net1d.filters and .blocks"),
    ("backbone", dict(name="net1d", net1d={"group_width": 7}), "net1d.group_width"),
    ("backbone", dict(name="xresnet1d", xresnet1d={"kernel": 4}), "xresnet1d.kernel.*odd"),
    ("backbone", dict(name="xresnet1d", xresnet1d={"norm_groups": 0}), "norm_groups"),
]


@pytest.mark.parametrize("part, fields, message", BAD)
def test_what_cannot_be_built_or_would_not_be_read_is_refused(part, fields, message):
    values = {
        "tokens": {"modalities": ["ecg"], "channels": "all", "layout": "frame", "text_length": 0},
        "objective": {"name": "supervised"},
        "backbone": {"name": "s4"},
    }
    backbone_config.check(from_dict(values))
    changed = values | {part: {**values.get(part, {}), **fields}}
    with pytest.raises(BadInput, match=message):
        backbone_config.check(from_dict(changed))


def test_the_transformer_refuses_frames_and_the_settings_of_others():
    for changes in ({"tokens": {"layout": "frame"}}, {"backbone": {"s4": {"width": 64}}}):
        with pytest.raises(BadInput, match="config.tokens.layout|config.backbone.s4.width"):
            model_config.check(from_dict(changes))
    with pytest.raises(BadInput, match="s4.form"):
        backbone_config.check(
            dataclasses.replace(
                small("scan", ("ecg", "ppg")), objective=from_dict({"objective": {"name": "x"}}).objective
            )
        )


def test_sizes_that_the_mesh_does_not_divide_are_refused():
    class FakeMesh:
        shape = {"replica": 1, "data": 1, "fsdp": 8, "tensor": 1}

    good, bad = ({"data": {"rows": 8}, "backbone": {"name": "s4", "s4": {"width": w}}} for w in (16, 12))
    sharding.check(from_dict(good), FakeMesh)
    with pytest.raises(BadInput, match="config.backbone.s4.width: found 12; expected a multiple of 8"):
        sharding.check(from_dict(bad), FakeMesh)


@pytest.mark.parametrize("kind", ["s4", "norms", "xresnet1d"])
def test_gradients_reach_every_parameter(kind):
    config, rng = small(kind), np.random.default_rng(8)
    (batch,) = packed(config, [window(rng, FRAMES, gaps=[(0, 2)]), window(rng, 6)])
    graphdef, state = initialised(config)

    @jax.jit
    @jax.grad
    def gradient(state):
        out = nnx.merge(graphdef, state)(batch, key=jax.random.key(0))
        return (out.pooled**3).sum() + (out.tokens**2).sum()

    for path, g in jax.tree_util.tree_leaves_with_path(gradient(state)):
        assert np.isfinite(g).all() and np.abs(g).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("kind", ["s4", "scan", "norms", "xresnet1d"])
def test_bfloat16_is_of_activations_alone(kind):
    config = small(kind, compute="bfloat16")
    (batch,) = packed(config, [window(np.random.default_rng(0), 5)])
    graphdef, state = nnx.split(shapes(config))

    def loss(state):
        out = nnx.merge(graphdef, state)(batch)
        return out.pooled.sum(), out

    gradient, out = jax.eval_shape(jax.grad(loss, has_aux=True), state)
    assert {leaf.dtype for leaf in jax.tree.leaves((state, gradient))} == {np.dtype("float32")}
    assert (out.tokens.dtype, out.pooled.dtype) == (jax.numpy.bfloat16, np.float32)
