"""One study by several commands at once: each cell is run by one of them, and all end with the same figures."""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from small_checkpoints import toy_config, write_checkpoint
from test_study import PEOPLE, cohort, table, words

from csfm_jax import cli
from csfm_jax.evaluation import cell_tables, cells
from csfm_jax.evaluation import study as study_lib
from csfm_jax.evaluation.cell import SPLITS, TRAINED, Settings
from csfm_jax.training import claim
from csfm_jax.training.claim import Held, locked
from data_pipelines import storage
from data_pipelines.store import open_stores


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    cohort(folder / "stores", patients=24)
    write_checkpoint(folder / "toy", toy_config(), people=PEOPLE)
    return folder


@pytest.fixture
def planned(place, tmp_path):
    stores = open_stores(str(place / "stores"), "size")
    settings = Settings(str(place / "stores"), stores, [], 0, True, tmp_path / "features", 0, 0)
    models = f"linear:{place / 'toy'},random:{place / 'toy'},trees"
    return study_lib.plan(settings, "simulated_rhythm,simulated_heart_rate", models, "all", None, tmp_path / "study")


@pytest.fixture
def ran(monkeypatch):
    """Cells in the order in which they were run, by name of the thread; what `outcome` says comes of each."""
    seen, outcome, at_work, together = [], {}, set(), threading.Barrier(2, timeout=30)

    def run(cell):
        seen.append((threading.current_thread().name, cell.folder))
        assert cell.folder not in at_work
        at_work.add(cell.folder)
        if len(seen) <= 2:
            together.wait()  # both are at a cell
        cell.note({"weights": {}, "left_out": {}, **outcome.get(cell.model.word, {"failed": None})})
        at_work.remove(cell.folder)

    monkeypatch.setattr(cells, "run", run)
    return seen, outcome


def both(planned):
    threads = [threading.Thread(target=study_lib.run, args=([planned],), name=name) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_each_command_takes_cells_that_no_other_is_at(planned, ran):
    both(planned)
    assert {name for name, _ in ran[0]} == {"a", "b"} and not any(cell.status["failed"] for cell in planned.cells)
    # a complete one may be met again, which makes nothing
    assert {folder for _, folder in ran[0]} == {cell.folder for cell in planned.cells}
    assert len({folder for _, folder in ran[0][:2]}) == 2


def test_what_one_command_has_failed_at_the_other_does_not_try_again(planned, ran):
    seen, outcome = ran
    outcome |= {model.word: {"failed": "it cannot be"} for model in planned.models}
    both(planned)
    assert len(seen) == len(planned.cells) == len(planned.failures)
    study_lib.run([planned])  # a later command does
    assert len(seen) == 2 * len(planned.cells)


def test_where_one_command_broke_the_other_tries(planned, ran):
    seen, outcome = ran
    outcome |= {model.word: {"failed": "an error", "broke": True} for model in planned.models}
    both(planned)
    assert {seen.count((name, cell.folder)) for name in "ab" for cell in planned.cells} == {1}


def test_a_cell_whose_folder_is_removed_meanwhile_is_run(planned, monkeypatch):
    for cell in planned.cells:
        cell.note({"weights": {}, "failed": "of other weights: remove the folder"})
    seen = []

    def run(cell):
        seen.append(cell.folder)
        cell.note({"weights": {}, "left_out": {}, "failed": None})
        if cell is planned.cells[0]:
            shutil.rmtree(planned.cells[-1].folder)

    monkeypatch.setattr(cells, "run", run)
    study_lib.run([planned])
    assert seen == [cell.folder for cell in planned.cells]


def test_what_another_command_wants_more_of_a_cell_is_no_failure_here(planned):
    cell = planned.cells[0]
    for unfinished in ({"unfinished": "it cannot be"}, {}):
        cell.note({"weights": {}, "left_out": {}, "failed": None, **unfinished})
        assert cell.failure == unfinished.get("unfinished", "not finished")
    for split in SPLITS:
        storage.write_bytes(cell.file(cell.subsets[0], TRAINED, split), b"")
    cell.note({"weights": {}, "left_out": {}, "failed": None, "unfinished": "it cannot be"})
    assert cell.failure is None


def test_what_an_ended_command_has_left_is_gone_on_with(planned, monkeypatch, capsys):
    left, seen, looked = planned.cells[0], [], []

    def run(cell):
        seen.append(cell.folder)
        cell.note({"weights": {}, "left_out": {}, "failed": None})
        if cell is planned.cells[-1]:
            left.note({"weights": {}, "failed": "not finished"})

    def sleep(seconds):
        looked.append(seconds)
        if len(looked) == 3:
            other.kill()
            other.wait()

    monkeypatch.setattr(study_lib.time, "sleep", sleep)
    monkeypatch.setattr(cells, "run", run)
    left.folder.mkdir(parents=True)
    held = "import pathlib, sys; from csfm_jax.training.claim import locked\n"
    held += "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", held, str(left.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        study_lib.run([planned])
    assert seen == [cell.folder for cell in [*planned.cells[1:], left]] and len(looked) == 3
    assert "left to another command" in capsys.readouterr().out


def test_patience_is_what_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claim, "PATIENCE", 0.0)
    held, enough = threading.Event(), threading.Event()

    def hold():
        with locked(tmp_path):
            held.set()
            enough.wait(timeout=60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(timeout=60)
    with pytest.raises(Held, match="another run is writing"), locked(tmp_path, 0):
        pass
    with locked(tmp_path, math.inf, ".another"):
        pass
    threading.Timer(0.3, enough.set).start()
    with locked(tmp_path, math.inf):
        assert enough.is_set()
    thread.join()
    assert f"waiting for process {os.getpid()}" in capsys.readouterr().out


def test_a_lock_that_was_removed_is_no_lock(tmp_path):
    (tmp_path / "cell").mkdir()
    held, enough = threading.Event(), threading.Event()

    def hold():
        with locked(tmp_path / "cell"):
            held.set()
            enough.wait(timeout=60)

    first = threading.Thread(target=hold)
    first.start()
    assert held.wait(timeout=60)
    taken = []

    def wait():
        with locked(tmp_path / "cell", math.inf):
            taken.append(1)

    second = threading.Thread(target=wait)
    second.start()
    time.sleep(0.3)  # it has the file open
    shutil.rmtree(tmp_path / "cell")
    (tmp_path / "cell").mkdir()
    with locked(tmp_path / "cell", 0):
        enough.set()
        time.sleep(0.5)
        assert not taken
    second.join(timeout=60)
    first.join(timeout=60)
    assert taken


def test_features_are_made_by_one_of_two(planned, monkeypatch):
    made, trees = [], [cell for cell in planned.cells if cell.model.word == "trees"][:1]

    def classical(cell, stores):
        made.append(threading.current_thread().name)
        time.sleep(0.5)  # the others are there by now
        return cell_tables.tabular.Table(*(np.zeros(3, np.int64) for _ in range(3)), np.zeros((3, 2)))

    monkeypatch.setattr(cell_tables, "_classical", classical)
    tables = []

    def read():
        tables.append(list(cell_tables._tables(trees[0], trees[0].subsets, trees[0].settings.stores)))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(made) == 1 and len(tables) == 4
    (kept,) = trees[0].settings.features.rglob("*.npz")
    torn = [kept.with_name(f".{kept.name}.{end}") for end in ("abcd1234", "efgh5678")]
    for left in [kept, *torn]:
        left.unlink(missing_ok=True)
    for left in torn:
        left.write_bytes(b"of a killed command")
    os.utime(torn[0], (0, 0))
    read()
    assert kept.exists() and not torn[0].exists() and torn[1].exists()  # somebody may be writing it


def test_two_commands_end_with_the_figures_of_one(place, tmp_path):
    models = f"--models=linear:{place / 'toy'},random:{place / 'toy'},attention:{place / 'toy'},trees"
    given = (models, "--tasks=simulated_rhythm,simulated_heart_rate", "--sensors=all")
    assert cli.main(words(place, tmp_path / "alone", *given)) == 0
    command = [sys.executable, "-m", "csfm_jax.cli", *words(place, tmp_path / "shared", *given)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=500)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    alone, shared = table(tmp_path / "alone"), table(tmp_path / "shared")
    assert alone.equals(shared)
    made = [json.loads(path.read_text()) for path in (tmp_path / "shared" / "cells").glob("*/*/cell.json")]
    assert len(made) == 8 and all(cell["failed"] is None for cell in made)
