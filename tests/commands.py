"""`csfm` commands as processes of their own. Half of a small command is importing: that is done once, and forked."""

import atexit
import multiprocessing
import os
import sys
import uuid
from pathlib import Path

from csfm_jax import cli

# A clean process, without JAX's threads, which imports and is forked for each command.
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    ["csfm_jax.cli", "csfm_jax.commands.train", "csfm_jax.commands.finetune", "csfm_jax.training.loop", "grain"]
)


class Command:
    """A command that was started; what JAX reads of the environment as it is imported is that of the first.

    Args:
        words: after `csfm`. folder: for what it prints.
    """

    def __init__(self, words: list[str], folder: Path):
        name = uuid.uuid4().hex
        self._printed = [folder / f"{name}.{suffix}" for suffix in ("out", "err")]
        self._process = _server.Process(target=_run, args=(words, dict(os.environ), *self._printed))
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def ended(self, limit: float = 300) -> tuple[int, str, str]:
        """Waits; returns the exit code (negative: the signal that ended it) and what it printed and complained of."""
        self._process.join(limit)
        if self.running:
            self._process.kill()
            raise TimeoutError(f"still running after {limit} s")
        return self._process.exitcode, *(path.read_text() for path in self._printed)


def _run(words: list[str], environment: dict[str, str], *printed: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(printed, start=1):
        with open(path, "w") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115 (until it ends)
    sys.argv = ["csfm", *words]
    try:
        sys.exit(cli.main(words))
    finally:
        atexit._run_exitfuncs()  # which a forked process does not run by itself; JAX's and ours are among them
