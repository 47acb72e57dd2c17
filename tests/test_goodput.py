"""Where the time went, over restarts, on a clock of our own; and the watch beside the loop."""

import subprocess
import sys

import pytest

from csfm_jax.training.goodput import Goodput


class Clock:
    def __init__(self):
        self.at = 1000.0

    def __call__(self):
        return self.at


def test_every_second_has_one_cause_over_a_restart(tmp_path):
    clock = Clock()

    def begin():
        goodput = Goodput(tmp_path / "goodput.json", clock.at, write=True, now=clock)
        clock.at += 3
        goodput.started()
        return goodput

    def step(goodput, number):
        with goodput.spent("data"):
            clock.at += 0.5
        with goodput.spent("compile" if number in (1, 5) else None):
            clock.at += 4 if number in (1, 5) else 1
        if number == 4:
            with goodput.spent("save"):
                clock.at += 2
        goodput.stepped(number)

    first = begin()
    for number in range(1, 8):
        step(first, number)
    first.write()
    clock.at += 60  # killed; the checkpoint of step 4 stands
    second = begin()
    for number in range(5, 10):
        step(second, number)
    values = second.values()
    lost = {name.removeprefix("lost_seconds/"): seconds for name, seconds in values.items() if name != "goodput"}
    # steps 6 and 7 of the second process are done twice, a second each; step 5 is its compilation
    assert lost == {"start": 6, "compile": 12, "data": 6, "save": 2, "evaluate": 0, "down": 60, "again": 2}
    assert values["goodput"] == pytest.approx(1 - 88 / (clock.at - 1000.0))


def test_a_torn_file_costs_no_run(tmp_path):
    (tmp_path / "goodput.json").write_text('{"first": 3')
    clock = Clock()
    goodput = Goodput(tmp_path / "goodput.json", clock.at, write=False, now=clock)
    clock.at += 10
    assert goodput.values()["goodput"] == 1.0
    goodput.write()
    assert (tmp_path / "goodput.json").read_text() == '{"first": 3'  # another process keeps it


HANGS = """
import time
from csfm_jax.config import TrainingConfig
from csfm_jax.training import watching

def a_start_that_hangs():
    time.sleep(1.5)

def a_step_that_hangs():
    time.sleep(1.5)

watching.LONG = 0.3
with watching.Watch(TrainingConfig(hang_seconds=0.2)) as watch:
    a_start_that_hangs()
    for _ in range(2):
        watch.goes_on()
    a_step_that_hangs()
with watching.Watch(TrainingConfig(hang_seconds=0)) as watch:
    watch.goes_on()
    time.sleep(0.5)
time.sleep(0.5)
"""


def test_a_start_and_a_step_that_hang_show_their_stacks():
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stderr.count("Timeout") == 2, done.stderr
    start, step = done.stderr.split("Timeout")[1:]
    assert "a_start_that_hangs" in start and "a_step_that_hangs" in step
