"""A fine-tuned checkpoint in use: predictions for the recordings of stores, and a file of them."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from csfm_jax import encoding, tasks
from csfm_jax.config import Config
from csfm_jax.evaluation import prediction_files
from csfm_jax.evaluation.predictions import Predictions, Split
from csfm_jax.objectives.supervised import Supervised
from data_pipelines import preprocess
from data_pipelines.errors import BadInput
from data_pipelines.store import Store, check_spec


@partial(jax.jit, static_argnums=0)  # compiled once a network, however many splits and sensor subsets it reads
def _apply(graphdef, state, batch):
    return nnx.merge(graphdef, state).predict(batch)


class FineTuned(NamedTuple):
    """A model of a task, with the preprocessing that it was trained on.

    Attributes:
        config: of the run; `config.adaptation` says task, labels and their scale. objective: the network.
        spec: of the stores. provenance: where the weights come from.
    """

    config: Config
    objective: Supervised
    spec: preprocess.Spec
    provenance: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> "FineTuned":
        """Reads a checkpoint of `csfm finetune`, after verifying every file of it.

        Raises:
            BadInput: none is there, or it was not taught a task.
        """
        objective, encoder = encoding.load_objective(path)
        if not isinstance(objective, Supervised):
            found, remedy = "a checkpoint that was taught no task", "fine-tune it first with csfm finetune"
            raise BadInput(str(path), found, "one of csfm finetune", remedy)
        return cls(encoder.config, objective, encoder.spec, encoder.provenance)

    @property
    def task(self) -> tasks.Task:
        return self.objective.task

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the columns of predictions."""
        return self.objective.outputs

    def predict(self, stores: list[Store], split: str) -> Predictions:
        """Predictions for every recording of a split, the crops of each averaged.

        Raises:
            BadInput: stores of another preprocessing, or no window in the split.
        """
        for store in stores:
            check_spec(store.spec, self.spec, str(store.path))
        graphdef, state = nnx.split(self.objective)
        with tempfile.TemporaryDirectory(prefix="csfm-plans-") as plans:
            read = Split(self.config, stores, split, Path(plans))
            found = [(np.asarray(_apply(graphdef, state, b)), b.labels, b.window) for b in read.batches()]
        return read.averaged(found)


def write(found: Predictions, model: FineTuned, stores: list[Store], target: Path) -> None:
    """Writes predictions whole or not at all, as Parquet or (.npz) NumPy arrays; see `commands.predict`."""
    told = {"task": model.task.name, "preprocessing": str(model.spec), **_plain(model.provenance)}
    prediction_files.write(found, model.outputs, model.config.adaptation.labels, told, stores, target)


def _plain(provenance: dict) -> dict:
    return {name: provenance[name] for name in ("path", "step") if name in provenance}
