"""One run at a time in a work directory: a second would take the first's unfinished checkpoint for a killed run's, and
both would write the same lines.

In a folder a lock says so (flock on `.lock`), which ends with its process. An object store has no locks: there
`claim.json` does, which its run renews as long as it lives. Whoever finds one waits a few renewals: if it is renewed,
the run is refused; if not, that run was killed, and this one goes on in its place. Clocks of hosts are not compared.
"""

import contextlib
import fcntl
import json
import math
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from data_pipelines import storage
from data_pipelines.errors import BadInput
from data_pipelines.storage import Place

LOCK, CLAIM = ".lock", "claim.json"
PATIENCE = 10.0  # seconds that a process which is being killed may take to let its lock go
BEAT = 15.0  # seconds between renewals
SILENCE = 4  # so many times `BEAT` without one: that run is gone


class Held(BadInput):
    """Another process holds a lock."""


@contextlib.contextmanager
def locked(folder: Path, patience: float | None = None, name: str = LOCK) -> Iterator[None]:
    """Holds the lock of a folder, or one of several in it.

    Args:
        patience: seconds to wait for another process to let it go; None = `PATIENCE`. name: of the lock's file.

    Raises:
        Held: another process holds it; names that process.
    """
    path, until = folder / name, time.monotonic() + (PATIENCE if patience is None else patience)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(handle, folder, until)
        while not _is_there(handle, path):  # somebody has removed it, and another process may have made it anew
            gone, handle = handle, os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            os.close(gone)
            _take(handle, folder, until)
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(_self()).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):  # a disk without locks
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing alone would leave it to a process that was forked meanwhile
        os.close(handle)


def _is_there(handle: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), os.stat(path))
    return False


def _take(handle: int, folder: Path, until: float) -> None:
    told = until < math.inf
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise _taken(folder, _holder(handle)) from None
            if not told:
                print(f"  waiting for {_named(_holder(handle))}, which has the lock of {folder}", flush=True)
            told = True
            time.sleep(0.1)
        except OSError as error:  # some network disks have no locks; a run must be possible there all the same
            found = f"a disk that gives no lock ({(error.strerror or str(error)).lower()})"
            go_on = "the run goes on, and a second one here would not be refused: start none"
            print(f"{folder}: found {found}; expected one that does; {go_on}", file=sys.stderr, flush=True)
            return


class Claim:
    """Says in an object store that a run writes to a work directory; used as a context.

    Args:
        place: the work directory.

    Raises:
        BadInput: a run that lives has it; names host and process.
    """

    def __init__(self, place: str):
        self._place, self._address = place, storage.join(place, CLAIM)
        self._mine, self._beats, self._ended = {**_self(), "run": uuid.uuid4().hex}, 0, threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True, name="renew-claim")

    def __enter__(self):
        self._wait_for_silence(self._read())
        self._write()
        self._renewing.start()
        return self

    def confirm(self) -> None:
        """Raises BadInput where another run has gone on in this one's place, as after a long loss of the network."""
        found = self._read()
        if found and found.get("run") != self._mine["run"]:
            raise _taken(self._place, found)

    def _wait_for_silence(self, first: dict | None) -> None:
        if first is None or _is_dead(first):
            return
        print(f"{self._place}: waiting {SILENCE * BEAT:g} s to see whether {_named(first)} still runs", flush=True)
        for _ in range(SILENCE):
            time.sleep(BEAT)
            if (found := self._read()) is None:
                return
            if found != first:
                raise _taken(self._place, found)

    def _renew(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(BadInput):  # an outage; what another run has taken stays its own
                self.confirm()
                self._write()

    def _write(self) -> None:
        self._beats += 1
        storage.write_bytes(self._address, json.dumps({**self._mine, "beats": self._beats}).encode())

    def _read(self) -> dict | None:
        try:
            return _parsed(storage.read_bytes(self._address))
        except storage.Missing:
            return None

    def __exit__(self, *error) -> None:
        self._ended.set()
        self._renewing.join()
        with contextlib.suppress(BadInput):  # then the next run waits; whatever ended this one is said already
            self.confirm()
            storage.delete_tree(self._address)


def _self() -> dict:
    return {"host": socket.gethostname(), "process": os.getpid()}


def _parsed(data: bytes) -> dict:
    with contextlib.suppress(ValueError):
        if isinstance(found := json.loads(data), dict):
            return found
    return {}


def _holder(handle: int) -> dict:
    return _parsed(os.pread(handle, 1000, 0))


def _named(who: dict) -> str:
    return f"process {who.get('process', '?')} on {who.get('host', '?')}"


def _is_dead(who: dict) -> bool:
    """Whether a process was one of this host, and is gone; False where it cannot be known."""
    if who.get("host") != socket.gethostname() or not isinstance(number := who.get("process"), int):
        return False
    if number == os.getpid():
        return True  # of the container that was here before: this process has its number now
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _taken(place: Place, who: dict) -> Held:
    return Held(
        str(place),
        f"a work directory that another run is writing ({_named(who)})",
        "one that no run is writing",
        "wait until it ends or end it, or choose another --workdir",
    )
