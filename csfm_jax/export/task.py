"""The part of an export that belongs to a fine-tuned model: its head's weights, and what its numbers mean."""

import json
import math

import jax
import numpy as np

from csfm_jax.evaluation.calibrated import LEAST
from csfm_jax.evaluation.fine_tuned import FineTuned
from csfm_jax.export.golden import RATE, Case
from csfm_jax.models.heads import GATE
from csfm_jax.tasks.resolve import read_tokens
from data_pipelines import storage
from data_pipelines.signals import modality_of
from data_pipelines.storage import Place

_NAMES = {"kernel": "weight", "scale": "weight"}


def head_to_torch(params: dict, prefix: str = "head") -> dict[str, np.ndarray]:
    """A head's parameters (nested dict) -> name -> float32 array, under the names of `torch/csfm_task.py`."""
    state = {}
    for name, value in params.items():
        if isinstance(value, dict):
            state |= head_to_torch(value, f"{prefix}.{name}")
            continue
        value = np.asarray(value, np.float32)
        if name == "kernel":  # [in, *outs] here, [out, in] there
            value = value.reshape(len(value), -1).T
        state[f"{prefix}.{_NAMES.get(name, name)}"] = np.ascontiguousarray(value)
    return state


def task_config(model: FineTuned) -> dict:
    """The "task" of config.json; plain values."""
    task, ours = model.task, model.config.adaptation
    window = task.crops_of(model.config.data.window)
    calibration = None
    if (fitted := model.calibrated) is not None:
        fields = ("temperature", "exclusive", "rule", "specificity", "recordings", "step")
        calibration = {"least": LEAST} | {field: getattr(fitted, field) for field in fields}
        calibration["thresholds"] = [None if t != t else t for t in fitted.thresholds]
    return {
        "name": task.name,
        "about": task.about,
        "kind": task.kind,
        "outputs": list(model.outputs),
        "head": ours.head,
        "gate": list(GATE),
        "sensors": list(read_tokens(model.config).modalities),
        "crops": window.crops,
        "most_windows": window.most_per_recording,
        "begin": window.begin,
        "end": window.end,
        "mean": list(ours.mean),
        "scale": list(ours.scale),
        "calibration": calibration,
    }


def golden_arrays(cases: dict[str, Case], model: FineTuned) -> dict[str, np.ndarray]:
    """What the task says of golden inputs that hold one of its sensors: "<case>/scores" and "<case>/values".

    A task that reads from some second on is given an input as often, one after the other, as reaches beyond it.

    Args:
        cases: from `golden.cases`. model: `FineTuned.merged`.
    """
    known, out = set(read_tokens(model.config).modalities), {}
    begin = task_config(model)["begin"]
    for name, case in cases.items():
        if not any(modality_of(channel).name in known for channel in case.channels):
            continue
        signal = np.tile(case.signal, 1 + math.ceil(begin * RATE / case.signal.shape[1]))
        with jax.default_matmul_precision("highest"):
            told = model.tell(signal, RATE, case.channels, case.units)
        out |= {f"{name}/scores": told.scores, f"{name}/values": np.array(list(told.values.values()))}
    return out


def held_out(step: Place) -> dict[str, float]:
    """The run's figures on validation recordings at a step or the last time before; none where its lines are not."""
    lines = storage.join(storage.parent(storage.parent(step)), "validation.jsonl")
    if not storage.exists(lines):
        return {}
    made = [json.loads(line) for line in storage.read_bytes(lines).splitlines() if line.endswith(b"}")]
    before = [line for line in made if line["step"] <= int(storage.name_of(step))]
    return {
        name.removeprefix("validation/"): value
        for name, value in (before[-1] if before else {}).items()
        if name.startswith("validation/") and isinstance(value, float) and value == value
    }
