"""launch/evaluate.sh and questions.sh against a `csfm` that writes down its words: what they would run, in which order.

The real thing takes half an hour; every word is checked here against the parsers that would read it.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from csfm_jax import config, tasks
from csfm_jax.commands import evaluate, train

ROOT = Path(__file__).resolve().parents[1]


class Script:
    """Runs a script over stores that are a manifest each."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir()
        csfm = folder / "bin" / "csfm"
        csfm.write_text(
            f"#!/bin/sh\nprintf '%s\\037' \"$@\" >> '{folder / 'calls'}'\necho >> '{folder / 'calls'}'\n"
            'case " $* " in *"/${ENDS_AT:-nowhere} "*) exit "$ENDS_WITH" ;; esac\n'
        )
        csfm.chmod(0o755)
        (folder / "bin" / "python").symlink_to(sys.executable)

    def store(self, name: str, train_recordings: int, at: str = "") -> None:
        place = self.folder / "run" / "stores" / at
        place.mkdir(parents=True, exist_ok=True)
        values = {"name": name, "totals": {"splits": {"train": train_recordings}}}
        (place / "manifest.json").write_text(json.dumps(values, indent=0))

    def run(self, script: str, *words: str, code: int = 0, **environment: str) -> tuple[str, list[list[str]]]:
        """Output, and the words of every call of csfm; code: that the script must end with."""
        path = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", ROOT / "launch" / script, self.folder / "run", *words], env=os.environ | path | environment,
            cwd=self.folder, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stdout, [
            line.split("\037")[:-1] for line in (self.folder / "calls").read_text().strip("\n").split("\n")
        ]


@pytest.fixture
def script(tmp_path):
    return Script(tmp_path)


def stages(calls) -> list[str]:
    """Commands, and the folders that they write to."""
    return [f"{call[0]} {Path(w).name}" for call in calls for w in call if w.startswith(("--workdir=", "--output="))]


def parsed(call: list[str]):
    """The words of a call as its command reads them, and the configuration that its overrides make."""
    command = {"train": train, "evaluate": evaluate}[call[0]]
    parser = argparse.ArgumentParser(exit_on_error=False)
    command.arguments(parser)
    args, rest = parser.parse_known_args(call[1:])
    assert all(word.startswith("--config.") for word in rest)
    return args, config.load(args.config, rest) if call[0] == "train" else rest


def pretrainings(calls):
    found = [parsed(call) for call in calls if call[0] == "train"]
    return {Path(args.workdir).name: made for args, made in found}


def studies(calls):
    found = [parsed(call)[0] for call in calls if call[0] == "evaluate"]
    for args in found:
        assert all(tasks.get(name) for name in args.tasks.split(","))
    return {Path(args.workdir).name: args for args in found}


def test_questions_over_several_sources(script):
    for name, recordings in (("ptbxl", 250), ("code15", 200), ("cinc2021", 50), ("cinc2015", 40)):
        script.store(name, recordings, name)
    (script.folder / "ptbxl_of_another_folder").touch()  # patterns are of stores, not of files here
    _, calls = script.run("questions.sh", "--config.training.steps=20")
    made, read = pretrainings(calls), studies(calls)
    stores = script.folder / "run" / "stores"
    assert list(made) == ["default", "hiding_time", "hiding_channel", "hiding_time_and_channel", "one_lead", "ecg",
                          "several_sources", "one_source", "ppg"]  # fmt: skip
    assert {(c.training.steps, c.optimizer.warmup_steps) for c in made.values()} == {(20, 4)}
    weights = {name: {w for w, v in c.data.mask.weights.items() if v} for name, c in made.items()}
    assert weights["hiding_time"] == {"time"} and weights["hiding_time_and_channel"] == {"time", "channel"}
    assert weights["default"] == {"random", "channel", "time", "modality"}
    # half of 500 recordings of three sources are as many as all 250 of the one
    assert made["several_sources"].data.weights == {"ptbxl": 0.5, "code15": 0.5, "cinc2021": 0.5}
    assert made["several_sources"].data.stores == ",".join(str(stores / n) for n in ("ptbxl", "code15", "cinc2021"))
    assert made["one_source"].data.stores == str(stores / "ptbxl")
    assert made["ppg"].tokens.modalities == ("ppg",) and made["default"].tokens.modalities == ("ecg", "ppg")
    assert list(read) == ["read_on_ecg", "sources", "read_on_pulse"]
    words = read["read_on_ecg"].models.split(",")
    work = script.folder / "run" / "questions"
    assert words == [*(f"linear:{work / name}" for name in made if name != "ppg"), f"random:{work / 'default'}"]
    assert read["read_on_ecg"].sensors == "all,1" and read["read_on_ecg"].store == str(stores / "ptbxl")
    assert read["sources"].models.startswith(f"linear:{work / 'several_sources'},linear:{work / 'one_source'},")
    assert read["sources"].tasks == read["read_on_ecg"].tasks and read["sources"].store.count(",") == 2
    assert f"linear:{work / 'ppg'}" in read["read_on_pulse"].models and not read["read_on_pulse"].folds


def test_alarms_are_read_in_folds_where_another_source_has_a_pulse(script):
    for name in ("ptbxl", "cinc2015", "bidmc"):
        script.store(name, 10, name)
    _, calls = script.run("questions.sh")
    made, read = pretrainings(calls), studies(calls)["read_on_pulse"]
    stores, work = script.folder / "run" / "stores", script.folder / "run" / "questions"
    names = ["default_elsewhere", "ecg_elsewhere", "ppg_elsewhere"]
    assert list(made)[-3:] == names and "ppg" not in made
    assert {made[name].data.stores for name in names} == {f"{stores / 'bidmc'},{stores / 'ptbxl'}"}
    assert [made[name].tokens.modalities for name in names] == [("ecg", "ppg"), ("ecg",), ("ppg",)]
    assert (read.folds, read.sensors, read.store) == (5, "all,ecg,ppg", str(stores / "cinc2015"))
    assert read.models.split(",")[:3] == [f"linear:{work / name}" for name in names]


def test_a_single_store_is_asked_what_it_can_answer(script):
    script.store("simulated", 12)
    output, calls = script.run("questions.sh", STEPS="10")
    assert "one source against several is left out" in output
    assert "one_source" not in pretrainings(calls) and list(studies(calls)) == ["read_on_ecg", "read_on_pulse"]
    assert studies(calls)["read_on_pulse"].store == str(script.folder / "run" / "stores")
    assert pretrainings(calls)["default"].training.steps == 10


def test_without_a_pulse_that_question_is_left_out(script):
    script.store("ptbxl", 250, "ptbxl")
    output, calls = script.run("questions.sh")
    assert "whether both are better than one is left out" in output
    assert "ppg" not in pretrainings(calls) and list(studies(calls)) == ["read_on_ecg"]


def test_the_studies_find_their_stores(script):
    for name in ("ptbxl", "ptbxl_extra", "cinc2015", "code15", "bidmc"):
        script.store(name, 10, name)
    fine_tuning, words = "--config.training.steps=3", {"WORKERS": "2", "PRETRAINING": "--config.training.steps=9"}
    _, calls = script.run("evaluate.sh", "recordings", fine_tuning, **words)
    read, stores, run = studies(calls), script.folder / "run" / "stores", script.folder / "run"
    assert stages(calls) == [
        "prepare stores", "train csfm_nano", "evaluate fixed", "train csfm_nano_others", "evaluate folds",
    ]  # fmt: skip
    studied = ",".join(str(stores / name) for name in ("ptbxl", "ptbxl_extra", "cinc2015"))
    assert {name: args.store for name, args in read.items()} == {"fixed": studied, "folds": studied}
    assert {name: args.folds for name, args in read.items()} == {"fixed": 0, "folds": 5}
    assert [args.elsewhere for args in read.values()] == [str(stores / "code15"), None]
    assert {args.workers for args in read.values()} == {2}
    assert {args.sensors for args in read.values()} == {"all,6,3,2,1,ecg,ppg,ecg+ppg"}
    assert {args.tasks for args in read.values()} == {"ptbxl_superclass,ptbxl_sex,ptbxl_age,cinc2015_false_alarm"}
    for name, of in (("fixed", "csfm_nano"), ("folds", "csfm_nano_others")):
        kinds = ["linear", "attention", "finetuned", "scratch", "random", "benchmark_s4", "benchmark_net1d", "trees"]
        words = read[name].models.split(",")
        assert [word.partition(":")[0] for word in words] == kinds and words[0] == f"linear:{run / of}"
    assert {word for call in calls if call[0] == "evaluate" for word in parsed(call)[1]} == {fine_tuning}
    made = pretrainings(calls)
    assert made["csfm_nano"].data.stores == str(stores) and made["csfm_nano"].training.steps == 9
    # no patient of a fold is among those that its encoder was pretrained on
    assert made["csfm_nano_others"].data.stores == f"{stores / 'code15'},{stores / 'bidmc'}"
    assert made["csfm_nano_others"].training.steps == 1500


@pytest.mark.parametrize(
    "environment, sensors",
    [
        ({"STUDY_TASKS": "ptbxl_superclass"}, "all,6,3,2,1"),
        ({"STUDY_STORES": "ptbxl*"}, "all,6,3,2,1"),
        ({"STUDY_STORES": "cinc2015*"}, "all,ecg,ppg,ecg+ppg"),
        ({"STUDY_SENSORS": "all,2"}, "all,2"),
    ],
)
def test_sensors_are_those_that_the_tasks_read(script, environment, sensors):
    for name in ("ptbxl", "cinc2015"):
        script.store(name, 10, name)
    _, calls = script.run("evaluate.sh", "recordings", FOLDS="0", **environment)
    assert studies(calls)["fixed"].sensors == sensors


def test_folds_are_left_out_where_nothing_else_is_to_pretrain_on(script):
    script.store("ptbxl", 10, "ptbxl")
    output, calls = script.run("evaluate.sh", "recordings")
    assert stages(calls) == ["prepare stores", "train csfm_nano", "evaluate fixed"]
    assert studies(calls)["fixed"].sensors == "all,6,3,2,1"  # a pulse is refused where there is none
    (said,) = [line for line in output.splitlines() if "left out" in line]
    assert "no other source to pretrain on" in said
    script.store("sph", 10, "sph")
    output, calls = script.run("evaluate.sh", "recordings", FOLDS="0")
    assert len(stages(calls)) == 6 and "FOLDS=0" in output  # these three a second time


def test_the_study_of_a_simulated_cohort(script):
    script.store("simulated", 12)
    output, calls = script.run("evaluate.sh", "simulated")
    assert stages(calls) == ["prepare stores", "train csfm_nano", "evaluate fixed"]
    read = studies(calls)["fixed"]
    assert read.tasks == "simulated_rhythm,simulated_heart_rate" and read.store == str(script.folder / "run" / "stores")


@pytest.mark.parametrize("environment", [{}, {"STUDY_STORES": "mine*"}])
def test_where_nothing_can_be_studied_nothing_is_trained(script, environment):
    script.store("mine", 12, "mine")
    output, calls = script.run("evaluate.sh", "recordings", code=1, **environment)
    assert stages(calls) == ["prepare stores"] and "nothing was studied" in output and "STUDY_TASKS" in output
    _, calls = script.run("evaluate.sh", "recordings", STUDY_STORES="mine*", STUDY_TASKS="ptbxl_sex")
    assert stages(calls)[-1] == "evaluate fixed" and studies(calls)["fixed"].sensors == "all,6,3,2,1"


def test_fine_tunings_of_a_study_that_is_told_nothing(script):
    script.store("ptbxl", 10, "ptbxl")
    _, calls = script.run("evaluate.sh", "recordings")
    words = parsed(calls[-1])[1]
    made = config.load("benchmark_s4", words)
    assert (made.data.rows, made.training.keep_best, made.optimizer.learning_rate) == (16, "first", 1e-3)
    assert made.training.steps % made.training.eval_every == 0  # the last step is among those that are compared


@pytest.mark.parametrize(
    "name, at",
    [
        ("evaluate.sh", "csfm_nano"),
        ("evaluate.sh", "fixed"),
        ("questions.sh", "default"),
        ("questions.sh", "read_on_ecg"),
    ],
)
def test_what_a_signal_has_stopped_is_read_by_no_stage_after_it(script, name, at):
    for store in ("ptbxl", "code15"):
        script.store(store, 10, store)
    words = ["recordings"] if name == "evaluate.sh" else []
    _, calls = script.run(name, *words, code=75, ENDS_AT=at, ENDS_WITH="75")
    assert stages(calls)[-1].split()[1] == at
    # cells that failed are told of, and the figures of the others made
    (script.folder / "calls").unlink()
    _, calls = script.run(name, *words, code=1, ENDS_AT=at, ENDS_WITH="1")
    assert (stages(calls)[-1].split()[1] == at) == (at in ("csfm_nano", "default"))
