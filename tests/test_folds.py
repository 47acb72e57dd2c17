"""Folds of patients: each is tested once, by models that have not seen this patient, from the split to the page."""

import gzip
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score
from small_checkpoints import task_config, toy_config, write_checkpoint
from test_study import PEOPLE, cohort, words

from csfm_jax import cli
from csfm_jax.config import from_dict
from csfm_jax.evaluation import prediction_files
from csfm_jax.training import record
from data_pipelines import folds
from data_pipelines.errors import BadInput
from data_pipelines.folds import Fold
from data_pipelines.loader import make_loader
from data_pipelines.store import open_stores

OF = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    cohort(folder / "stores")
    write_checkpoint(folder / "toy", toy_config(), people=PEOPLE)
    return folder


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
    assert record.everywhere_digest(one) != record.everywhere_digest(other)


@pytest.fixture(scope="module")
def studied(place):
    toy = place / "toy"
    given = words(place, place / "study", f"--models=linear:{toy},attention:{toy},trees", "--sensors=all,2")
    assert cli.main([*given, f"--folds={OF}"]) == 0
    return place / "study"


def test_a_study_pools_the_test_patients_of_all_folds(studied, place):
    rows = pq.read_table(studied / "results.parquet").to_pylist()
    whole = [row for row in rows if row["recordings"] == "all" and row["sensors"] == "all"]
    assert {row["patients"] for row in whole} == {60}
    (store,) = open_stores(str(place / "stores"), "size")
    for model in ("linear", "attention", "trees"):
        (pooled,) = (studied / "pooled" / "simulated_rhythm").glob(f"{model}*")
        read = prediction_files.read(pooled / "predictions" / "all.trained.test.parquet")
        assert len(read.key) == len(set(read.key)) == len(store.index)
        assert len(prediction_files.read(pooled / "predictions" / "all.trained.validation.parquet").key) == 0
        for number in range(1, OF + 1):
            of_fold = studied / f"fold-{number}-of-{OF}" / "cells" / "simulated_rhythm" / pooled.name / "predictions"
            mine = prediction_files.read(of_fold / "all.trained.test.parquet")
            assert {s.encode() for s in mine.subject} == split_of(place, f"{number}/{OF}", 2)
        k = read.outputs.index("rate/fast")
        figure, name = roc_auc_score(read.labels[:, k], read.values[:, k]), "rate/fast"
        (told,) = [r for r in whole if r["figure"] == "auroc" and r["label"] == name and r["against"] == ""
                   and r["model"].startswith(model) and r["fraction"] == 1]  # fmt: skip
        assert told["point"] == pytest.approx(figure)
    assert all(not np.isfinite(row["point"]) for row in whole if row["figure"] in ("f1", "macro_f1"))
    assert f"Predictions of {OF} folds of patients" in (studied / "report.html").read_text()


def test_networks_learn_from_their_folds_train_patients(studied, place):
    for number in range(1, OF + 1):
        (cell,) = (studied / f"fold-{number}-of-{OF}" / "cells" / "simulated_rhythm").glob("attention*")
        learned = gzip.decompress((cell / "fine_tuning" / record.SUBJECTS).read_bytes()).split()
        assert set(learned) == split_of(place, f"{number}/{OF}", 0)


def test_other_folds_are_another_study_and_some_are_none(studied, place, capsys):
    given = words(place, studied, "--models=trees", "--sensors=all")
    for more, named in ((["--folds=4"], "other folds"), ([], "other folds"), (["--folds=2"], "3 or more")):
        assert cli.main([*given, *more]) == 2
        assert named in capsys.readouterr().err


def test_an_encoder_that_was_pretrained_on_the_folds_test_patients_is_refused(place, tmp_path):
    train = sorted(subject.decode() for subject in split_of(place, "", 0))
    seen = write_checkpoint(tmp_path / "seen", toy_config(), people=PEOPLE, subjects=train)
    given = words(place, tmp_path / "study", f"--models=linear:{seen},trees", "--sensors=all", f"--folds={OF}")
    assert cli.main(given) == 1
    rows = pq.read_table(tmp_path / "study" / "results.parquet").to_pylist()
    assert {row["model"] for row in rows} == {"trees"}
    assert "subjects" in (tmp_path / "study" / "report.html").read_text()
