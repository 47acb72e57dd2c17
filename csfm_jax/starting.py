"""Signals that come before a run can save anything: while Python still imports, and the command reads its files."""

import argparse
import contextlib
import os
import signal
import threading
from collections.abc import Iterator

COMMANDS = ("train", "finetune")  # those that go on when given again, and say so by their exit code
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def ended_by_signals(command: str, words: list[str]) -> Iterator[None]:
    """Within it SIGTERM and Ctrl-C end the process at once, with a line and --stopped-code.

    There is nothing to save yet, and an exception raised anywhere within an import would not come out as one line.
    `training.stopping` takes over when there is. Other commands are left to Python.

    Args:
        command: of `csfm`. words: after it.
    """
    if command not in COMMANDS or threading.current_thread() is not threading.main_thread():
        yield
        return
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--stopped-code", nargs="?")  # what it may be is the command's own matter
    given = parser.parse_known_args(words)[0].stopped_code or ""
    code = int(given) if given.isdecimal() else 0

    def end(number, frame):
        line = f"csfm {command}: stopped by {signal.Signals(number).name}; the same command goes on\n"
        os.write(2, line.encode())  # the stream may be in the middle of a line, and is not to be waited for
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
