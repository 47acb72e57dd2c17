"""The benchmark of the training step: it needs few packages, has the shipped sizes, and times nothing that is wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import accelerator
from csfm_jax import config as configs
from csfm_jax import sharding
from csfm_jax.models import attention
from csfm_jax.training.optimizer import learning_rate, make_optimizer
from csfm_jax.training.state import blueprint
from csfm_jax.training.step import make_train_step

ROOT = Path(__file__).resolve().parents[1]
# What is no part of jax, flax, optax and numpy, or of what these need themselves.
BLOCKED = ("grain", "wfdb", "ml_collections", "tokenizers", "sklearn", "pyarrow", "pandas", "array_record", "tqdm")
PROGRAM = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocked())
from benchmarks.accelerator import main
sys.exit(main(sys.argv[1:]))
"""


def test_it_runs_whole_with_jax_flax_optax_and_numpy_alone(tmp_path):
    words = ["--sizes=nano", "--attention=dense", "--rows=1", "--row-tokens=64", "--steps=1", "--matmul=64"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words, f"--output={tmp_path / 'figures.json'}"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = {f["name"]: f["value"] for f in json.loads((tmp_path / "figures.json").read_text())}
    assert figures["nano, dense: attention's error"] < accelerator.WRONG
    for name in ("bfloat16 product, a device", *(f"nano, dense: {what}" for what in ("step", "tokens", "MFU"))):
        assert figures[name] > 0
    assert all(name in done.stdout for name in figures)


@pytest.mark.parametrize("size", accelerator.SIZES)
def test_sizes_are_those_of_the_shipped_configs(size):
    shipped, measured = configs.load(f"csfm_{size}"), accelerator.config_of(size, 8, 2048, "dense")
    for part in ("encoder", "decoder"):
        for name in ("width", "depth", "heads", "head_dim", "mlp"):
            assert getattr(getattr(measured, part), name) == getattr(getattr(shipped, part), name), (part, name)
    assert measured.encoder.remat == shipped.encoder.remat


@pytest.mark.parametrize("row_tokens", [64, 2048])
def test_rows_are_full_and_lawful(row_tokens):
    config = accelerator.config_of("nano", 3, row_tokens, "dense")
    batch = accelerator.packed_rows(config)
    present = batch.channel > 0
    assert present.mean() > 0.9 and (present == (batch.segment > 0)).all()
    for row in range(3):
        seen = batch.visible[row][batch.visible[row] < row_tokens]
        assert (np.diff(seen) > 0).all() and present[row, seen].all() and not batch.target[row, seen].any()
        assert len(seen) + batch.target[row].sum() == present[row].sum()
        assert 0.2 < len(seen) / present[row].sum() < 0.45
        assert (np.diff(batch.segment[row][present[row]]) >= 0).all()
        assert (batch.window[row] >= 0).sum() == batch.segment[row].max()


def test_what_is_wrong_is_told_and_not_timed(monkeypatch, capsys):
    def no_windows(q, k, v, segments):  # attends across the row's windows
        return attention.reference.attend(q, k, v, jnp.minimum(segments, 1))

    monkeypatch.setitem(attention.BACKENDS, "dense", no_windows)
    monkeypatch.setattr(accelerator, "step_time", lambda *_: pytest.fail("timed"))
    words = ["--sizes=nano", "--attention=dense", "--rows=2", "--row-tokens=64", "--steps=1", "--matmul=64"]
    assert accelerator.main(words) == 1
    assert "attention's error" in (said := capsys.readouterr().out) and "MFU" not in said


def test_what_fails_is_told_and_the_rest_is_measured(monkeypatch, capsys, tmp_path):
    """The next machine with a GPU may be long in coming."""

    def no_kernel(*_):
        raise NotImplementedError("no lowering of this\nand what else a compiler says")

    monkeypatch.setitem(attention.BACKENDS, "triton", no_kernel)
    monkeypatch.setattr(accelerator, "step_time", lambda *_: {"seconds": 1.0, "loss": 1.0, "bytes": 0, "tokens": 1})
    words = ["--attention=triton,dense", "--rows=2", "--row-tokens=64", "--matmul=64"]
    assert accelerator.main(["--sizes=nano,tiny", *words, f"--output={tmp_path / 'figures.json'}"]) == 1
    said, stack = capsys.readouterr()
    told = "NotImplementedError: no lowering of this"
    notes = {f["name"]: f["note"] for f in json.loads((tmp_path / "figures.json").read_text())}
    assert notes["nano, triton: failed"] == notes["tiny, triton: failed"] == told
    assert said.count(told) == 2 and "what else" not in said and stack.count("in no_kernel") == 2
    assert "nano, dense: MFU" in notes and "tiny, dense: MFU" in notes and "nano, triton: MFU" not in notes


@pytest.mark.parametrize(
    "message, what",
    [
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2306867200 bytes.", "does not fit"),
        ("RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 131072, available: 101376", "failed"),
        ("INTERNAL: ptxas exited with non-zero error code", "failed"),
    ],
)
def test_the_memory_of_a_device_is_not_that_of_a_multiprocessor(message, what):
    assert accelerator.told(RuntimeError(message))[0] == what


@pytest.mark.parametrize("backend, kernels", [("triton", 6), ("cudnn", 4)])  # of the encoder's and the decoder's blocks
def test_the_step_is_lowered_for_a_gpu(backend, kernels, pretended_gpu):
    """Kernels under a mesh, within the scan over blocks, and their gradients; nobody compiles them here."""
    config = accelerator.config_of("nano", 2, 2048, backend)
    optimizer, mesh = make_optimizer(config.optimizer, 1), sharding.make_mesh(config.mesh)
    plan = blueprint(config, optimizer, mesh)
    step = make_train_step(plan, optimizer, learning_rate(config.optimizer, 1), config)
    with sharding.use(mesh):
        text = step.trace(plan.abstract, accelerator.packed_rows(config)).lower(lowering_platforms=("cuda",)).as_text()
    assert len(re.findall(r"custom_call @__(?:gpu\$xla\.gpu\.triton|cudnn\$fmha)", text)) == kernels
