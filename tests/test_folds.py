"""Folds of patients: each is tested once, by models that have not seen this patient, from the split to the page."""

import dataclasses
import gzip
import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import f1_score, roc_auc_score
from small_checkpoints import task_config, toy_config, write_checkpoint
from test_study import PEOPLE, cohort, furnished, words

from csfm_jax import cli, tasks
from csfm_jax.config import from_dict
from csfm_jax.evaluation import cell_tables, prediction_files, study_folds, task_figures
from csfm_jax.evaluation.decisions import choose_thresholds
from csfm_jax.evaluation.fine_tuned import FineTuned
from csfm_jax.evaluation.study import TaskSetup
from csfm_jax.models.config import check
from csfm_jax.tasks.resolve import Resolved
from csfm_jax.training import record
from data_pipelines import folds
from data_pipelines.errors import BadInput
from data_pipelines.folds import Fold
from data_pipelines.loader import make_loader
from data_pipelines.store import open_stores

OF = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return furnished(tmp_path_factory.mktemp("folds"))


def split_of(place, fold: str, number: int) -> set[bytes]:
    (store,) = open_stores(str(place / "stores"), "size", fold)
    return set(store.index.subject[store.index.split == number].tolist())


def test_every_patient_is_tested_once_and_in_one_split(place):
    tests = [split_of(place, f"{number}/5", 2) for number in range(1, 6)]
    everyone = set.union(*tests)
    assert sum(map(len, tests)) == len(everyone) == 60 and min(map(len, tests)) > 4
    for number in range(1, 6):
        train, validation, test = (split_of(place, f"{number}/5", split) for split in range(3))
        assert validation == tests[number % 5] and train | validation | test == everyone
        assert len(train) + len(validation) + len(test) == 60
    strange = np.array([b"somebody", b"somebody else", b"somebody"])
    assert folds.splits(strange, Fold(1, 3))[0] == folds.splits(strange, Fold(1, 3))[2]


def test_a_store_on_a_fold_is_another_one_also_in_a_worker(place):
    (plain,), (store,) = (open_stores(str(place / "stores"), "size", fold) for fold in ("", "2/3"))
    again = pickle.loads(pickle.dumps(store))
    assert again.digest == store.digest != plain.digest and (again.index.split == store.index.split).all()
    assert (plain.index.split != store.index.split).any()
    for reads in (store.read_window, again.read_window):
        assert all((a == b).all() for (_, a), (_, b) in zip(reads(3, 0, 1), plain.read_window(3, 0, 1)))


def test_training_reads_the_patients_of_the_folds_train_split_and_says_so(place, tmp_path):
    (store,) = stores = open_stores(str(place / "stores"), "size", "2/3")
    config = task_config("simulated_rhythm")
    loader = make_loader(stores, config.tokens, config.data, plans_dir=tmp_path, hide=False)
    read = {store.index.subject[row] for row in loader.plans.get(0).recording}
    loader.close()
    train = split_of(place, "2/3", 0)
    assert read and read <= train
    assert set(record.trained_subjects(stores, config)) == {subject.decode() for subject in train}


@pytest.mark.parametrize("wrong", ["0/5", "6/5", "1/2", "2", "a/5", "1/5/5", "-1/5"])
def test_what_is_no_fold_is_refused(wrong, place):
    with pytest.raises(BadInput, match="config.data.fold"):
        open_stores(str(place / "stores"), "size", wrong)


def test_a_run_on_another_fold_is_another_run():
    one, other = (from_dict({"data": {"fold": f"{k}/5"}}) for k in (1, 2))
    assert record.everywhere(one) != record.everywhere(other)


def test_a_fold_is_of_what_is_taught_a_task():
    config = toy_config()
    with pytest.raises(BadInput, match="config.data.fold: found '2/5'; expected none in pretraining"):
        check(dataclasses.replace(config, data=dataclasses.replace(config.data, fold="2/5")))


@pytest.fixture(scope="module")
def studied(place):
    toy = place / "toy"
    given = words(place, place / "study", f"--models=linear:{toy},attention:{toy},trees", "--sensors=all,2",
                  "--label-fractions=1/2")  # fmt: skip
    assert cli.main([*given, f"--folds={OF}"]) == 0
    return place / "study"


def told(study, figure, label, model, fraction=1.0):
    rows = pq.read_table(study / "results.parquet").to_pylist()
    (row,) = [r for r in rows if (r["figure"], r["label"], r["fraction"], r["recordings"], r["sensors"], r["reading"])
              == (figure, label, fraction, "all", "all", "trained") and r["model"].startswith(model)
              and r["against"] == ""]  # fmt: skip
    return row


def test_a_figure_is_the_mean_over_folds_of_each_at_its_own_thresholds(studied, place):
    (store,) = open_stores(str(place / "stores"), "size")
    for model in ("linear", "attention", "trees"):
        (pooled,) = (studied / "pooled" / "simulated_rhythm").glob(f"{model}*")
        whole = prediction_files.read(pooled / "predictions" / "all.trained.test.parquet")
        assert len(whole.key) == len(set(whole.key)) == len(store.index)
        figures, cases = [], []
        for number in range(1, OF + 1):
            of_fold = studied / f"fold-{number}-of-{OF}" / "cells" / "simulated_rhythm" / pooled.name / "predictions"
            chosen, mine = (prediction_files.read(of_fold / f"all.trained.{s}.parquet") for s in ("validation", "test"))
            assert {s.encode() for s in mine.subject} == split_of(place, f"{number}/{OF}", 2)
            assert set(whole.key[whole.fold == number]) == set(mine.key)
            k = mine.outputs.index("rate/fast")
            threshold = choose_thresholds(chosen.values, chosen.labels)[k]
            truth, said = mine.labels[:, k], mine.values[:, k]
            figures.append((roc_auc_score(truth, said), f1_score(truth, said >= threshold)))
            cases.append(len(truth))
        expected = np.average(figures, axis=0, weights=cases)
        for name, value in zip(("auroc", "f1"), expected):
            row = told(studied, name, "rate/fast", model)
            assert row["point"] == pytest.approx(value) and row["low"] <= row["point"] <= row["high"]
            assert row["patients"] == 60
    page = (studied / "report.html").read_text()
    assert f"Each of {OF} folds of patients has models of its own" in page and "With fewer labels" in page
    assert "Reliability" not in page and "nan (nan" not in page


def test_scores_of_two_folds_are_not_ranked_against_each_other():
    """Models of two folds that are right within each, and whose scores differ by a constant."""
    truth, said = np.tile([0.0, 1.0], 20)[:, None], np.tile([0.2, 0.3], 20)[:, None]
    said[20:] += 0.5
    task, folds_of = tasks.get("simulated_rhythm"), np.repeat([1, 2], 20)

    def make(fold, rows):
        return task_figures.judged_by(task, ("a",), said[rows], truth[rows])

    assert task_figures.OverFolds(folds_of, make).under(None)["macro_auroc"][0] == 1
    assert make(0, np.arange(40)).under(None)["macro_auroc"][0] < 0.8
    weights = np.stack([np.ones(40), np.repeat([1.0, 0.0], 20)]).astype(np.float32)
    assert task_figures.OverFolds(folds_of, make).under(weights)["macro_auroc"].tolist() == [1, 1]
    truth[20:] = 1  # the second fold has one class only
    assert task_figures.OverFolds(folds_of, make).under(weights)["macro_auroc"].tolist() == [1, 1]


def test_networks_learn_from_their_folds_train_patients(studied, place):
    for number in range(1, OF + 1):
        (cell,) = (studied / f"fold-{number}-of-{OF}" / "cells" / "simulated_rhythm").glob("attention*")
        learned = gzip.decompress((cell / "fine_tuning" / record.SUBJECTS).read_bytes()).split()
        assert set(learned) == split_of(place, f"{number}/{OF}", 0)
    half = told(studied, "error", "", "linear", 0.5)
    assert 0 <= half["point"] <= 1 and half["patients"] == 60


def test_a_model_of_a_fold_is_read_and_calibrated_on_it(studied, place, tmp_path, capsys):
    (cell,) = (studied / f"fold-2-of-{OF}" / "cells" / "simulated_rhythm").glob("attention*")
    model = shutil.copytree(cell / "fine_tuning", tmp_path / "model")
    given = [f"--checkpoint={model}", f"--store={place / 'stores'}", "--unchecked-subjects"]
    assert cli.main(["predict", *given, f"--output={tmp_path / 'p.parquet'}"]) == 0
    assert f"splits are those of fold 2/{OF}" in capsys.readouterr().out
    read = prediction_files.read(tmp_path / "p.parquet")
    assert {s.encode() for s in read.subject} == split_of(place, f"2/{OF}", 2)
    assert cli.main(["calibrate", *given]) == 0
    validation = len(split_of(place, f"2/{OF}", 1))
    assert f"{2 * validation} validation recordings" in capsys.readouterr().out
    other = open_stores(str(cohort(tmp_path / "elsewhere").path))
    other[0].name = "elsewhere"
    assert FineTuned.load(model).on_fold(other)[0].fold is None  # of patients whom nobody taught it on


def test_what_was_done_is_kept_and_a_failed_fold_is_told(studied, place, tmp_path, capsys, monkeypatch):
    study = shutil.copytree(studied, tmp_path / "study")
    (cell,) = (study / f"fold-2-of-{OF}" / "cells" / "simulated_rhythm").glob("linear*")
    (cell / "predictions" / "all.trained.test.parquet").unlink()
    status = json.loads((cell / "cell.json").read_text())
    given = words(place, study, f"--models=linear:{place / 'toy'},trees", "--sensors=all,2", f"--folds={OF}",
                  "--label-fractions=1/2")  # fmt: skip
    assert cli.main(given) == 0  # made again
    assert told(study, "auroc", "rate/fast", "linear") == told(studied, "auroc", "rate/fast", "linear")

    def without_fold_2(cell, subsets):
        if str(cell.settings.stores[0].fold) == f"2/{OF}":
            raise BadInput("lead I", "nothing", "a lead", "look")
        real(cell, subsets)

    real = cell_tables.table_files
    with monkeypatch.context() as patch:
        patch.setattr(cell_tables, "table_files", without_fold_2)
        assert cli.main([*given, "--sensors=all,2,1"]) == 1
    assert f"linear:{place / 'toy'}: fold 2 of {OF}: lead I" in capsys.readouterr().out
    assert told(study, "auroc", "rate/fast", "linear") == told(studied, "auroc", "rate/fast", "linear")
    assert {r["sensors"] for r in pq.read_table(study / "results.parquet").to_pylist()} == {"all", "2"}

    (cell / "cell.json").write_text(json.dumps(status | {"weights": {"kind": "other"}}))
    assert cli.main(given) == 1
    assert f"fold 2 of {OF}: " in capsys.readouterr().out
    assert {r["model"] for r in pq.read_table(study / "results.parquet").to_pylist()} == {"trees"}


def test_other_folds_are_another_study_and_some_are_none(studied, place, tmp_path, capsys):
    given = words(place, studied, "--models=trees", "--sensors=all")
    for more, named in (
        (["--folds=4"], "other folds"),
        ([], "other folds"),
        (["--folds=2"], "3 or more"),
        (["--folds=3", "--similarity=trees,trees"], "3 or more, alone"),
    ):
        assert cli.main([*given, *more]) == 2
        assert named in capsys.readouterr().err
    alone = ["evaluate", f"--checkpoint={place / 'toy'}", f"--store={place / 'stores'}", "--folds=3"]
    assert cli.main(alone) == 2 and "beside --checkpoint" in capsys.readouterr().err
    # what is refused leaves the folder for another attempt
    toy, wrong = place / "toy", words(place, tmp_path / "new", "--sensors=all", "--models=tress")
    assert cli.main([*wrong, "--folds=3"]) == 2
    for models, more in (
        (f"attention:{toy}", "--config.data.fold=2/3"),
        ("scratch:csfm_nano", "--config.data.fold=1/3"),
    ):
        given = words(place, tmp_path / "new", "--sensors=all", f"--models={models}")
        assert cli.main([*given, more]) == 2
        assert "config.data.fold: found" in capsys.readouterr().err
    assert cli.main(words(place, tmp_path / "new", "--sensors=all", "--models=trees", "--folds=40")) == 2
    assert "use fewer folds" in capsys.readouterr().err


def test_labels_that_some_fold_cannot_learn_are_left_out_of_all(place):
    def of(labels, why=()):
        values = tuple(float(len(label)) for label in labels)
        resolved = Resolved(labels, dict(why), values, values, (), {"test": 3})
        return TaskSetup(tasks.get("simulated_rhythm"), resolved, [], [], [], {})

    found = study_folds._setup([of(("a", "bb")), of(("bb",), {"a": "no positive"}), of(("a", "bb"))]).resolved
    assert found.labels == ("bb",) and found.left_out == {"a": "fold 2 of 3: no positive"}
    assert (found.mean, found.scale, found.positive_weight, found.recordings) == ((2.0,), (2.0,), (), {"test": 9})


def test_files_of_folds_keep_the_columns_that_all_have(tmp_path):
    for name, columns, patients in (("one", ["a", "b"], 4), ("two", ["b"], 6)):
        made = {"store": ["s"], "recording": [name], "subject": [name], "windows": [1]}
        made |= {f"{kind}/{c}": [0.5] for kind in ("prediction", "label") for c in columns}
        made["prediction/b"] = pa.array([0.5], pa.float32() if name == "one" else pa.float64())
        kept = {"csfm": json.dumps({"train_patients": patients})}
        pq.write_table(pa.table(made).replace_schema_metadata(kept), tmp_path / name)
    prediction_files.join([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    read = prediction_files.read(tmp_path / "both")
    assert read.outputs == read.labels_of == ("b",) and read.fold.tolist() == [1, 2]
    assert read.told["train_patients"] == 5


def test_an_encoder_that_was_pretrained_on_the_folds_test_patients_is_refused(place, tmp_path):
    train = sorted(subject.decode() for subject in split_of(place, "", 0))
    seen = write_checkpoint(tmp_path / "seen", toy_config(), people=PEOPLE, subjects=train)
    given = words(place, tmp_path / "study", f"--models=linear:{seen},trees", "--sensors=all", f"--folds={OF}")
    assert cli.main(given) == 1
    rows = pq.read_table(tmp_path / "study" / "results.parquet").to_pylist()
    assert {row["model"] for row in rows} == {"trees"}
    assert "subjects" in (tmp_path / "study" / "report.html").read_text()
