"""Files of remote stores, kept on this host: fetched whole, checked on the way, shared by its processes.

The folder (CSFM_CACHE, ~/.cache/csfm/stores without) holds one file for each content, named by its SHA-256, so that
stores share what they have in common and a changed store never meets old files. A file is written under the name
`<sha256>.part`, which nobody trusts, and renamed once its content is right. Whoever uses a file holds a shared lock on
it; whoever fetches or removes it, an exclusive one. Locks (flock) end with their process, however that ends.

The files together stay below CSFM_CACHE_GB (10^9 bytes each; without it, a reserve of the disk stays free): the least
recently used go first. Files in use stay, so that processes may exceed the limit by what they have open.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from data_pipelines.errors import BadInput
from data_pipelines.storage import download_into

_PART = ".part"
_RESERVE = 20 * 10**9  # bytes, or a tenth of a smaller disk: left free where no limit is set


class Lease:
    """A file of the cache; it stays there for as long as this object is alive.

    Attributes:
        path: the file, to be read only.
    """

    def __init__(self, path: Path, handle: int):
        self.path, self._handle, self._process = path, handle, os.getpid()

    def __del__(self):
        if os.getpid() == self._process:
            _unlock(self._handle)  # in a process forked meanwhile the lease is still the first one's
        os.close(self._handle)


class StoreCache:
    """The cache of this host, as the environment describes it.

    Raises:
        BadInput: CSFM_CACHE_GB is not a positive number.
    """

    def __init__(self):
        self.folder = Path(os.environ.get("CSFM_CACHE") or Path.home() / ".cache" / "csfm" / "stores")
        self._limit = _limit(os.environ.get("CSFM_CACHE_GB"))

    def take(self, address: str, size: int, sha256: str, spare: Callable[[], bool] = lambda: False) -> Lease:
        """A file, fetched if need be.

        Args:
            address: where it comes from. size: in bytes. sha256: of its content, in hex.
            spare: called when there is no room; lets go of a lease of this process, and says whether it had one.

        Raises:
            BadInput: the content is not the one expected, it cannot be fetched, or it is larger than the cache.
        """
        path = self.folder / f"{sha256}{PurePosixPath(address).suffix}"
        while (lease := _leased(path, size)) is None:
            self._fetch(path, address, size, sha256, spare)
        return lease

    def room(self) -> int:
        """Bytes that the cache may hold."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._limit is not None:
            return self._limit
        disk = shutil.disk_usage(self.folder)
        # Blocks, not sizes: what is being fetched has its whole size at once, and takes the disk as it comes.
        used = sum(blocks for _, _, blocks, _ in self._files())
        return max(0, used + disk.free - min(_RESERVE, disk.total // 10))

    def _fetch(self, path, address, size, sha256, spare) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + _PART)
        handle = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # another process is fetching it: wait, and look again. A shared lock, since that process may be using
                # the file by the time we wake: an exclusive one would wait for as long as it does.
                fcntl.flock(handle, fcntl.LOCK_SH)
                return
            if not _is_at(handle, part):
                return  # renamed, or given up, since we opened it
            if path.exists():
                part.unlink()  # fetched after we looked, and before we made ours
                return
            try:
                self._make_room(size, handle, address, spare)
                with open(handle, "wb", closefd=False) as file:
                    download_into(address, file, size=size, sha256=sha256)
            except BaseException as error:
                part.unlink(missing_ok=True)
                if isinstance(error, OSError) and error.filename is None:  # of a write: which disk is full
                    raise OSError(error.errno, error.strerror, str(self.folder)) from error
                raise
            os.replace(part, path)
        finally:
            _unlock(handle)
            os.close(handle)

    def _make_room(self, size, handle, address, spare) -> None:
        """Removes files until `size` bytes fit, and takes that room for the open part."""
        with open(self.folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # or two processes would count the same room as theirs
            try:
                self._reserve(size, handle, address, spare)
            finally:
                _unlock(lock.fileno())

    def _reserve(self, size, handle, address, spare) -> None:
        os.ftruncate(handle, 0)
        limit = self.room()
        if size > limit:
            raise BadInput(
                address,
                f"a file of {size} bytes, larger than the cache {self.folder} may become ({limit} bytes)",
                "room for it",
                "set CSFM_CACHE_GB to more, or CSFM_CACHE to a folder on a larger disk",
            )
        files = [file for file in self._files() if not (file[-1].suffix == _PART and _remove(file[-1]))]
        used = sum(size for _, size, *_ in files)
        while used + size > limit:
            gone = next((file for file in files if _remove(file[-1])), None)
            if gone:
                files.remove(gone)
                used -= gone[1]
            elif not spare():
                break
        os.ftruncate(handle, size)

    def _files(self) -> list[tuple[int, int, int, Path]]:
        """(time of last use, bytes, bytes of the disk that they take, path), the longest unused first."""
        found = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat()
                found.append((stat.st_mtime_ns, stat.st_size, stat.st_blocks * 512, Path(entry.path)))
        return sorted(file for file in found if file[-1].name != ".lock")


def _limit(text: str | None) -> int | None:
    if not text:
        return None
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1e9:
            return int(float(text) * 10**9)
    raise BadInput("CSFM_CACHE_GB", repr(text), "a positive number of gigabytes", "correct it, or unset it")


def _leased(path: Path, size: int) -> Lease | None:
    """A lease on a file that is there; None where it is not, or not whole."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    lease = Lease(path, handle)
    fcntl.flock(handle, fcntl.LOCK_SH)
    if not _is_at(handle, path):
        return None  # removed while we waited
    if os.fstat(handle).st_size != size:
        path.unlink(missing_ok=True)  # somebody has cut it short
        return None
    with contextlib.suppress(PermissionError):  # of another user
        os.utime(handle)
    return lease


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file still lies under its name."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> bool:
    """Removes a file that nobody uses."""
    try:
        handle = os.open(path, os.O_RDWR)  # network disks lock for oneself only what may be written
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    except OSError:
        return False
    finally:
        _unlock(handle)
        os.close(handle)


def _unlock(handle: int) -> None:
    """Ends a lock in every process: one that was forked meanwhile has a copy of the open file, and so of the lock."""
    fcntl.flock(handle, fcntl.LOCK_UN)
