"""A site's own recordings and labels: from its folder and table to a task, a checkpoint and figures."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import wfdb
from sklearn.metrics import roc_auc_score
from small_checkpoints import toy_config, write_checkpoint

from csfm_jax import cli, tasks
from csfm_jax.evaluation import survival
from data_pipelines import formats
from data_pipelines.datasets import open_sources, site_labels
from data_pipelines.errors import BadInput
from data_pipelines.prepare import prepare
from data_pipelines.store import SPLITS, Store
from data_pipelines.subjects import hashed, hashed_study, split_of

KEY = b"0123456789abcdef0123456789abcdef"
PATIENTS, BEFORE = 12, ("train", "train", "validation", "test")


def write_table(path, rows, columns):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder `records` with two recordings of lead II a patient, of whom every other is fast, and `labels.csv`."""
    folder, rng = tmp_path_factory.mktemp("site"), np.random.default_rng(0)
    rows = []
    for patient in range(PATIENTS):
        fast = patient % 2
        ward = folder / "records" / f"ward{patient % 3}"
        ward.mkdir(parents=True, exist_ok=True)
        for visit in range(2):
            time = np.arange(0, 6, 1 / 250)
            beats = np.sin(2 * np.pi * (3.0 if fast else 1.0) * time + rng.random()) ** 21
            signal = (beats + 0.02 * rng.normal(size=time.size))[:, None]
            name = f"r{patient:02d}{visit}"
            wfdb.wrsamp(name, fs=250, units=["mV"], sig_name=["II"], p_signal=signal, fmt=["16"], write_dir=str(ward))
            suffix = ".hea" if visit else ""  # both ways to write it
            split = BEFORE[patient // 2 % 4]
            rows.append(
                [f"{ward.name}/{name}{suffix}", f"person {patient}", split, fast, 60 + 120 * fast, 5 - 4 * fast]
            )
    rows[0][3] = ""  # of train
    rows[1][3] = "NaN"
    columns = ["recording", "subject", "split", "rhythm/fast", "rate", "years"]
    write_table(folder / "labels.csv", [*rows, ["ward9/gone", "person 0", "", 1, 1, 1]], columns)
    return folder


@pytest.fixture(scope="module")
def store(site):
    (source,) = open_sources(site / "records", site / "labels.csv")
    prepare(source, site / "store", key=KEY)
    told = "labels.csv tells rhythm/fast, rate, years of 24 of 24 recordings; it names 1 that are not here: their"
    assert source.note == f"{told} labels are not used"
    return Store.open(site / "store", verify="full")


def test_subjects_splits_and_labels_are_the_tables(store):
    at = {name: i for i, name in enumerate(store.index.study)}
    rows = [at[hashed_study(KEY, "records", f"ward{p % 3}/r{p:02d}{v}.hea").encode()]
            for p in range(PATIENTS) for v in range(2)]  # fmt: skip
    subjects = [hashed(KEY, "site", f"person {p}").encode() for p in range(PATIENTS) for _ in range(2)]
    assert store.index.subject[rows].tolist() == subjects
    splits = [SPLITS.index(BEFORE[p // 2 % 4]) for p in range(PATIENTS) for _ in range(2)]
    assert store.index.split[rows].tolist() == splits
    labels = store.labels()
    fast = np.repeat(np.arange(PATIENTS) % 2, 2).astype(float)
    np.testing.assert_array_equal(labels["rhythm/fast"][rows], [np.nan, np.nan, *fast[2:]])
    np.testing.assert_array_equal(labels["years"][rows], 5 - 4 * fast)
    assert {*labels} == {"rhythm/fast", "rate", "years"}


def test_blank_subjects_and_splits_are_found_as_without_a_table(site, tmp_path):
    table = write_table(tmp_path / "t.csv", [["ward0/r000", 1]], ["recording", "af"])
    (source,) = open_sources(site / "records", table)
    prepare(source, tmp_path / "store", key=KEY)
    store, path = Store.open(tmp_path / "store"), "ward0/r000.hea"
    row = store.index.study.tolist().index(hashed_study(KEY, "records", path).encode())
    assert store.index.subject[row] == hashed(KEY, "site", path).encode()  # whom no file names, each is a person
    assert SPLITS[store.index.split[row]] == split_of(KEY, "site", path)
    known = ~np.isnan(store.labels()["af"])
    assert known[row] and known.sum() == 1


def records(folder, people: dict[str, str]):
    """WFDB records by their paths below a folder, each with the patient id of its header ("" = none)."""
    for path, person in people.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        wfdb.wrsamp(
            Path(path).name, fs=250, units=["mV"], sig_name=["II"], p_signal=np.sin(np.arange(1500) / 9)[:, None],
            comments=[f"Patient ID: {person}"] if person else [], write_dir=str((folder / path).parent), fmt=["16"],
        )  # fmt: skip
    return folder


def listed(folder, rows, columns=("recording", "subject", "split", "af")):
    (source,) = open_sources(folder, write_table(folder.parent / "t.csv", rows, columns))
    return {entry.path.removesuffix(".hea"): (entry.subject, entry.split) for entry in source.entries()}, source


def test_whom_files_and_table_name_differently_is_one_person_in_one_split(tmp_path):
    folder = records(tmp_path / "records", {"a": "0021", "b": "0021", "c": "33", "d": "", "e": "44"})
    rows = [["a", "P21", "test", 1], ["c", "P21", "", 0], ["d", "", "train", 1]]
    found, source = listed(folder, rows)
    assert found == {name: ("P21", "test") for name in "abc"} | {"d": ("d.hea", "train"), "e": ("44", "")}
    assert "it tells the subject of 2: a patient whom it and other files name differently" in source.note
    for rows, told in (
        ([["a", "P21", "", 1], ["b", "P22", "", 0]], "row 3, subject: found another subject than above"),
        ([["a", "P21", "test", 1], ["b", "", "train", 0]], "row 3, split: found another split than"),
    ):
        with pytest.raises(BadInput, match=told):
            listed(folder, rows)


def test_a_blank_is_not_known_whatever_the_file_says(tmp_path):
    folder = records(tmp_path / "records", {"a": "", "b": ""})
    (source,) = open_sources(folder, write_table(tmp_path / "t.csv", [["a", ""]], ["recording", "age"]))
    told = dataclasses.replace(formats.read(folder / "a.hea"), labels={"age": 70.0, "sex": 1.0})
    blank, other = (source.labels(entry, told) for entry in source.entries())
    assert np.isnan(blank["age"]) and blank["sex"] == 1 and other == {"age": 70.0, "sex": 1.0}


def test_folders_and_files_with_marks_in_their_names_are_found(tmp_path):
    folder = records(tmp_path / "records", {"#1/r0": "", "ward#2/r_0": "", "c": ""})
    _, source = listed(folder, [["#1/r0", 1], ["ward#2/r_0", 0], ["./c.hea", 1]], ["recording", "af"])
    assert [entry.labels for entry in source.entries()] == [(("af", value),) for value in (1.0, 1.0, 0.0)]


def test_a_table_among_tables_of_signals_is_no_recording(tmp_path):
    folder = tmp_path / "records"
    folder.mkdir()
    write_table(folder / "a.csv", [[i / 250, np.sin(i / 9)] for i in range(1500)], ["seconds", "II"])
    (folder / "recordings.json").write_text(json.dumps({"time": "seconds", "unit": "mV"}))
    table = write_table(folder / "labels.csv", [["a", 1]], ["recording", "af"])
    assert [entry.path for entry in open_sources(folder)[0].entries()] == ["a.csv", "labels.csv"]
    (source,) = open_sources(folder, table)
    assert [entry.path for entry in source.entries()] == ["a.csv"] and "no known format" not in source.note


def preparing(site, folder):
    (folder / "key").write_bytes(KEY.hex().encode())
    words = ["prepare", f"--source={site / 'records'}", f"--output={folder / 'store'}"]
    return [*words, f"--key-file={folder / 'key'}"]


def test_other_labels_are_another_store(site, tmp_path, capsys):
    text = (site / "labels.csv").read_text()
    (tmp_path / "changed.csv").write_text(text.replace(",60,", ",61,", 1))
    words = preparing(site, tmp_path)
    assert cli.main([*words, f"--labels={site / 'labels.csv'}"]) == 0
    assert cli.main([*words, f"--labels={site / 'labels.csv'}"]) == 0
    assert "complete already, verified" in capsys.readouterr().out
    assert cli.main([*words, f"--labels={tmp_path / 'changed.csv'}"]) == 2
    assert "a store made with another table of labels;" in capsys.readouterr().err
    assert cli.main(words) == 2  # nor the subjects and splits of the table
    assert "a store made with another recordings listed, table of labels;" in capsys.readouterr().err
    assert cli.main(["data", str(tmp_path / "store")]) == 0
    assert "labels       rate 24, rhythm/* 22, years 24" in capsys.readouterr().out


GOOD = ["recording", "af"]
BAD = {
    "no file": (None, None, "cannot be read"),
    "no column recording": (["path", "af"], [["ward0/r000", 1]], "no column recording"),
    "no labels": (["recording", "subject"], [["ward0/r000", "x"]], "no column of labels"),
    "column twice": (["recording", "af", "af"], [["ward0/r000", 1, 1]], "the column 'af' twice"),
    "no name": (["recording", "a f"], [["ward0/r000", 1]], "column 2 with a name of other characters"),
    "no header": (["recording", ""], [["ward0/r000", 1]], "column 2 with a name of other characters"),
    "stray quote": (["recording", 'af\nward0/r000,"Jane'], [["ward0/r001", 1]], "column 2 with a name of other"),
    "a word": (GOOD, [["ward0/r000", 1], ["ward0/r001", "yes, Jane"]], "row 3, af: found no number"),
    "a person's number": (["recording", "patient_id", "af"], [["ward0/r000", 7, 1]], "a column named 'patient_id'"),
    "another case": (["recording", "Subject", "af"], [["ward0/r000", 7, 1]], "a column named 'Subject'"),
    "too large": (GOOD, [["ward0/r000", "1e39"]], "row 2, af: found no number"),
    "thousands": (GOOD, [["ward0/r000", "1_000"]], "row 2, af: found no number"),
    "infinite": (GOOD, [["ward0/r000", "inf"]], "row 2, af: found no number"),
    "too long": (GOOD, [["ward0/r000", 1, 2]], "row 2: found another number of fields"),
    "cut off": (GOOD, [["ward0/r000"]], "row 2: found another number of fields"),
    "recording twice": (GOOD, [["ward0/r000", 1], ["ward0/r000", 0]], "rows of one recording"),
    "two names": (GOOD, [["ward0/r000", 1], ["ward0/r000.hea", 0]], "row 3: found a recording that an earlier row"),
    "nothing here": (GOOD, [["Jane", 1]], "no name of a recording that is here"),
    "split": (["recording", "split", "af"], [["ward0/r000", "dev", 1]], "row 2, split: found another word"),
    "two splits": (
        ["recording", "subject", "split", "af"],
        [["ward0/r000", "Jane", "train", 1], ["ward0/r001", "Jane", "test", 1]],
        "row 3, split: found another split than that of the same person above",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_table_is_refused_in_one_line_without_what_it_holds(name, site, tmp_path, capsys):
    columns, rows, told = BAD[name]
    if columns:
        write_table(tmp_path / "t.csv", rows, columns)
    assert cli.main([*preparing(site, tmp_path), f"--labels={tmp_path / 't.csv'}"]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and "Jane" not in error and not (tmp_path / "store").exists()


def test_a_table_of_a_known_dataset_is_refused(site, capsys, tmp_path):
    words = [
        "prepare",
        "--source=simulated:subjects=3,seed=0",
        f"--output={tmp_path}",
        f"--labels={site / 'labels.csv'}",
    ]
    assert cli.main(words) == 2
    assert "--labels: found simulated" in capsys.readouterr().err


def test_a_name_that_two_recordings_have_is_refused(tmp_path):
    folder = tmp_path / "records"
    folder.mkdir()
    for name in ("a.hea", "a.edf"):
        (folder / name).touch()
    rows = {"a": site_labels.Row("t.csv row 2", "", "", {"af": 1.0})}
    with pytest.raises(BadInput, match="row 2: found a name that several recordings have"):
        site_labels.labelled([("a.edf", ""), ("a.hea", "")], rows, folder, tmp_path / "t.csv")


def test_blanks_are_not_known_and_numbers_are(tmp_path):
    rows = [["a", "", "1e-3", " "], ["./b", "NA", "-2", "0"]]
    table = write_table(tmp_path / "t.csv", rows, ["recording", "x", "y", "z"])
    found = {name: list(row.labels.values()) for name, row in site_labels.read_labels(table).items()}
    np.testing.assert_equal(found, {"a": [np.nan, 0.001, np.nan], "b": [np.nan, -2.0, 0.0]})


@pytest.mark.parametrize(
    "task, column, wrong, told",
    [
        ("multilabel:rhythm/fast", 3, 9, "values other than 0 and 1"),
        ("survival:rhythm/fast+years", 3, 9, "values other than 0 and 1"),
        ("survival:rhythm/fast+years", 5, -1, "times below 0"),
    ],
)
def test_what_is_no_class_or_time_is_refused_in_every_split(task, column, wrong, told, site, tmp_path, capsys):
    rows = list(csv.reader((site / "labels.csv").read_text().splitlines()))
    row = next(row for row in rows if row[2] == "test")
    row[column] = wrong
    (source,) = open_sources(site / "records", write_table(tmp_path / "t.csv", rows[1:], rows[0]))
    prepare(source, tmp_path / "store", key=KEY)
    words = ["--config=csfm_nano", f"--workdir={tmp_path / 'run'}", f"--store={tmp_path / 'store'}"]
    assert cli.main(["finetune", "--checkpoint=random", f"--task={task}", *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "word, told",
    [
        ("multilabel:", "KIND:LABEL"), (":af", "the kind ''"), ("multilabel:a:b:c", "KIND:LABEL"),
        ("multilabel:a++b", "KIND:LABEL"), ("signal:ecg", "the kind 'signal'"), ("survival:death", "two labels"),
        ("survival:a+b+c", "two labels"), ("survival:a*+b", "two labels"), ("multiclass:a", "one class"),
        ("multilabel:a b", "KIND:LABEL"), ("multilabel:a?", "KIND:LABEL"), ("multilabel:[ab]", "KIND:LABEL"),
        ("multilabel:a:ekg", "the sensor 'ekg'"), ("multilabel:a+a", "once"), ("multilabel:a:ecg+ecg", "once"),
    ],
)  # fmt: skip
def test_words_that_are_no_task_are_refused(word, told):
    with pytest.raises(BadInput, match="task") as refused:
        tasks.get(word)
    assert told in str(refused.value)


def test_a_word_says_the_whole_task():
    task = tasks.get("survival:heart_failure+years:ecg+ppg")
    told = (task.kind, task.labels, task.sensors, task.outputs(task.labels))
    assert told == ("survival", ("heart_failure", "years"), ("ecg", "ppg"), ("heart_failure",))
    assert tasks.get("multiclass:rhythm/*").sensors == ("ecg",)


def test_own_tasks_go_from_a_table_to_predictions_and_figures(site, store, tmp_path, capsys):
    toy = write_checkpoint(tmp_path / "toy", toy_config())
    common = [f"--store={site / 'store'}", "--unchecked-subjects"]
    run, output = tmp_path / "run", tmp_path / "p.parquet"
    words = [f"--workdir={run}", "--config.training.steps=1", "--config.data.rows=2", "--config.data.window.seconds=4"]
    finetuning = ["finetune", f"--checkpoint={toy}", *common, *words]
    assert cli.main([*finetuning, "--task=survival:rhythm/fast+yeers"]) == 2
    assert "yeers" in capsys.readouterr().err
    assert cli.main([*finetuning, "--task=multilabel:rhythm/fast+afib"]) == 2  # one of two is a slip, too
    assert "afib" in capsys.readouterr().err
    assert cli.main([*finetuning, "--task=survival:rhythm/fast+years"]) == 0
    assert cli.main(["predict", f"--checkpoint={run}", *common, f"--output={output}"]) == 0
    shown = float(capsys.readouterr().out.split("concordance")[1].split()[0])
    table = pq.read_table(output).to_pandas()
    event, years = table["label/rhythm/fast"], table["label/years"]
    assert shown == pytest.approx(survival.concordance(table["prediction/rhythm/fast"], years, event)[0], abs=1e-4)

    words = ("multilabel:rhythm/*", "regression:rate", "survival:rhythm/fast+years")
    study = [f"--tasks={','.join(words)}", f"--models=linear:{toy}", f"--workdir={tmp_path / 'study'}"]
    assert cli.main(["evaluate", *study, *common, "--bootstrap=20"]) == 0
    cells = {path.parent.name.split("-")[0]: path for path in (tmp_path / "study").glob("cells/*/linear-*")}
    assert {*cells} == {"multilabel", "regression", "survival"}
    read = pq.read_table(cells["multilabel"] / "predictions" / "all.trained.test.parquet").to_pandas()
    figures = pq.read_table(tmp_path / "study" / "results.parquet").to_pandas()
    (auroc,) = figures[(figures.task == words[0]) & (figures.figure == "macro_auroc")].point
    (found,) = figures[(figures.task == words[2]) & (figures.figure == "concordance")].point
    assert found > 0.6  # of beats at 1 and 3 Hz
    assert auroc == roc_auc_score(read["label/rhythm/fast"], read["prediction/rhythm/fast"])
