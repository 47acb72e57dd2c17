"""Signals before a run can save anything, and errors of one of several processes, told and followed by the others.

The processes run `csfm train` with another command in its place, which imports next to nothing.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

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
    companions.GRACE = 0.2
    companions.join()
    while True:
        process_allgather(numpy.array(jax.process_index()))
        if jax.process_index() == int(args.of):
            raise OSError(errno.ENOSPC, "No space left on device", "/disk/checkpoints")

def arguments(parser):
    for name in ("step", "of", "stopped-code"):
        parser.add_argument(f"--{name}")

command = types.ModuleType("csfm_jax.commands.train")
command.run, command.arguments = run, arguments
sys.modules[command.__name__] = sys.modules["csfm_jax.commands.prepare"] = command
sys.exit(cli.main(sys.argv[1:]))
"""


def start(*words: str, **environment: str) -> subprocess.Popen:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *words], env=environment, **pipes)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_before_the_first_step_is_one_line_and_the_code_of_a_stop(name):
    stopped = start("train", "--step=signal", f"--of={name}", "--stopped-code", "75")
    assert stopped.communicate(timeout=60) == ("", f"csfm train: stopped by {name}; the same command goes on\n")
    assert stopped.returncode == 75


def test_other_commands_are_left_to_python():
    stopped = start("prepare", "--step=signal", "--of=SIGTERM")
    assert stopped.communicate(timeout=60) == ("", "")
    assert stopped.returncode == -signal.SIGTERM


def test_a_process_that_cannot_go_on_ends_the_others_which_say_which_one_and_why():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # as one of SLURM's, whose variables JAX reads
    of_job = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    of_job["JAX_COORDINATOR_ADDRESS"] = address
    processes = [
        start("train", "--step=several", "--of=0", **of_job, SLURM_PROCID=str(n), SLURM_LOCALID=str(n)) for n in (0, 1)
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 1], said
    why = "csfm train: /disk/checkpoints: found no space left on device; expected room"
    assert why in said[0] and "Traceback" not in said[0]
    assert f"csfm: process 0 has ended, and this one with it: {why}" in said[1]


def test_processes_that_did_not_come_to_a_barrier_are_read_from_its_error():
    said = "# of tasks that reached the barrier: 2/4.\nThe first task at the barrier: 0. Some timed out task names:\n"
    assert late_processes("DEADLINE_EXCEEDED: Barrier timed out. " + said + "12\n3\n\n\nRPC: /Barrier/2\n4") == [
        3,
        4,
        12,
    ]
    assert late_processes(said + "/job:jax_worker/replica:0/task:3\n") == [3]
    assert late_processes("UNAVAILABLE: Socket closed\n0") == []
