"""Shared fixtures: the real recordings, read in place."""

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of what the tests do; how well XLA optimises is no test's matter, and those of `csfm plan`, whose
# matter it is, say so.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# The way of XLA for CPU before its fusion emitters compiles in less than half the time; later versions have it no more.
if version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")

# Many tests compile the same programs, some in processes of their own: each is compiled once in a session. The first
# process to come here (pytest itself, before it starts workers) makes the folder, and takes it away.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.mkdtemp(prefix="csfm-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)

# Files go to workers whole, in the order of their collection: those that take minutes first, so that no worker is left
# with one of them when the others are done.
LONGEST = ("train", "planning", "step", "storage", "export_task", "finetune", "remote_checkpoint", "study", "export",
           "tasks")  # fmt: skip


def pytest_xdist_auto_num_workers(config) -> int:
    """One more than there are cores: some tests wait, for processes of their own or for a service that is away.

    With two more, collecting and fixtures once more cost what was won.
    """
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items):
    rank = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))  # stable: the others stay as they were


@pytest.fixture
def pretended_gpu(monkeypatch):
    """What JAX asks of a GPU as it lowers kernels for one, answered where there is none."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    if find_spec("jax._src.pallas.triton.gpu_info"):  # since JAX 0.12
        monkeypatch.setattr("jax._src.pallas.triton.gpu_info.get_device_kind", lambda: "NVIDIA H100 80GB HBM3")


SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real recordings beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real recordings (../shared/data) are not beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_stores(tmp_path_factory) -> Path:
    """One store of 24 simulated subjects (12 leads; one lead, PPG and respiration; PPG alone), with reports."""
    from data_pipelines.datasets import open_sources
    from data_pipelines.prepare import prepare

    folder = tmp_path_factory.mktemp("stores")
    for source in open_sources("simulated:subjects=24,seed=0"):
        prepare(source, folder / source.name, keep_reports=True)
    return folder
