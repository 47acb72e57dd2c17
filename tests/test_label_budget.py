"""Fewer labels: the same nested patients for probes, trees and networks, from the rows that are read to the curves."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_checkpoints import task_config, toy_config, write_checkpoint
from small_stores import recording, write_store

from csfm_jax import cli, tasks
from csfm_jax.evaluation import label_budget, tabular
from csfm_jax.models import config as model_config
from csfm_jax.tasks.resolve import resolve
from data_pipelines.config import DataConfig
from data_pipelines.errors import BadInput
from data_pipelines.loader import make_loader
from data_pipelines.store import open_stores

TASK = tasks.get("simulated_rhythm")


def people(folder, number=48):
    """Patients with two recordings each; every third irregular, every second fast, the last two thirds train."""
    made = []
    for n in range(2 * number):
        patient = n // 2
        split = ("test", "validation", "train", "train", "train", "train")[patient % 6]
        labels = {"rhythm/irregular": float(patient % 3 == 0), "rate/fast": float(patient % 2), "heart_rate": 60.0 + n}
        one = recording(n, ("II", "PPG"), 4.0, split, None, labels)
        made.append(dataclasses.replace(one, subject=f"{patient:016x}"))
    return write_store(folder, made, name="few")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return people(tmp_path_factory.mktemp("few") / "store")


def test_halves_are_nested_and_of_train_patients(store):
    found = label_budget.patients([store], TASK.labels, TASK, 3, seed=1)
    assert [len(p) for p in found] == [32, 16, 8, 4]
    for smaller, larger in zip(found[1:], found):
        assert set(smaller) < set(larger)
    train = set(store.index.subject[store.index.split == 0].tolist())
    assert set(found[0].tolist()) == train
    again = label_budget.patients([store], TASK.labels, TASK, 3, seed=1)
    assert all((a == b).all() for a, b in zip(found, again))
    assert set(label_budget.patients([store], TASK.labels, TASK, 3, seed=2)[-1]) != set(found[-1])


def test_a_fine_tuning_reads_the_patients_that_a_probe_is_fitted_on(store, tmp_path):
    config = task_config("simulated_rhythm", halvings=2, halvings_seed=1)
    among = label_budget.among(config, [store])
    data = DataConfig(window=config.data.window, rows=4, row_tokens=128, row_visible=128, row_windows=4)
    loader = make_loader([store], config.tokens, data, plans_dir=tmp_path, hide=False,
                         label_names=config.adaptation.labels, among=among)  # fmt: skip
    plan = loader.plans.get(0)
    read = {store.index.subject[row] for row in plan.recording}
    loader.close()
    chosen = label_budget.patients([store], TASK.labels, TASK, 2, seed=1)
    assert read == set(chosen[-1].tolist()) and len(plan.recording) == 2 * len(read) == 16
    rows = np.arange(len(store.index.split))
    table = tabular.Table(np.zeros_like(rows), rows, np.ones_like(rows), np.zeros((len(rows), 2)))
    known = tabular.Known.of(table, [store], TASK.labels)
    fitted = tabular.train_subsets(known, chosen)
    assert {store.index.subject[r] for r in rows[fitted[2]]} == read and len(fitted[0]) == 64
    assert label_budget.among(task_config("simulated_rhythm"), [store]) is None
    with pytest.raises(BadInput, match="fewer halvings"):
        tabular.train_subsets(known, [chosen[0], np.array([b"nobody"])])


def test_labels_are_normalised_by_what_the_few_say(store):
    config = task_config("simulated_heart_rate")
    whole = resolve(config, [store])
    ours = dataclasses.replace(config.adaptation, halvings=3)
    few = resolve(dataclasses.replace(config, adaptation=ours), [store])
    chosen = label_budget.among(dataclasses.replace(config, adaptation=ours), [store])[0]
    values = store.labels()["heart_rate"][chosen]
    assert few.mean[0] == pytest.approx(values.mean()) and few.scale[0] == pytest.approx(values.std())
    assert few.mean != whole.mean and few.labels == whole.labels


def test_a_seed_of_no_draw_is_refused():
    with pytest.raises(BadInput, match="halvings_seed: found 3, which nothing reads"):
        model_config.check(task_config("simulated_rhythm", halvings_seed=3))
    model_config.check(task_config("simulated_rhythm", halvings=1, halvings_seed=3))


def words(folder, *more):
    toy = folder / "toy"
    given = {"--tasks": "simulated_rhythm", "--models": f"finetuned:{toy},linear:{toy},trees",
             "--store": folder / "store", "--workdir": folder / "study", "--bootstrap": 20,
             "--config.training.steps": 1, "--config.data.rows": 2, "--label-fractions": "1/4"}  # fmt: skip
    given |= dict(word.split("=", 1) for word in more)
    return ["evaluate", "--unchecked-subjects", *(f"{name}={value}" for name, value in given.items())]


@pytest.mark.parametrize(
    "more, named",
    [
        (("--label-networks=trees",), "some of --models that are fine-tuned here"),
        (("--label-networks=finetuned:{toy}", "--label-fractions=1"), "models without fractions"),
    ],
)
def test_networks_that_cannot_be_taught_again_are_refused(tmp_path, more, named, capsys):
    people(tmp_path / "store")
    write_checkpoint(tmp_path / "toy", toy_config())
    assert cli.main(words(tmp_path, *(word.format(toy=tmp_path / "toy") for word in more))) == 2
    assert named in capsys.readouterr().err and not (tmp_path / "study").exists()


def test_a_study_teaches_a_network_on_fewer_patients(tmp_path):
    people(tmp_path / "store", 24)
    write_checkpoint(tmp_path / "toy", toy_config())
    word = f"finetuned:{tmp_path / 'toy'}"
    models = f"--models=linear:{tmp_path / 'toy'},{word}"
    assert cli.main(words(tmp_path, models, f"--label-networks={word}", "--label-fractions=1/2")) == 0
    rows = pq.read_table(tmp_path / "study" / "results.parquet").to_pylist()
    errors = {(r["model"], r["fraction"]) for r in rows if r["figure"] == "error"}
    assert (word, 0.5) in errors and len(errors) == 2
    (cell,) = (tmp_path / "study" / "cells" / "simulated_rhythm").glob("finetuned-*")
    assert sorted(p.name for p in cell.glob("fine_tuning*")) == ["fine_tuning", "fine_tuning.half-1"]
    assert "With fewer labels" in (tmp_path / "study" / "report.html").read_text()
    (store,) = open_stores(str(tmp_path / "store"), "size")
    assert len(label_budget.patients([store], TASK.labels, TASK, 1, 0)[-1]) == 8
