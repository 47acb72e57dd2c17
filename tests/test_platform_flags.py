"""Flags that jobs are started with: the pinned compilers know each, and each has a reason."""

import importlib.util
import os
import shlex
import subprocess
import sys

import pytest
from launch_jobs import job

from csfm_jax import launching, platform_flags

ALL = [flag for flags in platform_flags.PLATFORMS.values() for flag in flags]
CPU = "import jax; jax.devices()"
TPU = "from jax.experimental import topologies; topologies.get_topology_desc('v5e:2x2', 'tpu')"


def started(program: str, **environment) -> subprocess.CompletedProcess:
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    environment = os.environ | quiet | environment
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("flags, code", [(" ".join(f.text for f in ALL if f.variable == "XLA_FLAGS"), 0), ("", 1)])
def test_xla_knows_the_flags_of_gpus(flags, code):
    done = started(CPU, XLA_FLAGS=flags or "--xla_gpu_enable_something=true")
    assert (done.returncode != 0) == bool(code), done.stderr[-500:]


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (the [tpu] extra)")
@pytest.mark.parametrize("more, known", [("", True), (" --xla_tpu_enable_something=true", False)])
def test_libtpu_knows_the_flags_of_tpus(more, known):
    flags = platform_flags.environment("tpu", split=True, slices=2)["LIBTPU_INIT_ARGS"]
    assert flags.count("--") == len(platform_flags.TPU)
    done = started(TPU, LIBTPU_INIT_ARGS=flags + more)
    assert ("Unknown command line flag" not in done.stderr + done.stdout) == known, done.stderr[-500:]
    assert (done.returncode == 0) == known


def test_each_has_its_reason_and_stands_once():
    assert len({flag.text for flag in ALL}) == len(ALL)
    for flag in ALL:
        assert len(flag.why) > 60 and flag.when in ("always", "split", "slices")


def test_what_is_set_follows_the_mesh_and_the_slices():
    alone, split = (platform_flags.environment("tpu", split=s, slices=1)["LIBTPU_INIT_ARGS"] for s in (False, True))
    assert "windowed_einsum" not in alone and "windowed_einsum" in split and "data_parallel" not in split
    assert "pipelined_all_gather" not in platform_flags.environment("gpu", split=False, slices=1)["XLA_FLAGS"]
    assert platform_flags.environment("cpu", split=True, slices=1) == {}


def test_jobs_set_them_for_the_container_and_for_the_shell(tmp_path):
    files = launching.render(job("gke"))  # two slices, fsdp=-1
    expected = platform_flags.environment("tpu", split=True, slices=2)["LIBTPU_INIT_ARGS"]
    assert f"ENV LIBTPU_INIT_ARGS={shlex.quote(expected)}\n" in files["Dockerfile"]
    assert "XLA_FLAGS" not in files["Dockerfile"]
    expected = platform_flags.environment("gpu", split=False, slices=1)
    script = launching.render(job("slurm"))["train.sbatch"]
    lines = "\n".join(line for line in script.splitlines() if line.startswith("export XLA"))
    shows = f'{lines}\nprintf "%s|%s" "$XLA_FLAGS" "$XLA_PYTHON_CLIENT_MEM_FRACTION"'
    for own, memory in (({}, "0.9"), ({"XLA_FLAGS": "--mine=1", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}, "0.5")):
        plain = {name: value for name, value in os.environ.items() if not name.startswith("XLA")}
        done = subprocess.run(["bash", "-uc", shows], env=plain | own, capture_output=True, text=True, check=True)
        flags, _, found = done.stdout.partition("|")
        assert flags == f"{expected['XLA_FLAGS']} {own.get('XLA_FLAGS', '')}" and found == memory
    assert "XLA_" not in launching.render(job("slurm_cpus"))["train.sbatch"]
