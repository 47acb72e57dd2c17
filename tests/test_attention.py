"""Attention backends against the definition."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csfm_jax.models.attention import BACKENDS, SHORT, SHORT_GPU, attend, check, choose, chosen, splash, triton
from data_pipelines.errors import BadInput


@pytest.fixture
def interpreted(monkeypatch):
    """The kernels of other platforms run here, slowly; for cuDNN's, XLA computes what it is asked for."""
    for name, kernel in (("splash", splash), ("triton", triton)):
        monkeypatch.setitem(BACKENDS, name, functools.partial(kernel.attend, interpret=True))
    real = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *x, implementation=None, **more: real(*x, **more))


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


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(backend, q, k, v, segments):
    """The output and the gradients of q, k and v, for a cotangent that no query shares with another."""

    def total(q, k, v):
        out = attend(q, k, v, segments, backend=backend)
        return jnp.sum(jnp.sin(out.astype(jnp.float32) * 3.0)), out

    (_, out), gradients = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return out, *gradients


def assert_agree(got, expected, tolerance):
    """`tolerance` is a share of each array's largest value, or of 0.1: a window of one token has a gradient of 0."""
    for one, want in zip(got, expected, strict=True):
        one, want = np.asarray(one, np.float32), np.asarray(want, np.float32)
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, want, rtol=0, atol=tolerance * max(np.abs(want).max(), 0.1))


def test_reference_is_the_formula():
    q, k, v, segments = packed(24)
    out = attend(q, k, v, segments, backend="reference")
    np.testing.assert_allclose(out, by_hand(q, k, v, segments), atol=2e-6)
    assert not np.asarray(out)[np.asarray(segments) == 0].any()  # padding gives zeros, the empty row too


@pytest.mark.parametrize("backend", ["dense", "blocks", "splash", "triton", "cudnn"])
# 129 is padded to two of splash's blocks, to three of triton's; of cudnn it is padded, too, and so are the heads
@pytest.mark.parametrize("length, head_dim", [(40, 16), (129, 12)])
def test_backends_agree_with_the_reference(backend, length, head_dim, interpreted):
    case = packed(length, head_dim=head_dim)
    assert_agree(with_gradients(backend, *case), with_gradients("reference", *case), 1e-5)


# Windows of one token, of one tile's size and one more, of several tiles; tokens of absent channels at the end.
LENGTHS = st.lists(st.sampled_from([1, 2, 5, 31, 32, 33, 75, 80, 81, 128, 129, 250]), max_size=30)


@settings(max_examples=60, deadline=None)  # one compilation, hence the fixed shape
@given(rows=st.lists(LENGTHS, min_size=3, max_size=3), gap=st.booleans(), seed=st.integers(0, 99))
def test_blocks_agree_with_the_reference_whatever_the_windows(rows, gap, seed):
    rng, length = np.random.default_rng(seed), 300
    segments = np.zeros((3, length), np.int32)
    for row, windows in zip(segments, rows):
        at = 0
        for number, size in enumerate(windows, 1):
            row[at : at + size] = number
            at += size + 3 * gap  # no plan leaves gaps between windows, but they would do no harm
    q, k, v = (jnp.asarray(x) for x in rng.standard_normal((3, 3, length, 2, 8)).astype(np.float32))
    segments = jnp.asarray(segments)
    assert_agree(with_gradients("blocks", q, k, v, segments), with_gradients("reference", q, k, v, segments), 1e-5)


@pytest.mark.parametrize("head_dim", [8, 24, 64])  # two of them are padded
def test_triton_agrees_with_the_reference_whatever_the_windows(head_dim, interpreted):
    """Random windows with gaps in an odd row, a row of one window, an empty row; padding holds large numbers."""
    rng, length = np.random.default_rng(head_dim), 97
    for longest in (2, 20, 90):
        segments = np.zeros((3, length), np.int32)
        at = 0
        for number in range(1, length):
            size = rng.integers(1, longest + 1)
            segments[0, at : at + size] = number
            at += size + rng.integers(0, 3)
        segments[1] = 7
        case = rng.standard_normal((3, 3, length, 2, head_dim)).astype(np.float32)
        case[:, segments == 0] *= 100
        q, k, v, segments = (jnp.asarray(x) for x in (*case, segments))
        # `assert_agree` measures by the largest value: the padding's own is 0
        got, want = with_gradients("triton", q, k, v, segments), with_gradients("reference", q, k, v, segments)
        assert_agree(got, want, 1e-5)
        assert not any(np.asarray(x)[np.asarray(segments) == 0].any() for x in got)


def test_a_packed_window_is_the_window_alone():
    rng = np.random.default_rng(0)
    lengths = [20, 150, 7, 90]
    segments = np.zeros((3, 300), np.int32)
    segments[0, :267] = np.repeat([1, 2, 3, 4], lengths)
    for row, number in ((1, 2), (2, 4)):
        segments[row, : lengths[number - 1]] = 1
    case = rng.standard_normal((3, 3, 300, 2, 8)).astype(np.float32)
    for row, number in ((1, 2), (2, 4)):
        case[:, row, : lengths[number - 1]] = case[:, 0, segments[0] == number]
    got = with_gradients("blocks", *(jnp.asarray(x) for x in case), jnp.asarray(segments))
    for row, number in ((1, 2), (2, 4)):
        alone = [x[row, : lengths[number - 1]] for x in got]
        assert_agree([x[0, segments[0] == number] for x in got], alone, 1e-5)


def test_bfloat16_stays_near_the_reference(interpreted):
    *case, segments = packed(64)
    rounded = [x.astype(jnp.bfloat16) for x in case]
    # blocks compute in float32 and round at the end
    for backend, tolerance in (("dense", 0.03), ("blocks", 0.01), ("triton", 0.03), ("cudnn", 0.03)):
        got = with_gradients(backend, *rounded, segments)
        assert all(x.dtype == jnp.bfloat16 for x in got)
        assert_agree(got, with_gradients("reference", *(x.astype(jnp.float32) for x in rounded), segments), tolerance)


def largest_array(backend, length):
    """Elements of the largest array in the compiled program of output and gradients, for one row of one window."""
    like = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32)
    text = with_gradients.lower(backend, like, like, like, segments).compile().as_text()
    shapes = re.findall(r"\b(?:f32|bf16|s32|pred|u8)\[([\d,]+)\]", text)
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


def test_blocks_never_make_the_matrix_of_all_pairs():
    length = 2048
    assert largest_array("blocks", length) == (length + 128) * 8  # a padded argument
    assert largest_array("reference", length) >= length**2


def test_auto_on_a_cpu(monkeypatch):
    called = []
    for name in BACKENDS:
        monkeypatch.setitem(BACKENDS, name, lambda q, *_, name=name: called.append(name) or q)
    for length in (SHORT, SHORT + 1):
        q, k, v, segments = packed(length, heads=1, head_dim=4)
        attend(q, k, v, segments)
    assert called == ["reference", "blocks"]


def test_auto_elsewhere(monkeypatch):
    assert [choose("gpu", keys) for keys in (SHORT_GPU, SHORT_GPU + 1)] == ["dense", "triton"]
    assert [choose("unknown", keys) for keys in (SHORT_GPU, SHORT_GPU + 1)] == ["dense", "blocks"]
    assert choose("tpu", 8) == "splash"
    # NVIDIA's Turing, Ampere, Blackwell; one of AMD's
    for capability, backend in (("7.5", "blocks"), ("8.0", "triton"), ("12.0", "triton"), ("gfx942", "triton")):
        monkeypatch.setattr(jax, "devices", lambda found=capability: [SimpleNamespace(compute_capability=found)])
        assert choose("gpu", 2048) == backend


def test_a_backend_that_was_named_computes_or_is_refused(monkeypatch):
    for backend in ("splash", "triton"):
        with pytest.raises(BadInput, match=f"config.encoder.attention: found '{backend}' on cpu; expected a .PU.*auto"):
            check(backend)
    for backend in ("auto", "reference", "dense", "blocks"):
        check(backend)
    q = jnp.zeros((1, SHORT_GPU + 1, 1, 8))
    with pytest.raises(ValueError, match="[Ii]nterpret mode"):  # and where nobody has asked: no other one in its place
        jax.jit(functools.partial(attend, backend="triton"))(q, q, q, jnp.ones(q.shape[:2], jnp.int32))
    for platform, capability, right in (("gpu", "8.0", "triton"), ("gpu", "7.5", None), ("tpu", "", "splash")):
        device = SimpleNamespace(compute_capability=capability, device_kind="made up")
        monkeypatch.setattr(jax, "devices", lambda found=device: [found])
        monkeypatch.setattr(jax, "default_backend", lambda found=platform: found)
        assert chosen("auto", SHORT_GPU + 1) == (right or "blocks")
        for backend in ("splash", "triton"):
            if backend == right:
                check(backend)
            else:
                with pytest.raises(BadInput, match=f"'{backend}' on made up"):
                    check(backend)


def float32_arrays(jaxpr):
    """The shapes of all float32 arrays of a program and of the programs within: loops, calls, kernels."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars if getattr(v.aval, "dtype", None) == jnp.float32)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from float32_arrays(inner)


@pytest.mark.parametrize("length, all_pairs", [(2048, False), (SHORT_GPU, True)])
@pytest.mark.parametrize("capability", ["8.0", "7.5"])  # with a kernel and without
def test_on_a_gpu_long_rows_never_make_the_matrix_of_all_pairs(length, all_pairs, capability, monkeypatch):
    monkeypatch.setattr(triton, "available", lambda: capability == "8.0")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    like = jax.ShapeDtypeStruct((1, length, 1, 16), jnp.float32)
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32)
    # not the compiled function itself: it would remember what "auto" stood for
    program = jax.make_jaxpr(functools.partial(with_gradients.__wrapped__, "auto"))(like, like, like, segments)
    assert ("pallas_call" in str(program)) == (not all_pairs and capability == "8.0")
    assert (max(map(np.prod, float32_arrays(program.jaxpr))) >= length**2) == all_pairs


def lowered_for_a_gpu(backend, shape, dtype) -> str:
    """The program of output and gradients as far as it goes without a GPU: nobody compiles the kernels here."""
    like, segments = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape[:2], jnp.int32)
    function = jax.jit(functools.partial(with_gradients.__wrapped__, backend))
    return function.trace(like, like, like, segments).lower(lowering_platforms=("cuda",)).as_text()


# rows, tokens (visible ones, all), heads: the decoder of all, the encoders of Tiny, Base, Large; and what is padded
GPU_SHAPES = [(2, 2048, 4, 64), (2, 640, 8, 64), (2, 640, 12, 64), (2, 640, 24, 64), (2, 701, 4, 20)]


@pytest.mark.parametrize("shape", GPU_SHAPES)
def test_triton_is_lowered_for_a_gpu(shape, pretended_gpu):
    for dtype in ("float32", "bfloat16"):
        assert lowered_for_a_gpu("triton", shape, dtype).count("__gpu$xla.gpu.triton") == 3


@pytest.mark.parametrize("shape", GPU_SHAPES)
def test_cudnn_is_lowered_for_a_gpu(shape, pretended_gpu):
    text = lowered_for_a_gpu("cudnn", shape, "bfloat16")
    kernels = re.findall(r"custom_call @(__cudnn[$\w]+)", text)
    assert kernels == ["__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"]
    length = shape[1] + shape[1] % 2
    assert f"tensor<2x1x{length}x{length}xbf16>" in text  # the mask: one for all heads
    assert f"{length}x{length}xf32" not in text


EIGHT = """
import functools, json, jax, numpy as np
from flax import nnx
from csfm_jax import sharding
from csfm_jax.config import MeshConfig
from csfm_jax.models.attention import BACKENDS, triton
from csfm_jax.models.transformer import Sizes, Transformer
from test_attention import with_gradients

def share(got, want):
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want))]
    return max(float(abs(a - b).max() / (abs(b).max() + 1e-3)) for a, b in pairs)

def transformer(attention, remat):
    sizes = Sizes(16, 2, 2, 8, 24, 0.0, remat, "float32", attention)
    make = lambda: Transformer(sizes, rngs=nnx.Rngs(0))
    graphdef, _ = nnx.split(nnx.eval_shape(make))
    def step(state, x, segments):
        # of one sign: a sum that cancels would be mostly its own rounding
        weights = (segments > 0)[..., None] * (1 + jax.numpy.cos(x))
        total = lambda s: (nnx.merge(graphdef, s)(x, segments) ** 2 * weights).sum()
        return jax.value_and_grad(total)(state)
    return make, jax.jit(step)

rng = np.random.default_rng(0)
# Rows of one shape but of very different work: each device's loop has a length of its own.
segments = np.stack([np.arange(60) // size + 1 for size in (1, 7, 25, 60)] + [np.zeros(60)] * 4).astype(np.int32)
case = (*rng.standard_normal((3, 8, 60, 2, 8)).astype(np.float32), segments)
x = rng.standard_normal((8, 60, 16)).astype(np.float32)
make, step = transformer("reference", "none")
state = jax.jit(lambda: nnx.state(make()))()
want, want_step = with_gradients("reference", *case), step(state, x, segments)
mesh = sharding.make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2))
jax.clear_caches()
with sharding.use(mesh):
    place = lambda x: jax.device_put(x, sharding.batch_sharding(mesh))
    run = with_gradients.lower("blocks", *map(place, case)).compile()
    got = run(*map(place, case))
    BACKENDS["triton"] = functools.partial(triton.attend, interpret=True)
    kernel = with_gradients.lower("triton", *map(place, case)).compile()
    got_kernel = kernel(*map(place, case))
    # As in training: in a scan over layers, made again in the backward pass.
    make, step = transformer("blocks", "full")
    state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, nnx.get_abstract_model(make, mesh)[1]))
    got_step = step(state, place(x), place(segments))
text = run.as_text() + kernel.as_text()
print(json.dumps(dict(
    attention=share(got, want), kernel=share(got_kernel, want), step=share(got_step, want_step),
    gathered=sum(f" {name}(" in text for name in ("all-gather", "all-to-all", "collective-permute")),
)))
"""


def test_under_a_mesh_every_device_loops_over_its_own_rows_and_heads():
    folder = Path(__file__).parent
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    paths = os.pathsep.join([str(folder), str(folder.parent)])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", EIGHT], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert max(result["attention"], result["kernel"], result["step"]) < 1e-5, result
    assert result["gathered"] == 0, result
