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


def test_reading_a_record_imports_neither_the_library_nor_pandas(tmp_path):
    (tmp_path / "r.dat").write_bytes(bytes(8))
    (tmp_path / "r.hea").write_text("r 1 100 4\nr.dat 16 200/mV 16 0 0 0 0 I\n")
    program = f"import sys, data_pipelines; data_pipelines.read({str(tmp_path / 'r')!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"wfdb", "pandas", "scipy", "neurokit2"} & set(done.stdout.split())


def test_a_training_run_starts_without_what_it_does_not_use(tiny_stores, tmp_path):
    """Each of these costs its second at every start, and none of them does anything there."""
    program = f"""
import sys
from pathlib import Path
import csfm_jax.training.loop
from csfm_jax.training.board import Board
from data_pipelines.store import open_stores
open_stores({str(tiny_stores)!r}, "size")
board = Board(Path({str(tmp_path)!r}), 1)
board.add(1, {{"loss": 1.0}})
board.close()
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    unused = {"torch", "pandas", "boto3", "google.cloud.storage", "matplotlib", "sklearn", "wfdb", "neurokit2"}
    assert sorted((unused | {"scipy.signal", "scipy.stats", "scipy.optimize"}) & set(done.stdout.split())) == []
    assert next(tmp_path.glob("events.out.tfevents.*")).stat().st_size > 40
