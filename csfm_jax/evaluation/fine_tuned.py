"""A fine-tuned checkpoint in use: predictions for the recordings of stores, and a file of them."""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from csfm_jax import encoding, tasks
from csfm_jax.config import Config
from csfm_jax.embedding import given_channels
from csfm_jax.evaluation import calibrated, prediction_files, translated
from csfm_jax.evaluation.calibrated import Calibrated
from csfm_jax.evaluation.predictions import Predictions, Split
from csfm_jax.loaded_encoder import LoadedEncoder
from csfm_jax.models import lora
from csfm_jax.objectives.supervised import Supervised
from csfm_jax.objectives.translation import Translation
from csfm_jax.spread import OverDevices
from csfm_jax.tasks.resolve import cut, read_tokens
from data_pipelines import folds, preprocess
from data_pipelines.errors import BadInput
from data_pipelines.loader import pack_windows
from data_pipelines.signals import modality_of
from data_pipelines.store import Store, check_spec
from data_pipelines.windows import fixed_starts, row_length


@partial(jax.jit, static_argnums=0)  # compiled once a network, however many splits and sensor subsets it reads
def _apply(graphdef, state, batch):
    return nnx.merge(graphdef, state).predict(batch)


class FineTuned(NamedTuple):
    """A model of a task, with the preprocessing that it was trained on.

    Attributes:
        config: of the run; `config.adaptation` says task, labels and their scale. objective: the network.
        spec: of the stores. provenance: where the weights come from.
        calibrated: what makes its predictions calibrated, where `csfm calibrate` was given; `predict` leaves it alone.
    """

    config: Config
    objective: Supervised | Translation
    spec: preprocess.Spec
    provenance: dict[str, Any]
    calibrated: Calibrated | None = None

    @classmethod
    def load(cls, path: str | Path, calibration: bool = True) -> "FineTuned":
        """Reads a checkpoint of `csfm finetune`, after verifying every file of it.

        Args:
            path: work directory, or one step in it. calibration: False does not look for one.

        Raises:
            BadInput: none is there, it was not taught a task, or its calibration is that of other weights.
        """
        objective, encoder = encoding.load_objective(path)
        if not isinstance(objective, Supervised | Translation):
            found, remedy = "a checkpoint that was taught no task", "fine-tune it first with csfm finetune"
            raise BadInput(str(path), found, "one of csfm finetune", remedy)
        told = calibrated.read(encoder.provenance["path"]) if calibration else None
        return cls(encoder.config, objective, encoder.spec, encoder.provenance, told)

    @property
    def task(self) -> tasks.Task:
        return self.objective.task

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the columns of predictions."""
        return self.objective.outputs

    def on_fold(self, stores: list[Store]) -> list[Store]:
        """The stores that it was taught on under the fold of `data.fold`, where it has one; the others as they are."""
        fold, taught_on = folds.parse(self.config.data.fold), self.provenance.get("stores") or {}
        if fold is None:
            return stores
        print(f"of stores that the model was taught on, splits are those of fold {fold}")
        return [store.on_fold(fold) if store.name in taught_on else store for store in stores]

    def predict(self, stores: list[Store], split: str) -> Predictions:
        """Predictions for every recording of a split, the crops of each averaged; of signals, `translated.predictions`.

        Raises:
            BadInput: stores of another preprocessing, or no window in the split.
        """
        if self.task.kind == "signal":
            return translated.predictions(translated.translate(self, stores, split), self.outputs)
        for store in stores:
            check_spec(store.spec, self.spec, str(store.path))
        graphdef, state = nnx.split(self.objective)
        with tempfile.TemporaryDirectory(prefix="csfm-plans-") as plans:
            read = Split(self.config, stores, split, Path(plans))
            network = OverDevices(partial(_apply, graphdef), state, read_tokens(self.config))
            found = [(values, b.labels, b.window) for b, values in network.over(read.batches())]
        return read.averaged(found)

    def tell(self, signal, rate=None, channels=None, unit="mV", mains: float | None = None) -> "Told":
        """Preprocesses one raw recording as the training data was, and predicts: the mean over its crops.

        Args: as of `LoadedEncoder.embed`. Sensors that the task does not read are left out.

        Raises:
            BadInput: wrong shapes, no channel that can be used, or too short a recording; a task that predicts signals,
                or labels stretches.
        """
        if self.task.kind == "signal" or self.task.cut is not None:
            found, expected = f"the task {self.task.name}", "one that says something of a whole recording"
            raise BadInput("tell", found, expected, "prepare a store of the recordings, and use csfm predict")
        given, mains = given_channels(signal, rate, channels, unit, mains)
        made = preprocess.prepare(given, spec=self.spec, mains=mains)
        tokens = read_tokens(self.config)
        reader = LoadedEncoder(replace(self.config, tokens=tokens), self.objective.encoder, self.spec)
        starts, length = fixed_starts(self.task.crops_of(self.config.data.window), made.seconds)
        windows = [reader.window_at(made, float(start), length).channels for start in starts]
        longest = 1 + max(sum(len(x) // tokens.patch[modality_of(c).name] for c, x in w) for w in windows)
        shape = {"rows": len(windows), "row_tokens": row_length(longest), "row_windows": 1}
        (batch,) = pack_windows(windows, tokens, **shape)
        there = np.argsort(batch.window[:, 0])[np.count_nonzero(batch.window[:, 0] < 0) :]
        if not len(there):
            raise BadInput("signal", "no valid patch in any window", "some valid samples", "check the recording")
        scores, predicted = (np.asarray(x)[there, 0] for x in _told(*nnx.split(self.objective), batch))
        values = predicted.mean(axis=0, keepdims=True, dtype=np.float64)
        called = np.full(values.shape, np.nan)
        if self.calibrated is not None:
            values = self.calibrated.probabilities(values)
            called = self.calibrated.decisions(values)
        decided = {name: bool(c) for name, c in zip(self.outputs, called[0]) if c == c}
        return Told(dict(zip(self.outputs, values[0].tolist())), decided, scores, made.report)

    def merged(self) -> "FineTuned":
        """The same model computed in float32 throughout, with what LoRA has learned added to the encoder's kernels."""
        ours = replace(self.config.adaptation, trainable="all", lora_rank=0)
        sizes = replace(self.config.encoder, compute="float32", remat="none")
        config = replace(self.config, encoder=sizes, adaptation=ours)
        params = nnx.to_pure_dict(nnx.state(self.objective, nnx.Param))
        params = {"encoder": lora.encoder_params(params, self.config.adaptation), "head": params["head"]}
        made = encoding.with_params(lambda: Supervised(config, rngs=nnx.Rngs(0)), params, "merged")
        return self._replace(config=config, objective=made)


class Told(NamedTuple):
    """What a model says of one recording.

    Attributes:
        values: label -> probability (calibrated where the model is), value in the label's unit, or log-hazard.
        decisions: label -> whether it is called; of labels that have a threshold.
        scores: [windows, outputs] float32, what the head gave for each window.
        report: what became of each channel; see `embedding.Embedding`.
    """

    values: dict[str, float]
    decisions: dict[str, bool]
    scores: np.ndarray
    report: list[dict]


@partial(jax.jit, static_argnums=0)
def _told(graphdef, state, batch):
    model = nnx.merge(graphdef, state)
    return model.scores(batch), model.predict(batch)


def write(found: Predictions, model: FineTuned, stores: list[Store], target: Path) -> None:
    """Writes predictions whole or not at all, as Parquet or (.npz) NumPy arrays; see `commands.predict`."""
    told = {"task": model.task.name, "preprocessing": str(model.spec), **_plain(model)}
    labels, more = model.config.adaptation.labels, {}
    if (ours := model.calibrated) is not None:
        values = ours.probabilities(found.values)
        more = {f"uncalibrated/{name}": found.values[:, i] for i, name in enumerate(model.outputs)}
        called = ours.decisions(values)
        known = [i for i in range(len(model.outputs)) if not np.isnan(called[:, i]).any()]
        more |= {f"decision/{model.outputs[i]}": called[:, i] > 0.5 for i in known}
        found = found._replace(values=values.astype(np.float32))
    prediction_files.write(found, model.outputs, labels, told, cut(model.task, stores), target, more)


def _plain(model: FineTuned) -> dict:
    told = {name: model.provenance[name] for name in ("path", "step") if name in model.provenance}
    if (ours := model.calibrated) is not None:
        thresholds = {name: t for name, t in zip(ours.labels, ours.thresholds) if t == t}
        told["calibration"] = {"temperature": ours.temperature, "rule": ours.rule, "thresholds": thresholds}
    return told
