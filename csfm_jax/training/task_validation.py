"""Validation of a task while it is trained: its loss, and its figures on whole recordings of validation subjects."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from csfm_jax import sharding, tasks
from csfm_jax.config import Config
from csfm_jax.evaluation import task_figures
from csfm_jax.evaluation.predictions import Split, figures
from csfm_jax.tasks.resolve import read_stores
from csfm_jax.training import step
from csfm_jax.training.metrics import averages
from csfm_jax.training.state import Blueprint


def _held_out(view) -> bool:
    """Whether a store, as the task reads it, has a validation recording with something in it."""
    holds = np.array([bool(channels) for channels in view.index.channel_sets], bool)[view.index.channel_set]
    return bool(np.any(holds & (view.index.split == 1)))


class TaskValidation:
    """All validation recordings, whatever `training.eval_batches` says: a rank statistic of a few means little."""

    def __init__(self, config: Config, plan: Blueprint, stores, plans_dir: Path, mesh):
        self._adaptation, self._mesh = config.adaptation, mesh
        self._predict = step.make_predict_step(plan)
        self._split = None
        if any(_held_out(view) for view in read_stores(config, stores)):
            share = sharding.rows_share(mesh)
            self._split = Split(config, stores, "validation", plans_dir / "validation", share.number, share.parts)
        elif jax.process_index() == 0:
            print("no validation subjects in these stores: nothing will be measured on held-out ones", flush=True)

    def measure(self, params: dict, stopping: Callable[[], bool] = lambda: False) -> dict | None:
        """{"validation/loss/TASK": mean, "validation/METRIC": of recordings, their crops averaged}.

        Args:
            stopping: asked before each batch, the same answer in every process; None is returned once it says so.
        """
        if self._split is None:
            return {}
        sums, counts, found = {}, {}, []
        for batch in self._split.batches():
            if stopping():
                return None
            totals, predicted = jax.device_get(self._predict(params, step.to_global(batch, self._mesh)))
            found.append(predicted)
            for into, more in zip((sums, counts), totals):
                for name, value in more.items():
                    into[name] = into.get(name, 0.0) + float(value)
        task = tasks.get(self._adaptation.task)
        names = task.outputs(self._adaptation.labels)
        measured = figures(task, names, self._split.averaged(found), task_figures.validated_by)
        return {f"validation/{name}": value for name, value in (averages(sums, counts) | measured).items()}
