"""`training.keep_best`: which step is the best, that its copy is whole, and that others find it."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from small_checkpoints import task_config, toy_config, write_checkpoint
from small_stores import recording, write_store

from csfm_jax import cli
from csfm_jax.config import TrainingConfig
from csfm_jax.models import config as model_config
from csfm_jax.training import best, checkpoint
from csfm_jax.training.best import Best
from csfm_jax.training.task_validation import TaskValidation
from data_pipelines.errors import BadInput


def kept_by(name, folder, task="simulated_rhythm"):
    config = task_config(task)
    return Best(dataclasses.replace(config, training=TrainingConfig(keep_best=name)), folder, folder)


def test_which_step_is_the_best(tmp_path):
    first = kept_by("first", tmp_path)
    told = [
        first.better({"validation/macro_auroc": v, "validation/loss/x": 1.0}) for v in (0.5, 0.4, math.nan, 0.5, 0.6)
    ]
    assert told == [True, False, False, False, True] and first.value == 0.6
    lower = kept_by("loss/simulated_rhythm", tmp_path)
    assert [lower.better({"validation/loss/simulated_rhythm": v}) for v in (0.5, 0.4, 0.6)] == [True, True, False]
    error = kept_by("first", tmp_path, "simulated_heart_rate")  # 12 beats a minute are one deviation
    assert error.better({"validation/mean_absolute_error/heart_rate": 24.0}) and error.value == 2.0
    assert not kept_by("", tmp_path).better({"validation/macro_auroc": 1.0}) and not first.better(None)
    with pytest.raises(BadInput, match="first, or one of macro_auroc"):
        kept_by("auc", tmp_path).better({"validation/macro_auroc": 0.5})


def test_where_it_cannot_be_kept():
    with pytest.raises(BadInput, match="keep_best"):
        kept_by("first", "s3://somewhere/run")
    with pytest.raises(BadInput, match="in pretraining"):
        model_config.check(dataclasses.replace(toy_config(), training=TrainingConfig(keep_best="loss")))


def test_a_copy_is_whole_and_a_later_one_takes_its_place(tmp_path):
    run = write_checkpoint(tmp_path / "run", toy_config(), step=3)
    assert best.place(run) == run
    keeper = kept_by("first", run)
    assert keeper.better({"validation/macro_auroc": 0.7})
    (run / "best" / "checkpoints" / "3").mkdir(parents=True)  # what a killed copy left: no manifest
    assert best.place(run) == run
    keeper.keep(3)
    assert best.place(run) == run / "best" and checkpoint.find_step(run / "best").name == "3"
    same = [checkpoint.restore_params(place)[1] for place in (run, run / "best")]
    jax.tree.map(np.testing.assert_array_equal, *same)
    assert (run / "best" / "subjects-trained.txt.gz").read_bytes() == (run / "subjects-trained.txt.gz").read_bytes()
    again = kept_by("first", run)  # as a run that goes on does
    assert again.value == 0.7 and not again.better({"validation/macro_auroc": 0.65})
    assert again.better({"validation/macro_auroc": 0.8})
    write_checkpoint(run, toy_config(), step=5)
    again.keep(5)
    assert [p.name for p in sorted((run / "best" / "checkpoints").iterdir())] == ["5", "5.manifest.json"]
    assert json.loads((run / "best" / "best.json").read_text()) == {"step": 5, "figure": "macro_auroc", "value": 0.8}


def test_a_fine_tuning_keeps_its_best_step(tmp_path, monkeypatch, capsys):
    made = []
    for n in range(24):
        labels = {"rhythm/irregular": float(n % 3 == 0), "rate/fast": float(n % 2)}
        made.append(recording(n, ("II", "PPG"), 4.0, ("train", "train", "validation")[n % 3 - 1], None, labels))
    write_store(tmp_path / "store", made, name="toy")
    write_checkpoint(tmp_path / "toy", toy_config())
    figures = iter((0.6, 0.9, 0.8))
    monkeypatch.setattr(TaskValidation, "measure", lambda *_: {"validation/macro_auroc": next(figures)})
    settings = {"steps": 6, "eval_every": 2, "save_every": 100, "keep_best": "first"}
    words = ["finetune", f"--checkpoint={tmp_path / 'toy'}", "--task=simulated_rhythm", "--unchecked-subjects",
             f"--workdir={tmp_path / 'run'}", f"--store={tmp_path / 'store'}", "--config.data.rows=2"]  # fmt: skip
    assert cli.main([*words, *(f"--config.training.{k}={v}" for k, v in settings.items())]) == 0
    assert checkpoint.find_step(tmp_path / "run").name == "6"
    assert checkpoint.find_step(best.place(tmp_path / "run")).name == "4"
    config, params, run = checkpoint.restore_params(tmp_path / "run" / "best")
    assert run["step"] == 4 and config.training.keep_best == "first"
    last = checkpoint.restore_params(tmp_path / "run")[1]
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, last)
    assert max(jax.tree.leaves(moved)) > 0
