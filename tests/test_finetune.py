"""`csfm finetune` and `csfm predict` as people use them: killed, resumed, frozen, refused; on simulated recordings."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from small_checkpoints import toy_config, toy_params, write_checkpoint
from small_stores import recording, write_store
from test_train import Bench, last_step, learned, lines

from csfm_jax import cli, encoding
from csfm_jax.config import ObjectiveConfig
from csfm_jax.tasks import resolve
from csfm_jax.tasks.config import AdaptationConfig
from csfm_jax.training import checkpoint
from data_pipelines.preprocess import get_spec
from data_pipelines.store import open_stores
from data_pipelines.subjects import PUBLIC_KEY, fingerprint

STEPS = 12
SETTINGS = (
    "--config.adaptation.head=attention", "--config.data.augment.noise=0.2", "--config.data.augment.shift_seconds=0.2",
)  # fmt: skip
PEOPLE = (fingerprint(PUBLIC_KEY), "simulated")


class FineTuning(Bench):
    """Commands of `csfm finetune` on a checkpoint of a toy model that was never trained."""

    def words(self, workdir, *more):
        settings = {
            "--checkpoint": self.folder / "toy", "--task": "simulated_rhythm", "--workdir": workdir,
            "--store": self.stores, "--config.training.steps": STEPS, "--config.training.log_every": 1,
            "--config.training.save_every": 3, "--config.training.eval_every": 6, "--config.data.rows": 4,
            "--config.data.window.seconds": 4.0,
        }  # fmt: skip
        settings |= dict(word.split("=", 1) for word in more)
        return ["finetune", *(f"{name}={value}" for name, value in settings.items())]


@pytest.fixture(scope="module")
def bench(tmp_path_factory, tiny_stores):
    folder = tmp_path_factory.mktemp("finetune")
    write_checkpoint(folder / "toy", toy_config(), people=PEOPLE)
    return FineTuning(folder, tiny_stores)


@pytest.fixture(scope="module")
def finished(bench):
    """A run that was never stopped: a whole encoder with layer decay and an attention head, on augmented windows."""
    workdir = bench.folder / "whole"
    code, out, err = bench.run(workdir, *SETTINGS)
    assert (code, err) == (0, "")
    return workdir, out


def test_a_run_learns_and_its_checkpoint_says_what(finished, bench):
    workdir, out = finished
    written = lines(workdir)
    assert [line["step"] for line in written] == list(range(1, STEPS + 1)) and written[-1]["skipped"] == 0
    losses = [line["loss/simulated_rhythm"] for line in written]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    held_out = lines(workdir, "validation")
    assert [line["step"] for line in held_out] == [6, 12] and 0 <= held_out[-1]["validation/macro_auroc"] <= 1
    assert "task: simulated_rhythm, 2 labels" in out and "decoder's share of the FLOPs: 0%" in out
    config, params, run = checkpoint.restore_params(workdir)
    assert config.adaptation.task == "simulated_rhythm" and config.objective.name == "supervised"
    assert config.adaptation.labels == ("rhythm/irregular", "rate/fast")
    assert config.data.row_visible == config.data.row_tokens and config.optimizer.warmup_steps == 1
    before = checkpoint.restore_params(bench.folder / "toy")[1]["encoder"]
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, params["encoder"])
    blocks, words = moved["transformer"]["blocks"], moved["tokenizer"]["text"]["words"]
    assert blocks["up"]["kernel"] > 0 and words == 0  # no report is read: it would tell the labels
    assert run["initial"]["step"] == 3 and "decoder" not in params


def test_predictions_are_those_of_validation_and_only_of_unseen_subjects(finished, bench, tmp_path, capsys):
    words = ["predict", f"--checkpoint={finished[0]}", f"--store={bench.stores}"]
    assert cli.main([*words, "--split=validation", f"--output={tmp_path / 'p.parquet'}"]) == 0
    shown = float(capsys.readouterr().out.split("macro_auroc")[1].split()[0])
    assert shown == pytest.approx(lines(finished[0], "validation")[-1]["validation/macro_auroc"], abs=1e-4)
    table = pq.read_table(tmp_path / "p.parquet").to_pydict()
    (store,) = open_stores(str(bench.stores))
    mine = [study.decode() for study in store.index.study[store.index.split == 1]]
    crops = [max(8, math.ceil(s / 4)) for s in store.index.seconds[store.index.split == 1]]  # in windows of 4 s
    assert table["recording"] == mine and table["windows"] == crops
    truth = store.labels()["rhythm/irregular"][store.index.split == 1]
    np.testing.assert_array_equal(table["label/rhythm/irregular"], truth)
    assert all(0 < p < 1 for p in table["prediction/rhythm/irregular"])
    assert cli.main([*words, f"--output={tmp_path / 'p.npz'}"]) == 0
    assert len(np.load(tmp_path / "p.npz")["recording"]) == (store.index.split == 2).sum()
    assert cli.main([*words, f"--output={tmp_path / 'p.csv'}"]) == 2
    toy = f"--checkpoint={bench.folder / 'toy'}"
    assert cli.main([words[0], toy, words[2], f"--output={tmp_path / 'p.npz'}"]) == 2
    assert "taught no task" in capsys.readouterr().err


def test_killed_and_started_again_it_is_the_run_that_was_never_stopped(bench, finished, tmp_path):
    assert (
        bench.interrupt_at(8, 9, tmp_path / "run", *SETTINGS) == -9
    )  # the checkpoint of step 3 stands, validation is past
    assert 8 <= last_step(tmp_path / "run") < STEPS
    code, out, err = bench.run(tmp_path / "run", *SETTINGS)
    assert (code, err) == (0, "") and " 0 done of" not in out
    assert learned(tmp_path / "run") == learned(finished[0])
    assert lines(tmp_path / "run", "validation") == lines(finished[0], "validation")
    (_, whole, _), (_, again, _) = (checkpoint.restore_params(w) for w in (finished[0], tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_what_lora_has_learned_is_in_the_encoder_that_is_loaded(tmp_path):
    ours = AdaptationConfig(task="ptbxl_sex", labels=("sex",), trainable="lora", lora_rank=2)
    config = dataclasses.replace(toy_config(), objective=ObjectiveConfig("supervised"), adaptation=ours)
    params = toy_params(config)
    factors = params["lora"]["of"]["up"]
    used = encoding.load(write_checkpoint(tmp_path, config)).encoder.transformer.blocks.up.kernel[...]
    update = factors["a"] @ factors["b"] * (16 / 2)
    assert np.abs(update).max() > 0.1
    np.testing.assert_allclose(used - params["encoder"]["transformer"]["blocks"]["up"]["kernel"], update, atol=1e-5)


def refused(bench, workdir, capsys, *more) -> str:
    assert cli.main(bench.words(workdir, *more)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_what_cannot_be_learned_is_refused_by_name(bench, tmp_path, capsys):
    def said(*more):
        return refused(bench, tmp_path / "run", capsys, *more)

    assert "did you mean simulated_rhythm?" in said("--task=simulated_rythm")
    assert "labels heart_rate, noise, noise/*" in (message := said("--task=ptbxl_superclass"))
    assert "superclass/*, which ptbxl_superclass needs" in message
    assert "pcg" in said("--task=cinc2016_abnormal") and "config.adaptation.task" in said("--config.adaptation.task=x")
    assert "config.adaptation.loss" in said("--config.adaptation.loss=cox")
    assert "--config with --checkpoint=random" in said("--checkpoint=random")
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").glob("checkpoints/*"))


_NAMES = {"rhythm_irregular": "rhythm/irregular", "rate_fast": "rate/fast"}


def leads(number, split, seconds=6.0, **labels):
    return recording(number, ("II",), seconds, split, labels={_NAMES.get(k, k): v for k, v in labels.items()})


def test_stores_that_do_not_fit_are_refused(bench, tmp_path, capsys):
    other = dict(zip(("key", "people"), ("another", "folder")))
    strange = write_checkpoint(tmp_path / "strange", toy_config(), people=tuple(other.values()))
    message = refused(bench, tmp_path / "run", capsys, f"--checkpoint={strange}")
    assert "--unchecked-subjects" in message
    (store,) = open_stores(str(bench.stores))
    seen = [s.decode() for s in sorted(set(store.index.subject[store.index.split == 2]))]
    leaking = write_checkpoint(tmp_path / "leaking", toy_config(), people=PEOPLE, subjects=seen)
    message = refused(bench, tmp_path / "run", capsys, f"--checkpoint={leaking}")
    assert f"{len(seen)} of the {len(seen)} test subjects" in message and not any(s in message for s in seen)

    spec = get_spec("csfm-published").to_dict()
    published = write_checkpoint(tmp_path / "published", toy_config(), people=PEOPLE, spec=spec)
    message = refused(bench, tmp_path / "run", capsys, f"--checkpoint={published}")
    assert "csfm-published" in message and "csfm-jax" in message


def test_labels_that_nobody_can_learn_are_left_out_and_two_splits_refused(tmp_path, monkeypatch):
    from csfm_jax.commands import finetune

    base = toy_config()
    rows = [leads(i, s, rhythm_irregular=float(i % 2), rate_fast=0.0) for i, s in enumerate(["train"] * 4 + ["test"])]
    store = write_store(tmp_path / "one", rows, name="one")
    task = finetune.tasks.get("simulated_rhythm")
    config = finetune.recipe(base, task, str(tmp_path), [], scratch=False)
    found = resolve.resolve(config, [store])
    assert found.labels == ("rhythm/irregular",) and found.left_out == {
        "rate/fast": "no positive among train recordings"
    }
    named = dataclasses.replace(task, labels=("rhythm/irregular", "rate/none"))
    monkeypatch.setitem(finetune.tasks.TASKS, "simulated_rhythm", named)
    assert resolve.resolve(config, [store]).left_out == {"rate/none": "no label of these stores"}
    monkeypatch.undo()
    rates = dataclasses.replace(config, adaptation=AdaptationConfig("simulated_heart_rate"))
    paced = [leads(20 + i, "train", heart_rate=60.0 + 20 * i) for i in range(2)]
    measured = resolve.resolve(rates, [write_store(tmp_path / "paced", paced, name="paced")])
    assert (measured.mean, measured.scale) == ((70.0,), (10.0,))
    assert found.positive_weight == (1.0,) and found.recordings == {"train": 4, "validation": 0, "test": 1}
    again = write_store(tmp_path / "two", [leads(0, "test", rhythm_irregular=1.0)], name="two")
    with pytest.raises(finetune.BadInput, match="1 subjects in more than one split"):
        resolve.resolve(config, [store, again])
    none = write_store(tmp_path / "none", [leads(9, "train", rhythm_irregular=0.0)], name="none")
    with pytest.raises(finetune.BadInput, match="no positive among train"):
        resolve.resolve(config, [none])
    breath = write_store(tmp_path / "breath", [recording(3, ("EEG C4-A1",), 6.0, labels={"rate/fast": 1.0})], "breath")
    with pytest.raises(finetune.BadInput, match="only eeg; expected one of ecg, ppg, resp"):
        resolve.resolve(config, [breath])


def test_a_checkpoint_that_was_changed_is_not_read(bench, tmp_path, capsys):
    toy = shutil.copytree(bench.folder / "toy", tmp_path / "toy")
    manifest = toy / "checkpoints" / "3.manifest.json"
    files = json.loads(manifest.read_text())["files"]
    names = [name for name in files if "params" in name]
    victim = max((toy / "checkpoints" / "3" / name for name in names), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert "SHA-256" in refused(bench, tmp_path / "run", capsys, f"--checkpoint={toy}")
