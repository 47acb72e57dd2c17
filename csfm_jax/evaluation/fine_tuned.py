"""A fine-tuned checkpoint in use: predictions for the recordings of stores, and a file of them."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from csfm_jax import encoding, tasks
from csfm_jax.config import Config
from csfm_jax.evaluation.predictions import Predictions, Split
from csfm_jax.objectives.supervised import Supervised
from data_pipelines import preprocess
from data_pipelines.errors import BadInput
from data_pipelines.store import Store, check_spec


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
        apply = jax.jit(lambda state, batch: nnx.merge(graphdef, state).predict(batch))
        with tempfile.TemporaryDirectory(prefix="csfm-plans-") as plans:
            read = Split(self.config, stores, split, Path(plans))
            found = [(np.asarray(apply(state, b)), b.labels, b.window) for b in read.batches()]
        return read.averaged(found)


def write(found: Predictions, model: FineTuned, stores: list[Store], target: Path) -> None:
    """Writes predictions whole or not at all, as Parquet or (.npz) NumPy arrays; see `commands.predict`."""
    names = np.array([store.name for store in stores])[found.store]
    studies = [stores[s].index.study[r].decode() for s, r in zip(found.store, found.recording)]
    columns = {"store": names, "recording": np.array(studies), "windows": found.windows}
    columns |= {f"prediction/{name}": found.values[:, i] for i, name in enumerate(model.outputs)}
    columns |= {f"label/{name}": found.labels[:, i] for i, name in enumerate(model.config.adaptation.labels)}
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with open(partial, "wb") as file:
            if target.suffix == ".npz":
                np.savez(file, **columns)
            else:
                import pyarrow as pa
                import pyarrow.parquet as pq

                told = {"task": model.task.name, "preprocessing": str(model.spec), **_plain(model.provenance)}
                table = pa.table(columns).replace_schema_metadata({"csfm": json.dumps(told)})
                pq.write_table(table, file)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _plain(provenance: dict) -> dict:
    return {name: provenance[name] for name in ("path", "step") if name in provenance}
