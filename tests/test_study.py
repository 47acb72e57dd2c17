"""`csfm evaluate --tasks --models`: figures with a known answer, resume, refusals, and what a page may not hold."""

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from sklearn.metrics import f1_score, roc_auc_score
from small_checkpoints import toy_config, toy_params, write_checkpoint
from small_stores import write_store

from csfm_jax import cli, tasks
from csfm_jax.evaluation import cell_tables, cells, decisions, prediction_files, sensors, study_models, study_results
from csfm_jax.evaluation import study as study_lib
from csfm_jax.evaluation.cell import Settings
from data_pipelines.errors import BadInput
from data_pipelines.preprocess import INVALID, PreparedRecording
from data_pipelines.signals import CHANNEL_ID, modality_of
from data_pipelines.store import open_stores
from data_pipelines.store_view import ChannelsOf
from data_pipelines.store_writer import StoredRecording

PEOPLE = ("", "toy")
STEPS = 2


def beating(number, split, names, peaked):
    """A recording whose ECG swings at 1 or 3 Hz, as its label says, in sines or in peaks; its PPG does not tell."""
    rng = np.random.default_rng(number)
    fast, channels = number % 2, sorted(CHANNEL_ID[name] for name in names)
    samples = []
    for channel in channels:
        modality = modality_of(channel)
        time = np.arange(4 * modality.rate) / modality.rate
        rate = (3.0 if fast else 1.0) if modality.name == "ecg" else rng.uniform(0.5, 3)
        phase = (rate * time + rng.random()) % 1
        wave = np.exp(-((((phase - 0.5) / rate) / 0.03) ** 2)) if peaked else np.sin(2 * np.pi * phase)
        wave = 800 * wave + rng.normal(0, 20, len(time))
        samples.append(wave.astype(np.int16))
    labels = {"rate/fast": float(fast), "rhythm/irregular": float(number % 5 == 0), "heart_rate": 60.0 + 120 * fast}
    made = PreparedRecording(np.array(channels, np.int32), samples, 4.0, [])
    return StoredRecording(f"{number // 2:016x}", f"{number + 10**6:016x}", split, made, None, labels)


def cohort(folder, patients=60, peaked=False):
    """Patients with two recordings each: half with I, II and PPG, a quarter without PPG, a quarter without ECG."""
    made = []
    for number in range(2 * patients):
        patient = number // 2
        split = ("train", "train", "train", "validation", "test", "test")[patient % 6]
        names = (("I", "II", "PPG"), ("I", "II", "PPG"), ("I", "II"), ("PPG",))[(patient // 6) % 4]
        made.append(beating(number, split, names, peaked))
    return write_store(folder / "beating", made, name="beating")


def furnished(folder):
    """The folder, with a cohort's store and a checkpoint of a toy in it."""
    cohort(folder / "stores")
    write_checkpoint(folder / "toy", toy_config(), people=PEOPLE)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """And other sources: one calls slow what is fast at home, one has labels of something else, one no valid sample."""
    folder = furnished(tmp_path_factory.mktemp("study"))
    for name, first, labels in (("contrary", 1000, {}), ("mute", 2000, {"other": 1.0}), ("still", 3000, {})):
        made = []
        for number in range(first, first + 24):
            one = beating(number, ("train", "test")[number // 2 % 2], ("I", "II", "PPG"), False)
            fast = one.labels["rate/fast"]
            for samples in one.prepared.samples if name == "still" else ():
                samples[:] = INVALID
            made.append(dataclasses.replace(one, labels=labels or one.labels | {"rate/fast": 1 - fast}))
        write_store(folder / "elsewhere" / name, made, name=name)
    return folder


def words(place, workdir, *more):
    settings = {
        "--tasks": "simulated_rhythm", "--models": f"linear:{place / 'toy'},random:{place / 'toy'}",
        "--store": place / "stores", "--workdir": workdir, "--sensors": "all,2,ppg", "--bootstrap": 50,
        "--config.training.steps": STEPS, "--config.data.rows": 2, "--config.training.eval_every": 100,
    }  # fmt: skip
    settings |= dict(word.split("=", 1) for word in more)
    return ["evaluate", "--unchecked-subjects", *(f"{name}={value}" for name, value in settings.items())]


def elsewhere(place):
    return f"--elsewhere={place / 'elsewhere'}"


@pytest.fixture(scope="module")
def finished(place):
    """Frozen models and a taught one."""
    workdir, toy = place / "done", place / "toy"
    code = cli.main(
        words(
            place, workdir, f"--models=linear:{toy},random:{toy},attention:{toy}",
            f"--similarity=linear:{toy},random:{toy}", "--label-fractions=1/4", elsewhere(place),
        )
    )  # fmt: skip
    assert code == 0
    return workdir


def table(workdir):
    return pq.read_table(workdir / "results.parquet").to_pandas()


def test_figures_are_those_of_the_predictions_and_intervals_hold_them(finished, place):
    rows, toy = table(finished), place / "toy"
    mine = rows[(rows.task == "simulated_rhythm") & (rows.model == f"linear:{toy}") & (rows.sensors == "all")]
    mine = mine[(mine.recordings == "all") & (mine.against == "") & (mine.fraction == 1)]
    point = mine[(mine.figure == "auroc") & (mine.label == "rate/fast")].iloc[0]
    (cell,) = (finished / "cells" / "simulated_rhythm").glob("linear-*")
    read = prediction_files.read(cell / "predictions" / "all.trained.test.parquet")
    k = read.outputs.index("rate/fast")
    assert point.point == pytest.approx(roc_auc_score(read.labels[:, k], read.values[:, k]))
    assert point.low <= point.point <= point.high and point.cases == 40 and point.patients == 20
    assert {"macro_f1", "brier", "calibration_error_scaled", "macro_average_precision"} <= set(mine.figure)
    ecg = rows[(rows.sensors == "2") & (rows.figure == "auroc") & (rows.label == "rate/fast") & (rows.against == "")]
    assert (ecg[ecg.reading == "refitted"].point > 0.9).all() and set(ecg.reading) == {"trained", "refitted"}
    ppg = rows[(rows.sensors == "ppg") & (rows.figure == "auroc") & (rows.label == "rate/fast") & (rows.against == "")]
    assert (ppg.point < 0.85).all()  # the same weights, without the sensor that tells


def test_differences_are_paired_and_signed(finished, place):
    rows, toy = table(finished), place / "toy"
    every = rows[(rows.reading == "trained") & (rows.sensors == "all") & (rows.recordings == "all")]
    every = every[(every.figure == "macro_auroc") & (every.fraction == 1)].set_index(["model", "against"])
    first, other = f"linear:{toy}", f"random:{toy}"
    difference = every.loc[(other, first)]
    assert difference.point == pytest.approx(every.loc[(other, "")].point - every.loc[(first, "")].point)
    assert (first, first) not in every.index and difference.low <= difference.point <= difference.high


def test_missing_modalities_and_fractions_are_told_apart(finished):
    rows = table(finished)
    groups = rows[(rows.task == "simulated_rhythm") & (rows.figure == "macro_auroc") & (rows.against == "")]
    groups = groups[groups.sensors == "all"].groupby("recordings").cases.first()
    assert groups["complete"] + groups["missing"] == groups["all"] and groups["missing"] > 0
    errors = rows[(rows.task == "simulated_rhythm") & (rows.figure == "error")]
    assert set(errors.fraction) == {0.5, 0.25}


def test_on_another_source_nothing_is_learned_or_chosen(finished, place):
    rows, toy = table(finished), place / "toy"
    there = rows[(rows.recordings == "elsewhere/contrary") & (rows.against == "")]
    assert set(there.model) == set(rows.model) and {(12, 6)} == {*zip(there.cases, there.patients)}
    told = there[(there.figure == "auroc") & (there.label == "rate/fast")].set_index("model").point
    assert told[f"linear:{toy}"] < 0.1  # as sure as at home, and wrong: its train recordings would have taught it
    (cell,) = (finished / "cells" / "simulated_rhythm").glob("linear-*")
    home, there = (prediction_files.read(next((cell / "predictions").glob(f"all.trained.{part}.parquet")))
                   for part in ("validation", "elsewhere-contrary-*"))  # fmt: skip
    k, f1 = home.outputs.index("rate/fast"), rows[rows.recordings == "elsewhere/contrary"]
    f1 = f1[(f1.model == f"linear:{toy}") & (f1.figure == "f1") & (f1.label == "rate/fast") & (f1.against == "")]
    at = decisions.choose_thresholds(home.values, home.labels)[k]
    assert f1.point.item() == pytest.approx(f1_score(there.labels[:, k], there.values[:, k] >= at))
    assert not any("mute" in name for name in rows.recordings.unique())
    page = (finished / "report.html").read_text()
    assert "on other sources" in page and "no test recording of mute has its labels" in page
    # what cannot be read there takes nothing away here
    told = {p.parent.name.split("-")[0]: json.loads(p.read_text()) for p in finished.glob("cells/*/*/cell.json")}
    unread = {kind for kind, of in told.items() for name in of["unread"] if "elsewhere-still-" in name}
    assert unread == {"linear", "random"}
    assert not any(of["failed"] for of in told.values()) and f"linear:{toy} on still: " in page


def test_the_page_holds_the_tables_and_no_patient(finished, place):
    page = (finished / "report.html").read_text()
    for part in (
        "Ranks over tasks",
        "Reliability",
        "With fewer sensors",
        "With fewer labels",
        "Linear CKA",
        "paired",
        "integrated gradients",
    ):
        assert part in page, part
    (store,) = open_stores(str(place / "stores"), "size")
    hashes = {*store.index.subject.tolist(), *store.index.study.tolist()}
    assert not any(one.decode() in page for one in hashes)


def test_a_complete_cell_is_not_run_again_and_a_missing_file_is_made(finished, place, monkeypatch):
    toy = place / "toy"
    (cell,) = (finished / "cells" / "simulated_rhythm").glob("random-*")
    victim = cell / "predictions" / "ppg.refitted.test.parquet"
    before = prediction_files.read(victim)
    victim.unlink()
    ran = []
    for module, name in ((cell_tables, "table_files"), (cells, "network_files")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda c, s, real=real: (ran.append(c.model.kind), real(c, s)))
    compared = []
    monkeypatch.setattr(study_lib.layers, "compare", lambda *given: compared.append(given[3]))
    models, pair = f"--models=linear:{toy},random:{toy},attention:{toy}", f"--similarity=linear:{toy},random:{toy}"
    assert cli.main(words(place, finished, models, pair, "--label-fractions=1/4", elsewhere(place))) == 0
    assert ran == ["random"]
    assert [w.most_per_recording for w in compared] == [1]  # crops of a recording are alike, whatever the layers
    np.testing.assert_array_equal(prediction_files.read(victim).values, before.values)


def test_tasks_of_different_stores_stand_in_one_table(place, tmp_path):
    """Each is read on the stores that have its labels, with the sensors that these have."""
    shutil.copy(tiny.__file__, tmp_path)
    made = []
    for number in range(5000, 5048):
        one = beating(number, ("train", "validation", "test")[number // 2 % 3], ("I", "II"), False)
        made.append(dataclasses.replace(one, labels={"sex": one.labels["rate/fast"]}))
    write_store(tmp_path / "people", made, name="people")
    stores, toy = f"--store={place / 'stores'},{tmp_path / 'people'}", f"linear:{place / 'toy'}"
    given = (
        "--tasks=simulated_rhythm,ptbxl_sex",
        stores,
        f"--models={toy},random:{place / 'toy'}",
        "--sensors=all,2,1,ppg",
    )
    assert cli.main(words(place, tmp_path / "study", *given)) == 0
    rows = table(tmp_path / "study")
    main = rows[(rows.figure == "macro_auroc") & (rows.against == "") & (rows.recordings == "all")]
    found = main[main.model == toy].groupby("task").sensors.agg(lambda words: {*words})
    assert found.to_dict() == {"simulated_rhythm": {"all", "2", "1", "ppg"}, "ptbxl_sex": {"all", "1"}}
    counted = main[main.sensors == "all"].groupby("task").cases.agg(lambda n: {*n}).to_dict()
    assert counted == {"simulated_rhythm": {40}, "ptbxl_sex": {16}}
    files = [*tmp_path.glob("study/cells/*/*/predictions/*.parquet")]
    assert len(files) > 20
    for file in files:
        only = "people/" if "ptbxl_sex" in file.parts else "beating/"
        assert all(key.startswith(only) for key in prediction_files.read(file).key)
    page = (tmp_path / "study" / "report.html").read_text()
    assert f"{toy} on fewer sensors" in page
    assert "ptbxl_sex: no recording has the sensors ppg" in page and "ptbxl_sex: 2 is the same as all" in page
    assert "ptbxl_sex: read on people; the other stores have none of its labels" in page
    (one, *_), (other, *_) = (
        study_lib.plan(
            Settings(f"{place / 'stores'},{tmp_path / 'people'}", open_stores(stores.removeprefix("--store="), "size"),
                     [], 0, True, tmp_path / "features", 0, 0),
            name, f"scratch:{tmp_path / 'tiny.py'}", "all", None, tmp_path / name,
        ).cells
        for name in ("simulated_rhythm", "ptbxl_sex")
    )  # fmt: skip
    assert one.config.data.stores == str(place / "stores" / "beating")  # and what it is taught on
    assert other.config.data.stores == str(tmp_path / "people")


def test_a_cell_that_fails_is_written_down_and_the_others_go_on(place, tmp_path, capsys):
    (store,) = open_stores(str(place / "stores"), "size")
    seen = sorted({s.decode() for s in store.index.subject[store.index.split == 2]})
    leaking = write_checkpoint(tmp_path / "leaking", toy_config(), people=PEOPLE, subjects=seen)
    models = f"--models=linear:{leaking},random:{place / 'toy'}"
    assert cli.main(words(place, tmp_path / "study", models, "--sensors=all")) == 1
    assert "20 of the 20 test subjects" in (out := capsys.readouterr().out) and not any(s in out for s in seen)
    status = {
        p.parent.name.split("-")[0]: json.loads(p.read_text()) for p in tmp_path.glob("study/cells/*/*/cell.json")
    }
    assert "test subjects" in status["linear"]["failed"] and status["random"]["failed"] is None
    assert set(table(tmp_path / "study").model) == {f"random:{place / 'toy'}"}
    assert "What failed" in (tmp_path / "study" / "report.html").read_text()


@pytest.mark.parametrize("error", [AssertionError, EOFError, OSError(5, "of a disk")])
def test_no_error_of_one_cell_takes_the_others_along(error, place, tmp_path, monkeypatch):
    real = cell_tables.table_files

    def failing(cell, subsets):
        if cell.model.kind == "linear":
            raise error
        return real(cell, subsets)

    monkeypatch.setattr(cell_tables, "table_files", failing)
    assert cli.main(words(place, tmp_path / "study", "--sensors=all")) == 1
    assert set(table(tmp_path / "study").model) == {f"random:{place / 'toy'}"}


def test_what_fails_of_a_later_command_takes_no_earlier_figure_away(place, tmp_path, monkeypatch, capsys):
    def without_ppg(cell, subsets):
        real(cell, [subset for subset in subsets if subset.word != "ppg"])
        raise BadInput("ppg", "nothing", "a pulse", "look")

    def figures():
        found = table(tmp_path / "study")
        found = found[(found.figure == "macro_auroc") & (found.against == "") & (found.recordings == "all")]
        return {*zip(found.model.str.partition(":")[0], found.sensors)}

    def gone_on(sensors):
        code = cli.main(words(place, tmp_path / "study", f"--sensors={sensors}"))
        return code, "a pulse" in capsys.readouterr().out, "What failed" in page.read_text()

    real, page = cell_tables.table_files, tmp_path / "study" / "report.html"
    assert gone_on("all,2") == (0, False, False)
    before = figures()
    assert before == {(kind, sensors) for kind in ("linear", "random") for sensors in ("all", "2")}
    with monkeypatch.context() as patch:
        patch.setattr(cell_tables, "table_files", without_ppg)
        assert gone_on("all,2,ppg") == (1, True, True) and figures() == before
        assert gone_on("all") == (0, False, False)  # which lacks nothing
        assert gone_on("all,2,ppg") == (1, True, True)
    assert gone_on("all,2,ppg") == (0, False, False)
    assert figures() == before | {("linear", "ppg"), ("random", "ppg")}


def test_a_full_disk_ends_the_study(place, tmp_path, monkeypatch, capsys):
    def full(cell, subsets):
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    monkeypatch.setattr(cell_tables, "table_files", full)
    assert cli.main(words(place, tmp_path / "study", "--sensors=all")) == 2
    assert "somewhere: found no space left" in capsys.readouterr().err


def test_intervals_are_of_patients_not_of_recordings(finished, place, tmp_path, monkeypatch):
    """Every recording twice under its patient: there is no more to know."""
    study = shutil.copytree(finished, tmp_path / "study")
    for file in study.glob("cells/*/*/predictions/all.trained*.parquet"):
        kept = pq.read_table(file)
        names = pa.array([f"{name}x" for name in kept["recording"].to_pylist()], pa.string())
        again = kept.set_column(kept.column_names.index("recording"), "recording", names)
        pq.write_table(pa.concat_tables([kept, again]), file)
    monkeypatch.setattr("csfm_jax.reporting.evaluation_page.write", lambda *_: None)  # it draws recordings
    toy, more = place / "toy", ("--sensors=all", "--label-fractions=1/4", elsewhere(place))
    assert cli.main(words(place, study, f"--models=linear:{toy},random:{toy},attention:{toy}", *more)) == 0
    once, twice = (
        rows[(rows.sensors == "all") & (rows.recordings == "all") & (rows.fraction == 1)].set_index(
            ["model", "against", "figure", "label"]
        )
        for rows in (table(finished), table(study))
    )
    once = once.loc[twice.index]
    assert (twice.cases == 2 * once.cases).all() and (twice.patients == once.patients).all()
    for column in ("point", "low", "high"):
        np.testing.assert_allclose(twice[column], once[column], atol=1e-6)


def test_a_later_command_that_accepts_less_does_not_take_over_what_was_not_checked(place, tmp_path, capsys):
    given = words(place, tmp_path / "study", "--sensors=all")
    assert cli.main(given) == 0
    page = (tmp_path / "study" / "report.html").read_text()
    assert f"whether linear:{place / 'toy'} was trained on test subjects of beating is not checked" in page
    assert cli.main([word for word in given if word != "--unchecked-subjects"]) == 1
    assert "equal subjects would not be seen" in capsys.readouterr().out
    assert cli.main(given) == 0 and set(table(tmp_path / "study").model) == {
        f"{kind}:{place / 'toy'}" for kind in ("linear", "random")
    }


def test_what_cannot_be_is_refused_before_anything_is_made(place, tmp_path, capsys):
    def said(*more):
        assert cli.main(words(place, tmp_path / "study", *more)) == 2
        assert not (tmp_path / "study").exists()
        return capsys.readouterr().err

    toy = place / "toy"
    assert "did you mean simulated_rhythm?" in said("--tasks=simulated_rythm")
    assert "linear:..." in said("--models=lineer:x") and "no checkpoint or config" in said("--models=linear:")
    assert "pcg" in said("--tasks=cinc2016_abnormal") and "given twice" in said("--models=trees,trees")
    assert "such sensors" in said("--sensors=lead:X9") and "that no recording" in said("--sensors=resp")
    assert "config.adaptation.head" in said("--config.adaptation.head=average")
    assert "did you mean config.training.steps" in said("--config.training.stepz=3", f"--models=lora:{toy}")
    assert "power of two" in said("--label-fractions=1/3") and "taught no task" in said(f"--models={toy}")
    home, again = place / "stores" / "beating", place / "elsewhere"
    assert "among --store" in said(f"--elsewhere={home},{again}")
    assert "one of the two" in said("--folds=5", elsewhere(place))
    store = place / "stores"
    for word in ("--sensors=2", "--label-fractions=1/2", "--similarity=a,b", "--workers=1", "--folds=5"):
        assert cli.main(["evaluate", f"--checkpoint={toy}", f"--store={store}", word]) == 2
        assert f"{word.partition('=')[0]}: found beside --checkpoint" in capsys.readouterr().err
    write_store(tmp_path / "twin", [beating(0, "test", ("I", "II"), False)], name="twin")  # to train at home
    assert "1 subjects in more than one split" in said(f"--elsewhere={tmp_path / 'twin'}")
    assert "two of --models" in said("--similarity=trees,trees") and "give one of the two" in said(
        f"--checkpoint={toy}"
    )


def test_a_fine_tuning_that_is_stopped_ends_the_study_and_the_same_command_goes_on(
    place, tmp_path, monkeypatch, capsys
):
    made = []
    monkeypatch.setattr("csfm_jax.training.loop.train", lambda config, workdir, **_: made.append(workdir) or 1)
    given = words(place, tmp_path / "study", f"--models=finetuned:{place / 'toy'},trees", "--stopped-code=75")
    assert cli.main(given) == cli.main(given) == 75 and "the same command goes on" in capsys.readouterr().out
    assert len(made) == 2 and made[0] == made[1] and not (tmp_path / "study" / "results.parquet").exists()


def test_a_study_goes_on_with_its_own_settings_only(finished, place, tmp_path, capsys):
    assert cli.main(words(place, finished, "--seed=5", elsewhere(place))) == 2
    assert "other seed" in capsys.readouterr().err
    study = shutil.copytree(finished, tmp_path / "study")
    told = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps(told | {"protocol": 0}))
    assert cli.main(words(place, study, elsewhere(place))) == 2
    assert "other protocol" in capsys.readouterr().err


def test_sensor_words():
    task = tasks.get("simulated_rhythm")
    found = {s.word: s.channels for s in sensors.parse("6,ecg+ppg,lead:V2+PPG,all", task)}
    assert list(found) == ["all", "6", "ecg+ppg", "lead:V2+PPG"] and len(found["6"]) == 6
    assert found["lead:V2+PPG"] == {CHANNEL_ID["V2"], CHANNEL_ID["PPG"]} < found["ecg+ppg"] < found["all"]
    with pytest.raises(BadInput, match="given twice"):
        sensors.parse("1,1", task)


def test_a_store_of_some_channels_reads_these_and_no_other(place):
    (store,) = open_stores(str(place / "stores"), "size")
    view = ChannelsOf(store, {CHANNEL_ID["II"]})
    row = next(i for i in range(len(store.index)) if len(store.index.channel_sets[store.index.channel_set[i]]) == 3)
    whole, some = dict(store.read_window(row, 1.0, 2.0)), dict(view.read_window(row, 1.0, 2.0))
    assert list(some) == [CHANNEL_ID["II"]] and view.digest != store.digest
    np.testing.assert_array_equal(some[CHANNEL_ID["II"]], whole[CHANNEL_ID["II"]])
    assert {c for channels in view.index.channel_sets for c in channels} == {CHANNEL_ID["II"]}


def test_a_network_that_was_taught_and_trees_of_a_continuous_task(tmp_path):
    """In one study: a fine-tuned work directory as it is, and a network from scratch, for another task than above."""
    workdir = tmp_path / "study"
    shutil.copy(tiny.__file__, tmp_path)
    cohort(tmp_path / "stores", 36, peaked=True)
    more = ("--tasks=simulated_heart_rate", f"--models=trees,scratch:{tmp_path / 'tiny.py'}", "--sensors=all")
    assert cli.main(words(tmp_path, workdir, *more)) == 0
    taught = next((workdir / "cells" / "simulated_heart_rate").glob("scratch-*/fine_tuning"))
    assert cli.main(words(tmp_path, workdir, *more[:1], f"--models=trees,{taught}", *more[2:])) == 0
    rows = table(workdir)
    rows = rows[(rows.against == "") & (rows.recordings == "all") & (rows.sensors == "all")].set_index(
        ["model", "figure"]
    )
    assert rows.loc[("trees", "z_error")].point < 0.3 < rows.loc[(str(taught), "z_error")].point
    assert {"mean_absolute_error", "r2"} <= {figure for _, figure in rows.index}


def remade(place, workdir, *more):
    """Exit code of a study of the frozen toy at workdir/../toy, all sensors."""
    models = f"--models=linear:{workdir.parent / 'toy'},random:{place / 'toy'}"
    given = words(place, workdir, models, "--sensors=all", *more)
    return cli.main([word for word in given if word != "--unchecked-subjects"])


def test_weights_made_anew_in_the_same_place_are_others(place, tmp_path, monkeypatch, capsys):
    """Also where the study was killed before the cell was complete."""
    study, config = tmp_path / "study", toy_config()
    (store,) = open_stores(str(place / "stores"), "size")
    people = (store.manifest["key"], store.people)
    write_checkpoint(tmp_path / "toy", config, people=people)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cell_tables.tabular, "fitted", killed)
        assert remade(place, study) == 130
    shutil.rmtree(tmp_path / "toy")
    write_checkpoint(tmp_path / "toy", config, people=people, params=toy_params(config, seed=6))
    assert remade(place, study) == 1
    assert "not made by linear:" in (out := capsys.readouterr().out) and "as it is now: another weights" in out
    assert set(table(study).model) == {f"random:{place / 'toy'}"}


def test_a_network_without_weights_is_that_of_its_configuration(tmp_path):
    def identities():
        found = study_models.parse(f"random:{tmp_path / 'tiny.py'},scratch:{tmp_path / 'tiny.py'}", [], [])
        return [model.identity for model in found]

    shutil.copy(tiny.__file__, tmp_path)
    before = identities()
    assert before[0] == before[1] == identities()[0]
    text = Path(tiny.__file__).read_text()
    (tmp_path / "tiny.py").write_text(text.replace("= 8, 1, 1, 8, 16", "= 8, 2, 1, 8, 16"))
    assert all(one != other for one, other in zip(before, identities()))


def test_another_source_whose_people_cannot_be_told_takes_nothing_away(place, tmp_path):
    (store,) = open_stores(str(place / "stores"), "size")
    write_checkpoint(tmp_path / "toy", toy_config(), people=(store.manifest["key"], store.people))
    assert remade(place, tmp_path / "study") == 0
    assert remade(place, tmp_path / "study", f"--elsewhere={place / 'elsewhere' / 'contrary'}") == 0
    rows = table(tmp_path / "study")
    linear = rows[rows.model.str.startswith("linear")]
    assert set(linear.recordings) >= {"all"} and "elsewhere/contrary" not in set(linear.recordings)
    assert "elsewhere/contrary" in set(rows[rows.model.str.startswith("random")].recordings)
    assert "equal subjects would not be seen" in (tmp_path / "study" / "report.html").read_text()


def test_stores_in_another_order_are_read_as_what_they_are(place, tmp_path):
    (store,) = open_stores(str(place / "stores"), "size")
    write_store(tmp_path / "b", [beating(n, ("train", "validation", "test")[n // 2 % 3], ("I", "II"), False)
                                 for n in range(500, 548)], name="b")  # fmt: skip
    models, a, b = f"--models=linear:{place / 'toy'}", store.path, tmp_path / "b"
    given = words(place, tmp_path / "study", models, "--sensors=all"), words(place, tmp_path / "study", models)
    assert cli.main([*given[0], f"--store={a},{b}"]) == 0
    assert cli.main([*given[1], f"--store={b},{a}"]) == 0
    (cell,) = (tmp_path / "study" / "cells" / "simulated_rhythm").glob("linear-*")
    first, then = (
        prediction_files.read(cell / "predictions" / f"{word}.trained.test.parquet") for word in ("all", "2")
    )
    rows = {key: row for key, row in zip(first.key, first.labels)}
    assert then.key.size and all(np.array_equal(rows[key], row) for key, row in zip(then.key, then.labels))


def test_predictions_that_are_no_numbers_fail_by_name_and_damaged_ones_take_no_task_along(
    place, tmp_path, monkeypatch, capsys
):
    study, models = tmp_path / "study", f"--models=random:{place / 'toy'}"
    tasks_of = "--tasks=simulated_rhythm,simulated_heart_rate"
    real = cell_tables.tabular.fitted

    def broken(fit, on, asked, train=None):
        found = real(fit, on, asked, train)
        for one in found[0] if on.labels.shape[1] == 1 else ():
            one.values[0] = np.nan
        return found

    with monkeypatch.context() as patch:
        patch.setattr(cell_tables.tabular, "fitted", broken)
        assert cli.main(words(place, study, tasks_of, models, "--sensors=all")) == 1
    assert "toy, simulated_heart_rate: found predictions of 1 of " in capsys.readouterr().out
    assert cli.main(words(place, study, tasks_of, models, "--sensors=all")) == 0
    (cell,) = (study / "cells" / "simulated_heart_rate").glob("random-*")
    victim = cell / "predictions" / "all.trained.test.parquet"
    whole = victim.read_bytes()
    values = whole.index(b"PAR1") + 200  # within a page of values
    flipped = whole[:values] + bytes([whole[values] ^ 4]) + whole[values + 1 :]
    for damaged in (b"not a table", whole[:-50], flipped):
        victim.write_bytes(damaged)
        with pytest.raises(BadInput, match=f"{victim.name}.*remove it, to have it made"):
            prediction_files.read(victim)
    assert cli.main(words(place, study, tasks_of, models, "--sensors=all")) == 1
    assert "failed: simulated_heart_rate, its figures: " in capsys.readouterr().out
    assert set(table(study).task) == {"simulated_rhythm"} and "What failed" in (study / "report.html").read_text()


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_labels_of_one_class_are_named_with_their_fold_and_counted(kind):
    labels = np.zeros((40, 3))
    labels[np.arange(40), np.arange(40) % 3] = 1
    labels[20:, 2], labels[20:, 0] = 0, np.arange(20) % 2
    labels[20:, 1] = 1 - labels[20:, 0]
    names, folds_of = ("a", "b", "c"), np.repeat([1, 2], 20)
    keys = np.array([f"s/{i}" for i in range(40)])
    read = prediction_files.Read(names, names, {}, keys, keys, np.ones(40, int), labels, labels, folds_of)
    task = dataclasses.replace(tasks.get("simulated_rhythm"), kind=kind)
    setup = study_lib.TaskSetup(task, None, [], [], [], {})
    judged = study_results.Judged(read, read, {}, {}, 0)
    told = study_results._one_class(study_results.Group(setup, None, "trained", "all", {"trees": judged}))
    assert told[0] == "simulated_rhythm: c has one class only among test recordings of fold 2"
    assert "test recordings of fold 2: macro AUROC and AUPRC hold 2 of 3 labels" in told[1]
    assert len(told) == (4 if kind == "multilabel" else 2) and not any("fold 1" in line for line in told)


def test_models_of_other_validation_recordings_are_told_apart():
    """Their means at thresholds hold other labels."""
    names, keys = ("a", "b"), np.array([f"s/{i}" for i in range(20)])
    labels = np.stack([np.arange(20) % 2, np.arange(20) < 10], axis=1).astype(float)
    read = prediction_files.Read(names, names, {}, keys, keys, np.ones(20, int), labels, labels, np.zeros(20, int))
    setup = study_lib.TaskSetup(tasks.get("simulated_rhythm"), None, [], [], [], {})
    judged = [study_results.Judged(read, some, {}, {}, 0) for some in (read, read, read.rows(np.arange(10)))]
    group = study_results.Group(setup, None, "trained", "all", dict(zip(("trees", "linear", "pulse"), judged)))
    told = study_results._one_class(group)
    assert told[0] == "simulated_rhythm: b has one class only among validation recordings that pulse reads"
    assert len(told) == 2 and "hold 1 of 2 labels" in told[1]
