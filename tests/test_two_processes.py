"""`csfm train` in several processes, as a scheduler starts them: what they must agree on, and signals as they start."""

import signal
import time
from pathlib import Path

import pytest
from commands import Command
from test_starting import several

from csfm_jax.training import checkpoint

CONFIG = """
import os
import time
from pathlib import Path

from csfm_jax.training import loop
from tests.tiny import get_config as tiny

HERE = Path(__file__).parent


def open_stores(*args, opened=loop.open_stores):
    (HERE / f"opening-{os.environ['SLURM_PROCID']}").touch()
    while not (HERE / "opened").exists():
        time.sleep(0.02)
    return opened(*args)


def get_config():
    loop.open_stores = open_stores
    (HERE / f"configured-{os.environ['SLURM_PROCID']}").touch()
    return tiny()
"""


class Several:
    """Processes that read one config, whose stores open when `opened` is called.

    Args:
        folder: of the config and the run.
    """

    def __init__(self, folder: Path, stores: Path, monkeypatch):
        self.folder, self._stores, self._monkeypatch = folder, stores, monkeypatch
        (folder / "watched.py").write_text(CONFIG)

    def start(self, *more: list[str], tasks: int = 2) -> list[Command]:
        """One process for each list of words, of `tasks` in all."""
        started = []
        for own, words in zip(several(tasks), more):
            for name, value in own.items():
                self._monkeypatch.setenv(name, value)
            common = [f"--config={self.folder / 'watched.py'}", f"--config.data.stores={self._stores}", "--distributed"]
            started.append(Command(["train", *common, "--stopped-code=75", *words], self.folder))
        return started

    def opened(self) -> None:
        (self.folder / "opened").touch()

    def wait_for(self, name: str, running: list[Command]) -> None:
        while not all((self.folder / f"{name}-{n}").exists() for n in range(len(running))):
            assert all(command.running for command in running), [command.ended() for command in running]
            time.sleep(0.02)


@pytest.fixture
def processes(tiny_stores, tmp_path, monkeypatch):
    return Several(tmp_path, tiny_stores, monkeypatch)


@pytest.mark.parametrize(
    "more, fields",
    [
        (["--config.training.save_every=9", "--config.encoder.remat=full", "--config.data.workers=0"],
         "config.encoder.remat, config.training.save_every"),
        (["--config.objective.weights.ppg=2"], "config.objective.weights.ppg"),  # that process 0 does not have
        (["--workdir=s3://bucket/another"], "--workdir"),
    ],
)  # fmt: skip
def test_processes_that_differ_are_refused_before_a_store_is_opened_and_the_field_is_named(processes, more, fields):
    workdir = "--workdir=s3://bucket/run" if fields == "--workdir" else f"--workdir={processes.folder / 'run'}"
    for command in processes.start([workdir], [workdir, *more]):
        code, out, err = command.ended()
        line = f"csfm train: --config and --workdir: found processes 1 differ from process 0 in {fields}; "
        assert (code, err.count("\n")) == (2, 1) and err.startswith(line), err
        assert out.startswith("devices: 2 x cpu on 2 hosts; process ")  # said first of all
    assert not list(processes.folder.glob("opening-*"))


def test_a_signal_to_one_as_stores_are_opened_is_heard_by_all_after_the_first_step(processes):
    workdir = processes.folder / "run"
    running = processes.start(*[[f"--workdir={workdir}"]] * 2)
    processes.wait_for("opening", running)
    running[1].send_signal(signal.SIGTERM)
    processes.opened()
    for number, command in enumerate(running):
        code, _, err = command.ended()
        lines = err.splitlines()  # of JAX, in the process that had the signal; none of the other
        assert code == 75 and len(lines) == number and all("SIGTERM caught" in line for line in lines), err
    assert checkpoint.finished_steps(workdir / "checkpoints") == [1]


def test_a_signal_kills_processes_that_wait_for_each_other_to_join(processes):
    running = processes.start(*[["--workdir=run"]] * 2, tasks=3)  # the third does not come
    processes.wait_for("configured", running)
    for command in running:
        while caught(command, signal.SIGTERM):
            time.sleep(0.02)
        command.send_signal(signal.SIGTERM)
    for command in running:
        assert command.ended() == (-signal.SIGTERM, "", "")


def caught(command: Command, number: signal.Signals) -> bool:
    """Whether a process handles a signal itself."""
    status = Path(f"/proc/{command.pid}/status").read_text()
    (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (number - 1) & 1)
