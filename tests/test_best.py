"""`training.keep_best`: which step is the best, that its copy is whole, and that others find it."""

import dataclasses
import errno
import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_checkpoints import task_config, toy_config, write_checkpoint
from small_stores import recording, write_store

from csfm_jax import cli
from csfm_jax.config import TrainingConfig
from csfm_jax.evaluation import cells
from csfm_jax.models import config as model_config
from csfm_jax.training import best, checkpoint
from csfm_jax.training.best import Best
from csfm_jax.training.task_validation import TaskValidation
from data_pipelines import storage
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
    told = json.loads((run / "best" / "checkpoints" / "5" / "best.json").read_text())
    assert told == {"step": 5, "figure": "macro_auroc", "value": 0.8}


@pytest.fixture
def fine_tuning(tmp_path, monkeypatch):
    """Words of a fine-tuning of six steps, measured at 2, 4 and 6: of `figures` in turn, in whichever run."""
    made = []
    for n in range(24):
        labels = {"rhythm/irregular": float(n % 3 == 0), "rate/fast": float(n % 2)}
        made.append(recording(n, ("II", "PPG"), 4.0, ("train", "train", "validation")[n % 3 - 1], None, labels))
    write_store(tmp_path / "store", made, name="toy")
    write_checkpoint(tmp_path / "toy", toy_config())
    figures = iter((0.6, 0.9, 0.8))
    monkeypatch.setattr(TaskValidation, "measure", lambda *_: {"validation/macro_auroc": next(figures)})
    settings = {"steps": 6, "eval_every": 2, "save_every": 100, "keep_best": "first"}
    return ["finetune", f"--checkpoint={tmp_path / 'toy'}", "--task=simulated_rhythm", "--unchecked-subjects",
            f"--workdir={tmp_path / 'run'}", f"--store={tmp_path / 'store'}", "--config.data.rows=2",
            *(f"--config.training.{k}={v}" for k, v in settings.items())]  # fmt: skip


def test_a_fine_tuning_keeps_its_best_step(tmp_path, fine_tuning):
    assert cli.main(fine_tuning) == 0
    assert checkpoint.find_step(tmp_path / "run").name == "6"
    assert checkpoint.find_step(best.place(tmp_path / "run")).name == "4"
    config, params, run = checkpoint.restore_params(tmp_path / "run" / "best")
    assert run["step"] == 4 and config.training.keep_best == "first"
    last = checkpoint.restore_params(tmp_path / "run")[1]
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), params, last)
    assert max(jax.tree.leaves(moved)) > 0


def test_a_run_without_the_figure_says_that_its_last_step_is_what_there_is(tmp_path, fine_tuning, monkeypatch, capsys):
    monkeypatch.setattr(TaskValidation, "measure", lambda *_: {"validation/macro_auroc": math.nan})
    assert cli.main(fine_tuning) == 0 and "no step was kept as the best" in capsys.readouterr().out
    (tmp_path / "run").rename(tmp_path / "fine_tuning")
    assert best.place(tmp_path / "fine_tuning") == tmp_path / "fine_tuning"
    config = SimpleNamespace(training=TrainingConfig(keep_best="first"))
    cell = SimpleNamespace(model=SimpleNamespace(kind="finetuned"), config=config, folder=tmp_path)
    assert cells._read_at_last_step(cell)
    config.training = TrainingConfig()
    assert not cells._read_at_last_step(cell)


@pytest.mark.parametrize(
    ("verb", "at"), [("upload", "best/checkpoints/4/"), ("write_bytes", "best/checkpoints/4.manifest.json")]
)
def test_a_run_that_ends_before_its_best_step_is_kept(tmp_path, fine_tuning, monkeypatch, capsys, verb, at):
    """The disk is full (what a kill leaves is the same) once step 4 is saved, and once its copy is there but for the
    manifest; step 2 was the best so far."""
    does = getattr(storage, verb)

    def full(*given):
        if at in " ".join(map(str, given)):
            raise OSError(errno.ENOSPC, "No space left on device", at)
        return does(*given)

    with monkeypatch.context() as patch:
        patch.setattr(storage, verb, full)
        assert cli.main(fine_tuning) == 2
    assert f"{at}: found no space left on device" in capsys.readouterr().err
    assert checkpoint.find_step(tmp_path / "run").name == "4"
    assert checkpoint.find_step(best.place(tmp_path / "run")).name == "2"
    assert kept_by("first", tmp_path / "run").value == 0.6  # of the copy that is there
    assert cli.main(fine_tuning) == 0  # and measures 0.8 at step 6: more than step 2 had, less than step 4
    assert checkpoint.find_step(tmp_path / "run").name == "6"
    assert [p.name for p in sorted((tmp_path / "run" / "best" / "checkpoints").iterdir())] == ["4", "4.manifest.json"]
    assert checkpoint.restore_params(tmp_path / "run" / "best")[2]["step"] == 4
    assert kept_by("first", tmp_path / "run").value == 0.9
