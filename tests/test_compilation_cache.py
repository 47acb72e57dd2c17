"""`csfm plan --fill-cache`: the run that follows compiles nothing, and the cache holds no pickle."""

import importlib.util
import os
import subprocess
import sys

import pytest
import tiny

from csfm_jax import cli

OFTEN = {"steps": 2, "log_every": 1, "eval_every": 2, "eval_batches": 1}
CONFIG = [f"--config={tiny.__file__}", "--config.optimizer.warmup_steps=1"]
CONFIG += [f"--config.training.{name}={number}" for name, number in OFTEN.items()]


def csfm(*words: str, **environment: str) -> subprocess.CompletedProcess:
    quick = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    done = subprocess.run(
        [sys.executable, "-m", "csfm_jax.cli", *words],
        env=os.environ | quick | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_a_run_starts_with_what_plan_compiled(tiny_stores, tmp_path):
    cache = tmp_path / "compiled"
    done = csfm("plan", *CONFIG, "--topology=here", f"--fill-cache={cache}")
    assert "step (" in done.stdout and "evaluate (" in done.stdout and "build (" in done.stdout
    entries = list(cache.glob("jit_*-cache"))
    assert len(entries) >= 3
    for path in entries:
        assert not path.read_bytes().startswith(b"\x80")  # what a pickle of protocol 2 or later begins with
    done = csfm(
        "train", *CONFIG, f"--config.data.stores={tiny_stores}", f"--workdir={tmp_path / 'run'}",
        JAX_COMPILATION_CACHE_DIR=str(cache), JAX_DEBUG_LOG_MODULES="jax._src.compiler",
    )  # fmt: skip
    for name in ("step", "evaluate", "build"):
        assert f"Persistent compilation cache hit for 'jit_{name}'" in done.stderr, name


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (the [tpu] extra)")
def test_what_does_not_fit_is_refused_before_it_is_compiled(tmp_path, capsys):
    words = ["plan", *CONFIG, f"--fill-cache={tmp_path / 'compiled'}"]
    assert cli.main([*words, "--topology=v5e:2x2"]) == 2
    assert "config.data.rows: found 2; expected a multiple of 4" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.main([*words[:-1], "--topology=here", f"--fill-cache={tmp_path / 'file' / 'x'}"]) == 2
    assert "--fill-cache" in capsys.readouterr().err
