"""Signals before a run can save anything, and errors of one of several processes, told and followed by the others.

The processes run `csfm train` with another command in its place, which imports next to nothing.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from csfm_jax.training.companions import late_processes

PROGRAM = """
import errno, os, signal, sys, types
from csfm_jax import cli

def run(args):
    if args.step == "signal":
        os.kill(os.getpid(), getattr(signal, args.of))
        return 3
    import jax, numpy
    from jax.experimental.multihost_utils import process_allgather
    from csfm_jax.training import companions
    companions.GRACE, companions.before_end = 0.2, lambda: print("sealed")
    companions.join()
    while True:
        process_allgather(numpy.array(jax.process_index()))
        if jax.process_index() == int(args.of):
            raise OSError(errno.ENOSPC, "No space left on device", "/disk/checkpoints")

def arguments(parser):
    for name in ("step", "of", "workdir", "stopped-code"):
        parser.add_argument(f"--{name}")

command = types.ModuleType("csfm_jax.commands.train")
command.run, command.arguments = run, arguments
for name in ("train", "prepare", "evaluate"):
    sys.modules[f"csfm_jax.commands.{name}"] = command
sys.exit(cli.main(sys.argv[1:]))
"""


def start(*words: str, log: int | IO = subprocess.PIPE, **environment: str) -> subprocess.Popen:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": log, "text": True}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *words], env=environment, **pipes)


@pytest.mark.parametrize("command, name", [("train", "SIGTERM"), ("train", "SIGINT"), ("evaluate", "SIGTERM")])
def test_a_signal_before_the_first_step_is_one_line_and_the_code_of_a_stop(command, name):
    stopped = start(command, "--step=signal", f"--of={name}", "--workdir=w", "--stopped-code", "75")
    assert stopped.communicate(timeout=60) == ("", f"csfm {command}: stopped by {name}; the same command goes on\n")
    assert stopped.returncode == 75


@pytest.mark.parametrize("words", [("prepare", "--workdir=w"), ("evaluate",)])  # the latter: a probe, with no folder
def test_other_commands_are_left_to_python(words):
    stopped = start(*words, "--step=signal", "--of=SIGTERM")
    assert stopped.communicate(timeout=60) == ("", "")
    assert stopped.returncode == -signal.SIGTERM


def several(tasks: int = 2) -> list[dict[str, str]]:
    """The environment of each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # as one of SLURM's, whose variables JAX reads
    of_job = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(tasks)}
    of_job["JAX_COORDINATOR_ADDRESS"] = address
    return [of_job | {"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)} for n in range(tasks)]


def test_a_process_that_cannot_go_on_ends_the_others_which_say_which_one_and_why():
    processes = [start("train", "--step=several", "--of=0", **own) for own in several()]
    printed, said = zip(*(process.communicate(timeout=120) for process in processes))
    assert all(lines.endswith("sealed\n") for lines in printed), printed
    assert [process.returncode for process in processes] == [2, 1], said
    why = "csfm train: /disk/checkpoints: found no space left on device; expected room"
    assert why in said[0] and "Traceback" not in said[0]
    assert f"csfm: process 0 has ended, and this one with it: {why}" in said[1]


def test_they_end_where_their_log_is_on_the_full_disk_too():
    with open("/dev/full", "w") as full:
        processes = [start("train", "--step=several", "--of=0", log=full, **own) for own in several()]
        try:
            assert [process.wait(timeout=60) for process in processes] == [2, 1]
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def test_processes_that_did_not_come_to_a_barrier_are_read_from_its_error():
    said = "# of tasks that reached the barrier: 2/4.\nThe first task at the barrier: 0. Some timed out task names:\n"
    assert late_processes("DEADLINE_EXCEEDED: Barrier timed out. " + said + "12\n3\n\n\nRPC: /Barrier/2\n4") == [
        3,
        4,
        12,
    ]
    assert late_processes(said + "/job:jax_worker/replica:0/task:3\n") == [3]
    assert late_processes("UNAVAILABLE: Socket closed\n0") == []
