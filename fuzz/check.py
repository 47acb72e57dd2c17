"""What must hold of any bytes whatever: a recording or a BadInput, at once, in memory in proportion to the file."""

import contextlib
import importlib
import math
import resource
import signal
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np

from data_pipelines import formats
from data_pipelines.errors import BadInput
from data_pipelines.prepare_shard import prepare_recording
from data_pipelines.recording import Recording

MOST_SECONDS = 1.0  # of the process's own time: another process on the machine is no fault of the reader
MOST_TIMES = 10  # bytes allocated for each byte of the recording's files
FLOOR = 2 << 20  # bytes that any file may take: parsers' tables and buffers
_MOST_PREPARED = 1_000_000  # samples
RESIDENT_FLOOR = 64 << 20  # of resident memory, which only ever grows and which C libraries share


class Failed(Exception):
    """What the reader did instead; the cause is attached where there is one."""


class Costly(Failed):
    """More time or memory than the files allow."""


class _Hung(BaseException):
    """Raised by the timer; no `except Exception` of a reader may swallow it."""


def check(reader: str, folder: Path, main: str) -> str:
    """Reads one recording in every way that there is; "value" or "refused".

    Args:
        reader: name of the module in `data_pipelines.formats`. folder: holds the recording's files and nothing else.
        main: the file to read.

    Raises:
        Failed: another exception, too much time or memory, or a recording that is none.
    """
    try:
        return _check_once(reader, folder, main)
    except Costly:  # what a reader takes it takes each time; a machine that stands still, or a table that doubles, once
        return _check_once(reader, folder, main)


def _check_once(reader: str, folder: Path, main: str) -> str:
    module, path = importlib.import_module(f"data_pipelines.formats.{reader}"), folder / main
    size = sum(file.lstat().st_size for file in folder.iterdir())
    try:
        with _bounded(size), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            formats.find(folder)
            recording = _read(module, path)
        _prepare(recording)
        return "value"
    except BadInput as error:
        if "\n" in str(error):
            raise Failed("a message of several lines") from error
        return "refused"
    except Failed:
        raise
    except _Hung as error:
        raise Costly(f"more than {MOST_SECONDS} s of processor time") from error
    except Exception as error:
        raise Failed(f"{type(error).__name__} in place of BadInput") from error


def _read(module, path: Path) -> Recording:
    """The last of its recordings."""
    if any(file.is_symlink() or file.is_fifo() for file in path.parent.iterdir()):
        # the modules themselves trust the place of a file: `formats.read` looks at it
        _verify(recording := formats.read(path, path.parent))
        return recording
    known = formats.reader_of(path) is module
    if hasattr(module, "parts"):
        module.parts(path)
    if hasattr(module, "person"):
        assert isinstance(module.person(path), str)
    items = module.items(path) if hasattr(module, "items") else [""]
    for item in items[:2]:
        if known and "#" not in item:
            formats.read(f"{path}#{item}" if item else path)
        _verify(recording := module.read(path, item))
    return recording


def _prepare(recording: Recording) -> None:
    """What can be read is prepared, or left out with a reason; samples of a gigabyte of zeros are no test."""
    if sum(len(channel.signal) for channel in recording.channels) <= _MOST_PREPARED:
        prepared = prepare_recording(recording, spec="csfm-jax")[0]
        assert len(prepared.channels) == sum(channel["status"] == "kept" for channel in prepared.report)


def _verify(recording: Recording) -> None:
    assert isinstance(recording, Recording) and recording.channels and recording.subject and recording.study
    for channel in recording.channels:
        assert channel.signal.dtype == np.float32 and channel.signal.ndim == 1
        assert math.isfinite(channel.rate) and channel.rate > 0 and math.isfinite(channel.start)
        assert not np.isinf(channel.signal).any()
    assert all(math.isfinite(value) for value in recording.labels.values())
    assert all(math.isfinite(event.time) and math.isfinite(event.seconds) for event in recording.events)


@contextlib.contextmanager
def _bounded(size: int):
    """Time and memory of what is done inside; Failed where either is beyond its bound."""
    most = max(MOST_TIMES * size, FLOOR)
    own = not tracemalloc.is_tracing()
    if own:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before, resident = tracemalloc.get_traced_memory()[0], _resident()
    begun = time.process_time()

    def ring(number, frame) -> None:
        left = begun + MOST_SECONDS - time.process_time()
        if left <= 0:
            raise _Hung
        signal.setitimer(signal.ITIMER_PROF, left)

    signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        # One that is on its way must neither end the process, as it does by default, nor be raised outside.
        signal.signal(signal.SIGPROF, signal.SIG_IGN)
        seconds, peak = time.process_time() - begun, tracemalloc.get_traced_memory()[1] - before
        if own:
            tracemalloc.stop()
        if seconds > MOST_SECONDS:
            raise Costly(f"{seconds:.1f} s of processor time")
        if peak > most or _resident() - resident > most + RESIDENT_FLOOR:
            grown = _resident() - resident
            raise Costly(f"{peak} bytes allocated, {grown} more of resident memory, for {size} bytes of files")


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
