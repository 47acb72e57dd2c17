"""From the start of `csfm train` to its first step, for Base with one row a batch on this machine's CPU.

The same command twice, each killed when its first step is made: the first fills the compilation cache, the second
finds all its programs there. A store of a few simulated subjects; a new run each time, so that nothing is restored.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 200  # seconds a run may take
SMALL = ("--config.data.rows=1", "--config.training.log_every=1", "--config.training.save_every=1000000",
         "--config.training.eval_every=1000000")  # fmt: skip


def run(config: str = "csfm_base", more: tuple[str, ...] = SMALL) -> list[tuple[str, float, str, str]]:
    """(name, value, unit, note) of each figure."""
    from data_pipelines.datasets import open_sources
    from data_pipelines.prepare import prepare

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(open_sources("simulated:subjects=12,seed=0")[0], folder / "store", keep_reports=True)
        cold, warm = (first_step(folder, f"run{turn}", config, more) for turn in range(2))
    note = f"{config}, of which after the imports: set up {warm['start']:.1f}, trace and load {warm['compile']:.1f}"
    return [
        ("start to first step, empty cache", cold["dispatched"], "s", f"compilation {cold['compile']:.1f}"),
        ("start to first step, warm cache", warm["dispatched"], "s", f"goal < 10; {note}"),
        ("  until the first step's loss is written", warm["written"], "s", "with the step itself, on this CPU"),
    ]


def first_step(folder: Path, run: str, config: str, more: tuple[str, ...]) -> dict[str, float]:
    """Seconds from the start of a process until its first step is on its way ("dispatched") and its line "written".

    "start" and "compile" as in goodput.json. Raises RuntimeError with the end of what a run that failed has said.
    """
    words = [sys.executable, "-m", "csfm_jax.cli", "train", f"--config={config}", f"--workdir={folder / run}",
             f"--config.data.stores={folder / 'store'}", *more]  # fmt: skip
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "JAX_PLATFORMS": "cpu"}
    account = folder / run / "goodput.json"
    with open(folder / f"{run}.log", "w") as log:
        began, clock = time.time(), time.monotonic()
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            while not account.is_file() and process.poll() is None and time.monotonic() < clock + LIMIT:
                time.sleep(0.02)
            written = time.monotonic() - clock
        finally:
            process.kill()
            process.wait()
    if not account.is_file():
        raise RuntimeError((folder / f"{run}.log").read_text()[-2000:] or f"no step within {LIMIT} s")
    kept = json.loads(account.read_text())
    seconds = kept["seconds"]
    before = kept["first"] - began  # the interpreter and the imports
    spent = seconds["start"] + seconds["data"] + seconds["compile"]
    return {"dispatched": before + spent, "written": written, **seconds}
