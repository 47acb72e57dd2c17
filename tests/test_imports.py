"""No module of data_pipelines loads JAX: its workers must start fast and leave the accelerators alone."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys
import data_pipelines
names = [m.name for m in pkgutil.walk_packages(data_pipelines.__path__, "data_pipelines.")]
for name in names:
    importlib.import_module(name)
loaded = {name.split(".")[0] for name in sys.modules}
heavy = loaded & {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "torch", "csfm_jax"}
print(len(names), *sorted(heavy))
"""


def test_data_pipelines_imports_no_jax():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    modules, *heavy = done.stdout.split()
    assert int(modules) >= 15 and heavy == []


def test_a_run_imports_no_filters_and_no_drawing_before_its_first_step(tmp_path):
    """Together they were half of what a start took: SciPy's filters, and tensorboardX with PyTorch behind it."""
    program = f"""
import sys
from pathlib import Path
import csfm_jax.commands.train, csfm_jax.training.loop
from csfm_jax.training.metrics import Log
Log(Path({str(tmp_path)!r}), done=0, steps=1, write=True)
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"jax", "orbax"} <= loaded and not {"scipy.signal", "scipy.stats", "tensorboardX", "torch"} & loaded


def test_reading_a_record_imports_neither_the_library_nor_pandas(tmp_path):
    (tmp_path / "r.dat").write_bytes(bytes(8))
    (tmp_path / "r.hea").write_text("r 1 100 4\nr.dat 16 200/mV 16 0 0 0 0 I\n")
    program = f"import sys, data_pipelines; data_pipelines.read({str(tmp_path / 'r')!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"wfdb", "pandas", "scipy", "neurokit2"} & set(done.stdout.split())
