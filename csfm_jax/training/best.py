"""The best step of a fine-tuning, kept beside the latest ones: WORKDIR/best is a work directory that holds it alone.

    WORKDIR/best/checkpoints/<step>/                      a copy, and best.json: its figure and value
    WORKDIR/best/checkpoints/<step>.manifest.json         written last: with it, copy and value count, or neither

A later step is better or it is not kept, so the latest step there is the best one, whenever a run is killed. A step
that was saved and measured, and not kept because the run ended there, is kept by the run that goes on from it.
"""

import json
import math
from pathlib import Path

import jax
import numpy as np

from csfm_jax import tasks
from csfm_jax.config import Config
from csfm_jax.evaluation.task_figures import LOWER_IS_BETTER
from csfm_jax.training import record, together
from csfm_jax.training.manifest import finished_steps, manifest_path, unfinished
from data_pipelines import storage
from data_pipelines.errors import BadInput

FOLDER = "best"
_VALUE = "best.json"


def place(workdir: Path) -> Path:
    """Where a fine-tuned model is to be read: the best step where one was kept, else the work directory."""
    return Path(workdir) / FOLDER if kept(workdir) else Path(workdir)


def kept(workdir: Path) -> bool:
    """Whether a step was: none is where no measurement of held-out recordings had the figure."""
    there = Path(workdir) / FOLDER
    return there.is_dir() and bool(finished_steps(there / "checkpoints"))


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
        self.value = together.of_first("the best step of before", self._kept())

    def better(self, measured: dict | None) -> bool:
        """Whether held-out figures ("validation/NAME" -> value; None: there are none) are the best so far.

        Raises:
            BadInput: the figure is not among them.
        """
        if not self._name or not measured:
            return False
        return self._improves(self._figure(measured))

    def catch_up(self, step: int, line: dict | None) -> None:
        """Keeps the step that a run goes on from, if it is better: the run before ended after saving it, and before it
        was kept. Called by every process.

        Args:
            line: of validation.jsonl, what was measured at this step; None where nothing was. Process 0's counts.
        """
        if not self._name:
            return
        measured = {name: value for name, value in (line or {}).items() if name != "step"}
        if self._improves(together.of_first("a step's figure", self._figure(measured) if measured else math.nan)):
            self.keep(step)

    def keep(self, step: int) -> None:
        """Copies a finished step, and lets earlier ones go."""
        if jax.process_index():
            return
        source, target = self._folder / "checkpoints" / str(step), self._folder / FOLDER / "checkpoints" / str(step)
        storage.delete_tree(manifest_path(target))
        for left in unfinished(target.parent):  # by a copy that was killed
            storage.delete_tree(left)
        for name in storage.file_sizes(source):
            storage.upload(source / name, target / name)
        for name in (record.SUBJECTS, record.SUBJECTS_BEFORE):  # evaluation asks whom it was trained on
            if (self._folder / name).exists():
                storage.upload(self._folder / name, self._folder / FOLDER / name)
        told = json.dumps({"step": step, "figure": self._name, "value": self.value}) + "\n"
        storage.write_bytes(target / _VALUE, told.encode())
        storage.write_bytes(manifest_path(target), manifest_path(source).read_bytes())  # from here on it counts
        for other in finished_steps(target.parent):
            if other != step:
                storage.delete_tree(manifest_path(target.parent / str(other)))
                storage.delete_tree(target.parent / str(other))

    def _kept(self) -> float:
        """The value of the copy that counts; NaN where there is none, or where another figure was asked for."""
        steps = self._folder / FOLDER / "checkpoints"
        told = [steps / str(step) / _VALUE for step in finished_steps(steps)[-1:]]
        before = [json.loads(path.read_text()) for path in told if path.is_file()]
        return next((one["value"] for one in before if one["figure"] == self._name), math.nan)

    def _improves(self, value: float) -> bool:
        lower = self._name.partition("/")[0] in (*LOWER_IS_BETTER, "loss")
        if math.isnan(value) or not (math.isnan(self.value) or (value < self.value if lower else value > self.value)):
            return False
        self.value = value
        return True

    def _figure(self, measured: dict) -> float:
        """The figure, or the mean of it over labels; errors in a label's unit count in its deviations."""
        key = f"validation/{self._name}"
        measured = {name: math.nan if value is None else value for name, value in measured.items()}
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
