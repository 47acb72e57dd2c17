"""Held-out figures of pretraining; those of a task are in task_validation.py."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from csfm_jax import sharding
from csfm_jax.config import Config
from csfm_jax.training import step
from csfm_jax.training.metrics import averages
from csfm_jax.training.state import Blueprint
from data_pipelines import masking
from data_pipelines.loader import evaluation_batches


class Validation:
    """Held-out loss and errors on validation subjects, for each kind of mask, with fixed starts and fixed masks."""

    def __init__(self, config: Config, plan: Blueprint, stores, plans_dir: Path, mesh):
        self._config, self._stores, self._plans_dir, self._mesh = config, stores, plans_dir, mesh
        self._evaluate, self._share = step.make_eval_step(plan), sharding.rows_share(mesh)
        self._present = any(np.any(store.index.split == 1) for store in stores)
        if not self._present and jax.process_index() == 0:
            print("no validation subjects in these stores: no held-out loss will be measured", flush=True)

    def measure(self, params: dict, stopping: Callable[[], bool] = lambda: False) -> dict | None:
        """{"validation/KIND/METRIC/MODALITY": average over `training.eval_batches` batches}.

        Args:
            stopping: asked before each batch, the same answer in every process; None is returned once it says so.
        """
        found = {}
        for kind in masking.STRATEGIES if self._present else ():
            sums, counts = {}, {}
            batches = evaluation_batches(
                self._stores,
                self._config.tokens,
                self._config.data,
                "validation",
                plans_dir=self._plans_dir / "validation",
                strategy=kind,
                host=self._share.number,
                hosts=self._share.parts,
            )
            for _, batch in zip(range(self._config.training.eval_batches), batches):
                if stopping():
                    return None
                outputs = jax.device_get(self._evaluate(params, step.to_global(batch, self._mesh)))
                for total, more in zip((sums, counts), outputs):
                    for name, value in more.items():
                        total[name] = total.get(name, 0.0) + float(value)
            found |= {f"validation/{kind}/{name}": value for name, value in averages(sums, counts).items()}
        return found
