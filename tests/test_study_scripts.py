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
        csfm.write_text(f"#!/bin/sh\nprintf '%s\\037' \"$@\" >> '{folder / 'calls'}'\necho >> '{folder / 'calls'}'\n")
        csfm.chmod(0o755)
        (folder / "bin" / "python").symlink_to(sys.executable)

    def store(self, name: str, train_recordings: int, at: str = "") -> None:
        place = self.folder / "run" / "stores" / at
        place.mkdir(parents=True, exist_ok=True)
        values = {"name": name, "totals": {"splits": {"train": train_recordings}}}
        (place / "manifest.json").write_text(json.dumps(values, indent=0))

    def run(self, script: str, *words: str, **environment: str) -> tuple[str, list[list[str]]]:
        """Output, and the words of every call of csfm."""
        path = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", ROOT / "launch" / script, self.folder / "run", *words], env=os.environ | path | environment,
            cwd=self.folder, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout, [
            line.split("\037")[:-1] for line in (self.folder / "calls").read_text().strip("\n").split("\n")
        ]


@pytest.fixture
def script(tmp_path):
    return Script(tmp_path)


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
    assert f"linear:{work / 'ppg'}" in read["read_on_pulse"].models


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


def test_the_study_finds_its_stores(script):
    for name in ("ptbxl", "ptbxl_extra", "cinc2015", "code15"):
        script.store(name, 10, name)
    _, calls = script.run("evaluate.sh", "simulated", "--config.training.steps=3", WORKERS="2")
    read, stores = studies([c for c in calls if c[0] == "evaluate"]), script.folder / "run" / "stores"
    assert [call[0] for call in calls] == ["prepare", "train", "evaluate", "evaluate"]
    assert read["ptbxl"].store == f"{stores / 'ptbxl'},{stores / 'ptbxl_extra'}"
    assert (read["ptbxl"].elsewhere, read["alarms"].elsewhere) == (str(stores / "code15"), None)
    assert read["alarms"].store == str(stores / "cinc2015") and {a.workers for a in read.values()} == {2}
    assert {word for call in calls[2:] for word in parsed(call)[1]} == {"--config.training.steps=3"}


def test_fine_tunings_of_a_study_that_is_told_nothing(script):
    script.store("ptbxl", 10, "ptbxl")
    _, calls = script.run("evaluate.sh", "simulated")
    words = parsed(calls[-1])[1]
    made = config.load("benchmark_s4", words)
    assert (made.data.rows, made.training.keep_best, made.optimizer.learning_rate) == (16, "first", 1e-3)
    assert made.training.steps % made.training.eval_every == 0  # the last step is among those that are compared
