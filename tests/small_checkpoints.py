"""A checkpoint of an untrained toy model, as training writes it, for tests of what is done with checkpoints."""

import dataclasses
import gzip
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from csfm_jax import objectives, tasks
from csfm_jax.config import Config, ObjectiveConfig
from csfm_jax.models.config import DecoderConfig, EncoderConfig
from csfm_jax.tasks.config import AdaptationConfig
from csfm_jax.training.checkpoint import Checkpoints
from data_pipelines.config import DataConfig, TokenConfig, WindowConfig
from data_pipelines.preprocess import get_spec
from data_pipelines.signals import CHANNELS, MODALITIES


def toy_config(**encoder) -> Config:
    """Width 24, one block; ECG, PPG and respiration in patches of half a second; windows of 4 s."""
    patch = {m.name: m.patch for m in MODALITIES.values()} | {"ecg": 125, "ppg": 125, "resp": 25}
    sizes = {"width": 24, "depth": 1, "heads": 2, "head_dim": 12, "mlp": 32, "position_seconds": 0.5, **encoder}
    return Config(
        tokens=TokenConfig(modalities=("ecg", "ppg", "resp"), patch=patch, text_length=6, text_vocabulary=60),
        data=DataConfig(window=WindowConfig(seconds=4.0), rows=4, row_tokens=256, row_visible=96, row_windows=8),
        encoder=EncoderConfig(**sizes),
        decoder=DecoderConfig(width=16, depth=1, heads=1, head_dim=16, mlp=16),
    )


def toy_params(config: Config, seed: int = 5) -> dict:
    """Parameters of the whole objective, drawn by NumPy: compiling JAX's initialisers takes longer than any test."""
    return toy_model(config, seed)[1]


def toy_model(config: Config, seed: int = 5) -> tuple[nnx.GraphDef, dict]:
    """The objective, to be merged with its parameters, and these, as of `toy_params`."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: objectives.build(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(seed)
    params = nnx.to_pure_dict(abstract)
    return graphdef, jax.tree.map(lambda x: rng.normal(0.05, 0.3, x.shape).astype(np.float32), params)


def write_checkpoint(
    workdir, config: Config, *, step=3, spec=None, tokenizer=None, subjects=(), channels=None, people=("", "toy"),
    params=None,
):  # fmt: skip
    """Writes WORKDIR/checkpoints/STEP and the list of subjects; returns the work directory. params: not the toy's."""
    spec = get_spec("csfm-jax").to_dict() if spec is None else spec
    digest = hashlib.sha256("\n".join(subjects).encode()).hexdigest()
    run = {"config": config.to_dict(), "step": step, "preprocessing": spec, "tokenizer": tokenizer}
    run["channels"] = [channel.name for channel in CHANNELS] if channels is None else channels
    run["subjects"] = {"count": len(subjects), "sha256": digest}
    if people is not None:  # fingerprint of the key, and whose ids: of the one store that it says it was trained on
        run["stores"] = {"toy": dict(zip(("key", "people"), people))}
    checkpoints = Checkpoints(workdir / "checkpoints", keep=2)
    checkpoints.save(step, jax.tree.map(jnp.asarray, params or toy_params(config)), {"count": jnp.zeros(1)}, run)
    checkpoints.close()
    lines = "".join(f"{s}\n" for s in subjects).encode()
    (workdir / "subjects-trained.txt.gz").write_bytes(gzip.compress(lines, mtime=0))
    return workdir


def task_config(task: str, depth: int = 1, **adaptation) -> Config:
    """`toy_config` after fine-tuning for a task whose labels are plain names, or for `simulated_rhythm`, as `csfm
    finetune` leaves it."""
    known = tasks.get(task)
    labels = ("rhythm/irregular", "rate/fast") if task == "simulated_rhythm" else known.labels
    if task == "simulated_heart_rate":
        adaptation = {"mean": (70.0,), "scale": (12.0,)} | adaptation
    base = toy_config(depth=depth)
    return dataclasses.replace(
        base,
        data=dataclasses.replace(
            base.data,
            row_visible=base.data.row_tokens,
            window=dataclasses.replace(base.data.window, begin=known.begin, end=known.end),
        ),
        objective=ObjectiveConfig("supervised"),
        adaptation=AdaptationConfig(task=task, labels=labels, **adaptation),
    )
