"""One of several processes that ends by an error tells the others, which say who is gone and end too, soon.

Left to themselves they would wait: it for the others at its end (five minutes), and they for it in the next step's
collective, until it has given no sign for 100 s. So each process looks once a second at the service that all are
connected to. Whoever cannot go on writes there why. Then a roll is called, which the threads that look answer, whatever
their process waits for: who does not answer is gone. That is how a process is named whose connection broke off.
(When process 0 itself is killed the service is gone, too, and JAX's runtime ends the others, naming "the leader".)
"""

import atexit
import contextlib
import json
import multiprocessing
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable

import jax
from jax._src import distributed  # the client of the service has no public name

from csfm_jax.starting import killed_by_signals
from data_pipelines.errors import BadInput

WAITED = 30.0  # seconds, then it is said; after 300 JAX ends the process
EVERY = 1.0  # seconds between two looks
GRACE = 2.0  # seconds; an error that all processes have ends each of them with its own line
ROLL_CALL = 10.0  # seconds to answer; a machine may be busy
LAST = 1.0  # seconds that process 0 leaves the others to end first
ANOTHER_IS_GONE = 1  # exit code; the one that tells what to do about it is that of the process with the error

# Called before an error, a companion's or an own one, ends this process: lets it finish what needs no companion.
before_end: Callable[[], None] | None = None

_KEY = "csfm/ending"
_listener: "Listener | None" = None


def join() -> None:
    """Makes this process one of several (`jax.distributed.initialize`), which from then on listens to the others.

    Raises:
        BadInput: nothing says who takes part, or the others do not come.
    """
    global _listener
    waiting = threading.Timer(WAITED, _say_waiting)
    waiting.daemon = True
    waiting.start()
    try:
        with killed_by_signals():
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        found = f"nobody to join ({_first_line(error)})"
        expected = "a TPU pod, SLURM or Open MPI, which say who takes part"
        remedy = "start every process with srun, mpirun or the files of `csfm launch render`; one alone goes without"
        raise BadInput("--distributed", found, expected, remedy) from error
    finally:
        waiting.cancel()
    if distributed.global_state.num_processes > 1:
        _listener = Listener(distributed.global_state.client, distributed.global_state.process_id)


def stand_down() -> None:
    """Says that this process is about to end by itself, which may take it a while: what it hears ends it no more."""
    if _listener is not None:
        _listener.stopped.set()


def leave(command: str, error: BaseException, line: str | None, code: int) -> None:
    """Ends this process now and tells the others, where there are any; else it does nothing.

    Args:
        command: what the line begins with. error: why. line: to print; None where there is only the error's traceback,
            after which a line names the processes that are gone, if some are. code: exit code.
    """
    if _listener is None:
        return
    _listener.stopped.set()
    _listener.ending.acquire()  # for good: one thread ends the process
    _listener.tell(line)  # first: the log may be on the disk that is full
    _say(line or "".join(traceback.format_exception(error)).rstrip())
    gone = _listener.call_roll()
    if gone and not line:
        _say(f"{command}: {_named(gone)} ({_first_line(error)})")
    _exit(code)


class Listener:
    """Ends this process when another one has said that it cannot go on.

    Args:
        client: of the service of `jax.distributed`. number: of this process.

    Attributes:
        stopped: an event that ends the listening. ending: a lock; its holder ends the process.
    """

    def __init__(self, client, number: int):
        self._client, self._number = client, number
        self.stopped, self.ending = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._listen, daemon=True, name="listen-to-companions")
        self._thread.start()
        atexit.register(self._end)  # runs before JAX's own, which is older and ends the client

    def _end(self) -> None:
        self.stopped.set()
        self._thread.join()

    def tell(self, line: str | None) -> None:
        """Says why this process ends: its line; None: something broke, perhaps because another one is gone."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one was first; or process 0 is gone
            self._client.key_value_set(_KEY, json.dumps({"process": self._number, "line": line}))

    def call_roll(self) -> list[int]:
        """The processes that do not answer; process 0 where its service does not."""
        try:
            self._client.wait_at_barrier(_KEY, int(1000 * ROLL_CALL))
        except jax.errors.JaxRuntimeError as error:
            return late_processes(str(error)) or [0]
        return []

    def _listen(self) -> None:
        while not self.stopped.wait(EVERY):
            # nothing has been said; or process 0 is gone, and its service, for which JAX's runtime ends this process
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                said = json.loads(self._client.key_value_try_get(_KEY))
                if not self.stopped.wait(GRACE):
                    with self.ending:
                        self._follow(**said)

    def _follow(self, process: int, line: str | None) -> None:
        if self.stopped.is_set():
            return
        if line:
            _say(f"csfm: process {process} has ended, and this one with it: {line}")
        gone = self.call_roll()
        if not line:
            why = _named(gone) if gone else f"process {process} has ended by an error, and this one with it"
            _say(f"csfm: {why}")
        _exit(ANOTHER_IS_GONE)


def late_processes(message: str) -> list[int]:
    """Who has not come to a barrier, from the message of the error that it ended with."""
    # The coordination service names first who has come, then a line for each of "Some timed out task names".
    late = message.partition("timed out task names")[2]
    return sorted({int(number) for number in re.findall(r"^(?:\S*task:)?(\d+)$", late, re.MULTILINE)})


def _named(gone: list[int]) -> str:
    processes = "process" if len(gone) == 1 else "processes"
    return (
        f"{processes} {', '.join(map(str, gone))}: found gone; expected all {distributed.global_state.num_processes}; "
        "look at the log there, then give the same command again: it goes on from the last checkpoint"
    )


def _say_waiting() -> None:
    run = distributed.global_state
    who = f"process {run.process_id} has waited {WAITED:g} s for the others at {run.coordinator_address}"
    _say(f"csfm: {who}; expected {run.num_processes} processes; look whether all were started, and what they say")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a full disk, a reader that is gone, a closed stream
        print(line, file=sys.stderr, flush=True)


def _exit(code: int) -> None:
    """After `before_end` at once: an orderly exit waits for threads and processes that wait for those that are gone."""
    if before_end:
        before_end()
    for child in multiprocessing.active_children():  # workers that read the data
        child.kill()
    if distributed.global_state.process_id == 0:
        time.sleep(LAST)  # its service ends with it, for which JAX's runtime would end those that are still about to
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
