"""Who writes a store does not show in it: processes, jobs of an array, Beam, killed or not."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_prepare import Cohort, content

from csfm_jax import cli
from data_pipelines import runners
from data_pipelines.errors import BadInput
from data_pipelines.prepare import prepare
from data_pipelines.store import Store

OPTIONS = {"shards": 5, "keep_reports": True}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("runners") / "whole"
    prepare(Cohort(damaged=True), path, **OPTIONS)
    return content(path)


def share(path, i, n):
    return prepare(Cohort(damaged=True), path, runner="shard", share=(i, n), **OPTIONS)


def test_jobs_of_an_array_in_any_order(whole, tmp_path):
    states = [share(tmp_path / "s", i, 4) for i in (2, 0, 3, 1)]
    assert [s.state for s in states] == ["partial"] * 3 + ["written"]
    assert [s.missing for s in states] == [4, 2, 1, 0]
    assert "3 shards" not in str(states[0]) and "4 shards of other jobs" in str(states[0])
    assert content(tmp_path / "s") == whole
    assert share(tmp_path / "s", 1, 4).state == "verified"


def test_jobs_at_the_same_time(whole, tmp_path):
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=share, args=(tmp_path / "s", i, 4)) for i in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * 4
    # two that end in the same moment may each leave the end to the other: any further call finishes
    prepare(Cohort(damaged=True), tmp_path / "s", **OPTIONS)
    assert content(tmp_path / "s") == whole


def test_a_local_run_finishes_what_jobs_left(whole, tmp_path):
    share(tmp_path / "s", 0, 2)
    prepare(Cohort(damaged=True), tmp_path / "s", **OPTIONS)
    assert content(tmp_path / "s") == whole


def test_a_local_run_and_a_job_do_not_meet(tmp_path, monkeypatch):
    def run_local(*_):
        with pytest.raises(BadInput, match="another run writing here"):
            share(tmp_path / "s", 0, 2)
        raise KeyboardInterrupt

    monkeypatch.setattr("data_pipelines.prepare.run_local", run_local)
    with pytest.raises(KeyboardInterrupt):
        prepare(Cohort(damaged=True), tmp_path / "s", **OPTIONS)


def test_beam_with_several_processes(whole, tmp_path, monkeypatch):
    pytest.importorskip("apache_beam", reason="the extra [beam] is not installed")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where its processes find the cohort
    options = ["--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    told = []
    prepare(
        Cohort(damaged=True), tmp_path / "s", runner="beam", beam_options=options,
        progress=lambda *done: told.append(done), **OPTIONS,
    )  # fmt: skip
    assert content(tmp_path / "s") == whole and told[-1] == (24, 24)


@pytest.mark.parametrize(
    ("option", "says"),
    [("--runner=Nope", "the runner 'Nope'"), ("--nonsense=3", "'nonsense'"), ("--direct_num_workers=x", "Beam takes")],
)
def test_what_beam_does_not_know_is_refused(tmp_path, option, says):
    pytest.importorskip("apache_beam", reason="the extra [beam] is not installed")
    with pytest.raises(BadInput, match=f"--beam: found .*{says}|--beam: .* expected .*{says}"):
        prepare(Cohort(), tmp_path / "s", runner="beam", beam_options=[option], **OPTIONS)
    assert not (tmp_path / "s" / "manifest.json").exists()


KILLED = """
import sys
sys.path[:0] = {paths!r}
from test_prepare_runners import share
share({path!r}, 0, 1)
"""


def test_killed_at_five_moments(whole, tmp_path, monkeypatch):
    """SIGKILL after so many seconds of a run that is slowed down; then the rest, by another runner."""
    path, root = tmp_path / "s", Path(__file__).resolve().parents[1]
    code = KILLED.format(paths=[str(root), str(root / "tests")], path=str(path))
    kills = 0
    for after in (0, 1, 2, 3, 4):
        child = subprocess.Popen([sys.executable, "-c", code])
        while child.poll() is None and len(list(path.glob(".partial/shard-*.json"))) < after:
            time.sleep(0.001)
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
    assert kills >= 4
    prepare(Cohort(damaged=True), path, workers=2, **OPTIONS)
    assert content(path) == whole


def test_many_shards_are_merged_like_one(tmp_path):
    """The tables do not depend on how many rows are written at a time."""
    prepare(Cohort(), tmp_path / "a", shards=24)
    prepare(Cohort(), tmp_path / "b", shards=1)
    a, b = Store.open(tmp_path / "a"), Store.open(tmp_path / "b")
    order = [store.index.study.argsort() for store in (a, b)]
    for name, values in a.labels().items():
        assert values[order[0]].tolist() == b.labels()[name][order[1]].tolist()
    assert a.manifest["channels"] == b.manifest["channels"] and a.manifest["totals"] == b.manifest["totals"]


def test_shares_are_every_shard_once(monkeypatch):
    shards = [shard for i in range(7) for shard in runners.share_of(range(100), (i, 7))]
    assert sorted(shards) == list(range(100))
    assert runners.parse_share("3/7") == (3, 7)
    for wrong in ("7/7", "-1/3", "1", "a/b", "1/0"):
        with pytest.raises(BadInput, match="--shard"):
            runners.parse_share(wrong)
    with pytest.raises(BadInput, match="--runner=shard"):
        runners.parse_share(None)


@pytest.mark.parametrize(
    ("array", "expected"),  # ID, MIN, MAX, STEP, COUNT
    [
        ((12, 10, 19, 1, 10), (2, 10)), ((20, 0, 30, 10, 4), (2, 4)), ((30, 0, 30, 10, 4), (3, 4)),
        ((7, 7, 7, 1, 1), (0, 1)), ((7, 0, 7, 1, 3), None), ((5, 0, 30, 10, 4), None), ((3, 0, 9, 0, 10), None),
    ],
)  # fmt: skip
def test_the_share_of_a_slurm_array_job(monkeypatch, array, expected):
    for name, value in zip(("ID", "MIN", "MAX", "STEP", "COUNT"), array):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    if expected:
        assert runners.parse_share(None) == expected
    else:
        with pytest.raises(BadInput, match="--shard=i/n"):
            runners.parse_share(None)


@dataclass
class Deadly(Cohort):
    """One recording kills the process that reads it, the first time."""

    marker: str = ""

    def read(self, entry):
        if entry.study.endswith("009") and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(entry)


def test_a_killed_worker_is_replaced(whole, tmp_path):
    source = Deadly(damaged=True, marker=str(tmp_path / "killed"))
    prepare(source, tmp_path / "s", workers=2, **OPTIONS)
    assert (tmp_path / "killed").exists() and content(tmp_path / "s") == whole


def test_workers_that_are_killed_again_are_told_in_one_line(whole, tmp_path, monkeypatch):
    class Pool(runners.ProcessPoolExecutor):
        def submit(self, *_):
            raise runners.BrokenProcessPool

    monkeypatch.setattr(runners, "ProcessPoolExecutor", Pool)
    message = "5 shards are unfinished: 0, 1, 2, 3, 4.*same command again, it goes on"
    with pytest.raises(BadInput, match=message):
        prepare(Cohort(damaged=True), tmp_path / "s", workers=2, **OPTIONS)
    prepare(Cohort(damaged=True), tmp_path / "s", **OPTIONS)
    assert content(tmp_path / "s") == whole


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data_pipelines.datasets.open_sources", lambda *_: [Cohort()])
    words = ["prepare", "--source=x", f"--output={tmp_path / 's'}", "--shards=4"]
    assert cli.main([*words, "--shard=1/2"]) == 0 and "2 shards of other jobs" in capsys.readouterr().out
    assert cli.main([*words, "--runner=shard"]) == 2 and "--shard=i/n" in capsys.readouterr().err
    assert cli.main([*words, "--runner=local", "--shard=0/2"]) == 2
    assert cli.main([*words, "--beam=--x"]) == 2 and "--runner=beam" in capsys.readouterr().err
    assert cli.main([*words, "--shard=0/2"]) == 0 and "24 recordings" in capsys.readouterr().out


def test_a_part_file_of_another_shard_count_is_not_taken(tmp_path):
    share(tmp_path / "s", 0, 2)
    with pytest.raises(BadInput, match="another shards"):
        prepare(Cohort(damaged=True), tmp_path / "s", shards=4, keep_reports=True)
