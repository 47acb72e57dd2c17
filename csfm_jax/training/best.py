"""The best step of a fine-tuning, kept beside the latest ones: WORKDIR/best is a work directory that holds it alone.

    WORKDIR/best/checkpoints/<step>/ and its manifest     a copy, finished once the manifest is there
    WORKDIR/best/best.json                                figure and value

A later step is better or it is not kept, so the latest step there is the best one, whenever a run is killed.
"""

import json
import math
import os
import shutil
from pathlib import Path

import jax
import numpy as np

from csfm_jax import tasks
from csfm_jax.config import Config
from csfm_jax.evaluation.task_figures import LOWER_IS_BETTER
from csfm_jax.training import record
from csfm_jax.training.manifest import finished_steps, manifest_path
from data_pipelines import storage
from data_pipelines.errors import BadInput

FOLDER = "best"


def place(workdir: Path) -> Path:
    """Where a fine-tuned model is to be read: the best step where one was kept, else the work directory."""
    there = Path(workdir) / FOLDER
    return there if there.is_dir() and finished_steps(there / "checkpoints") else Path(workdir)


class Best:
    """What was best so far; every process decides alike, process 0 copies.

    Args:
        config: `training.keep_best` names the figure. workdir: of the run. folder: the same, on this host.

    Raises:
        BadInput: a work directory in an object store.
    """

    def __init__(self, config: Config, workdir: storage.Place, folder: Path):
        self._config, self._folder = config, Path(folder)
        self._name = config.training.keep_best
        self.value = math.nan
        if not self._name:
            return
        if storage.is_remote(workdir):
            remedy = "leave it out, or train in a folder here"
            raise BadInput("config.training.keep_best", f"a run at {workdir}", "a work directory here", remedy)
        if self._name == "first":
            self._name = tasks.get(config.adaptation.task).metrics[0]
        told = self._folder / FOLDER / "best.json"
        if told.is_file() and (before := json.loads(told.read_text()))["figure"] == self._name:
            self.value = before["value"]

    def better(self, measured: dict | None) -> bool:
        """Whether held-out figures ("validation/NAME" -> value; None: there are none) are the best so far.

        Raises:
            BadInput: the figure is not among them.
        """
        if not self._name or not measured:
            return False
        value = self._figure(measured)
        lower = self._name.partition("/")[0] in (*LOWER_IS_BETTER, "loss")
        if math.isnan(value) or not (math.isnan(self.value) or (value < self.value if lower else value > self.value)):
            return False
        self.value = value
        return True

    def keep(self, step: int) -> None:
        """Copies a finished step, and lets earlier ones go."""
        if jax.process_index():
            return
        source, target = self._folder / "checkpoints" / str(step), self._folder / FOLDER / "checkpoints" / str(step)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)  # what a killed copy left
        shutil.copytree(source, target)
        for name in (record.SUBJECTS, record.SUBJECTS_BEFORE):  # evaluation asks whom it was trained on
            if (self._folder / name).exists():
                shutil.copy2(self._folder / name, self._folder / FOLDER / name)
        told = json.dumps({"step": step, "figure": self._name, "value": self.value}) + "\n"
        _write(self._folder / FOLDER / "best.json", told)
        _write(manifest_path(target), manifest_path(source).read_text())  # from here on it counts
        for earlier in finished_steps(target.parent)[:-1]:
            manifest_path(target.parent / str(earlier)).unlink()
            shutil.rmtree(target.parent / str(earlier))

    def _figure(self, measured: dict) -> float:
        """The figure, or the mean of it over labels; errors in a label's unit count in its deviations."""
        key = f"validation/{self._name}"
        if key in measured:
            return float(measured[key])
        ours = self._config.adaptation
        scale = dict(zip(ours.labels, ours.scale)) if self._name == "mean_absolute_error" else {}
        each = [v / scale.get(k[len(key) + 1 :], 1.0) for k, v in measured.items() if k.startswith(f"{key}/")]
        if not each:
            names = sorted(k.removeprefix("validation/") for k in measured)
            raise BadInput(
                "config.training.keep_best", self._name, "first, or one of " + ", ".join(names), "correct it"
            )
        return float(np.mean(each))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
