"""Every task, from a dataset in its published layout to predictions."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from flax import nnx
from small_checkpoints import toy_config, toy_model, write_checkpoint
from small_layouts import LAYOUTS, PEOPLE
from small_stores import recording, write_store

from csfm_jax import cli, tasks
from csfm_jax.commands import finetune
from csfm_jax.evaluation import survival
from csfm_jax.tasks.resolve import read_stores, read_tokens, resolve
from data_pipelines.config import TokenConfig
from data_pipelines.datasets import open_sources
from data_pipelines.errors import BadInput
from data_pipelines.loader import Rows
from data_pipelines.prepare import prepare
from data_pipelines.preprocess import INVALID
from data_pipelines.signals import MODALITIES
from data_pipelines.store import open_stores

DATASETS = {
    "simulated": ("simulated_",), "ptbxl": ("ptbxl_", "lead_to_twelve", "denoise_ecg"),
    "code15_records": ("code15_chagas",), "code15": ("code15_",), "sleep_edf": ("sleep_edf_",), "sph": ("sph_",),
    **{name: (f"{name}_",) for name in LAYOUTS if name.startswith("cinc")}, "bidmc": ("bidmc_", "ppg_to_ecg"),
    "mitdb": ("mitdb_",), "echonext": ("echonext_",), "vtac": ("vtac_",),
}  # fmt: skip


def dataset_of(task: str) -> str:
    return next(name for name, beginnings in DATASETS.items() if task.startswith(beginnings))


@pytest.fixture(scope="module")
def stores(tmp_path_factory, tiny_stores):
    """Dataset -> folder of its store, made once."""
    folder, made = tmp_path_factory.mktemp("layouts"), {"simulated": tiny_stores}

    def store(dataset):
        if dataset not in made:
            LAYOUTS[dataset](folder / "files" / dataset)
            (source,) = open_sources(folder / "files" / dataset)
            prepare(source, folder / dataset)
            made[dataset] = folder / dataset
        return made[dataset]

    return store


def network():
    """A toy that knows every sensor, in patches of a second."""
    toy = toy_config(position_seconds=1.0, position_steps=30)
    patch = {m.name: m.rate for m in MODALITIES.values()}
    tokens = TokenConfig(modalities=tuple(MODALITIES), patch=patch, text_length=0, text_vocabulary=60)
    return dataclasses.replace(toy, tokens=tokens)


def configured(task, where, opened):
    config = finetune.recipe(network(), task, str(where), ["--config.data.rows=2"], scratch=False)
    found = resolve(config, opened)
    return finetune.with_rows(found.adapted(config), opened), found


# what a step computes differs by kind, and where cases are stretches
TAUGHT = {
    "multilabel": "vtac_false_alarm", "multiclass": "cinc2017_rhythm", "regression": "bidmc_spo2",
    "survival": "code15_mortality", "signal": "lead_to_twelve", "sequence": "cinc2018_stages",
}  # fmt: skip


def test_every_kind_and_layout_is_read():
    kinds = {"sequence" if task.cut else task.kind for task in tasks.TASKS.values()}
    assert kinds == {*TAUGHT} and {dataset_of(name) for name in tasks.TASKS} == {*DATASETS}


def test_every_task_is_in_the_table_of_the_docs():
    lines = (Path(__file__).parents[1] / "docs" / "finetuning.md").read_text().splitlines()
    first = [line.split("|")[1] for line in lines if line.startswith("| `")]
    listed = [name for cell in first for name in re.findall(r"`(\w+)`", cell) if name in tasks.TASKS]
    assert sorted(listed) == sorted(tasks.TASKS)


@pytest.mark.parametrize("name", sorted(tasks.TASKS))
def test_a_task_finds_its_labels_and_signals_in_its_dataset(name, stores, tmp_path):
    task, where = tasks.get(name), stores(dataset_of(name))
    opened = open_stores(str(where))
    config, found = configured(task, where, opened)
    assert found.labels and not found.left_out
    splits = ("train", "validation", "test") if dataset_of(name) != "mitdb" else ("train", "test")
    assert all(found.recordings[split] for split in splits)
    views, options = read_stores(config, opened), {"label_names": found.labels, "training": True}
    rows = Rows(views, read_tokens(config), config.data, "train", tmp_path, hide=False, **options)
    batch = rows.batch(0, range(2))
    there = batch.window >= 0
    assert there.any() and not np.isnan(batch.labels[there]).all(axis=1).any()
    assert {rows.plans.get(0).start[window] >= task.begin for window in batch.window[there]} == {True}
    if task.kind == "signal" and name not in TAUGHT.values():
        return  # of the same network as the one that is taught
    graphdef, params = toy_model(config)

    def predicted(params):
        return nnx.merge(graphdef, params).predict(batch)

    def told(params):
        return nnx.merge(graphdef, params)(batch).loss, predicted(params)

    if name in TAUGHT.values():
        (loss, values), gradient = jax.jit(jax.value_and_grad(told, has_aux=True))(params)
        leaves = jax.tree.leaves(gradient)
        assert all(np.isfinite(x).all() for x in leaves) and any(np.any(x) for x in leaves)
        assert np.isfinite(loss) and loss > 0
    else:
        values = jax.eval_shape(predicted, params)  # of every task a step would take minutes
    assert values.shape[:2] == batch.window.shape and values.shape[2] == len(task.outputs(found.labels))


def test_a_survival_task_is_taught_and_judged_by_its_commands(stores, tmp_path, capsys):
    checkpoint = write_checkpoint(tmp_path / "toy", network())
    common = [f"--store={stores('code15')}", "--unchecked-subjects"]
    run, output = tmp_path / "run", tmp_path / "p.parquet"
    words = ["--task=code15_mortality", f"--workdir={run}", "--config.training.steps=1", "--config.data.rows=2"]
    assert cli.main(["finetune", f"--checkpoint={checkpoint}", *common, *words]) == 0
    assert cli.main(["predict", f"--checkpoint={run}", *common, f"--output={output}"]) == 0
    shown = float(capsys.readouterr().out.split("concordance")[1].split()[0])
    table = pq.read_table(output).to_pandas()
    assert table.subject.nunique() == 2
    died, years = table["label/death"], table["label/followup_years"]
    assert shown == pytest.approx(survival.concordance(table["prediction/death"], years, died)[0], abs=1e-4)


def test_signals_without_a_valid_sample_are_refused_before_anything_is_taught(tmp_path, capsys, monkeypatch):
    """As of a store that lost its samples: `csfm prepare` itself keeps no such recording."""
    made = [recording(i, ("II",), 6.0, split, labels={"sex": float(i % 2)}) for i, split in enumerate(PEOPLE)]
    for one in made:
        one.prepared.samples[0][:] = INVALID
    write_store(tmp_path / "mute", made)
    checkpoint = write_checkpoint(tmp_path / "toy", network())
    common = [f"--store={tmp_path / 'mute'}", "--unchecked-subjects", f"--workdir={tmp_path / 'run'}"]
    finetuning = ["finetune", "--task=ptbxl_sex", f"--checkpoint={checkpoint}"]
    for words in (finetuning, ["evaluate", "--tasks=ptbxl_sex", f"--models=linear:{checkpoint}"]):
        assert cli.main([*words, *common]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "no valid sample in 4 labelled train recordings" in error
    made[0].prepared.samples[0][-300:] = 7  # at the end of one
    write_store(tmp_path / "one", made)
    opened = open_stores(str(tmp_path / "one"))
    assert configured(tasks.get("ptbxl_sex"), tmp_path / "one", opened)[1].labels == ("sex",)
    alarms = dataclasses.replace(tasks.get("vtac_false_alarm"), labels=("sex",))
    monkeypatch.setitem(tasks.TASKS, alarms.name, alarms)
    with pytest.raises(BadInput, match="between 290 and 300 s in 4 labelled"):  # these end before the alarm
        configured(alarms, tmp_path / "one", opened)


def test_a_study_tells_the_challenges_score(stores, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "toy", network())
    words = ["--tasks=cinc2021_scored", f"--models=linear:{checkpoint}", f"--store={stores('cinc2021')}"]
    words += [f"--workdir={tmp_path / 'study'}", "--unchecked-subjects", "--bootstrap=20"]
    assert cli.main(["evaluate", *words]) == 0
    rows = pq.read_table(tmp_path / "study" / "results.parquet").to_pandas()
    (score,) = rows[rows.figure == "challenge_score"].itertuples()
    assert score.low <= score.point <= score.high <= 1 and score.cases == 2
    assert "challenge score" in (tmp_path / "study" / "report.html").read_text()
