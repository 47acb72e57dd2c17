"""Signals that come before a run can save anything: while Python still imports, and the command reads its files."""

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

# Those that go on in their --workdir when given again, and say so by their exit code. All files in it are written
# whole, so that they may end at any moment; `evaluate` also measures for hours outside of `training.stopping`.
COMMANDS = ("train", "finetune", "evaluate")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def ended_by_signals(command: str, words: list[str]) -> Iterator[None]:
    """Within it SIGTERM and Ctrl-C end the process at once, with a line and --stopped-code.

    There is nothing to save, and an exception raised anywhere within an import would not come out as one line.
    `training.stopping` takes over while there is. Other commands, and those without --workdir, are left to Python.

    Args:
        command: of `csfm`. words: after it.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workdir", nargs="?")  # what they may be is the command's own matter
    parser.add_argument("--stopped-code", nargs="?")
    given = parser.parse_known_args(words)[0]
    goes_on = command in COMMANDS and given.workdir
    if not goes_on or threading.current_thread() is not threading.main_thread():
        yield
        return
    code = int(given.stopped_code) if (given.stopped_code or "").isdecimal() else 0

    def end(number, frame):
        line = f"csfm {command}: stopped by {signal.Signals(number).name}; the same command goes on\n"
        with contextlib.suppress(OSError):  # a full disk, a reader that is gone
            os.write(2, line.encode())  # the stream may be in the middle of a line, and is not to be waited for
        # `evaluate` has some that measure features, which would wait for ever. The module may be half imported.
        for child in getattr(sys.modules.get("multiprocessing"), "active_children", list)():
            child.kill()
        os._exit(code)

    before = {number: signal.signal(number, end) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is end:
                signal.signal(number, handler)


@contextlib.contextmanager
def killed_by_signals() -> Iterator[None]:
    """Within it they kill, as ever: while the processes of a run wait for each other, no handler of Python's would run.

    Afterwards JAX's preemption service has SIGTERM, which Python does not see, and Ctrl-C is passed on to it: processes
    that have met stop together.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
