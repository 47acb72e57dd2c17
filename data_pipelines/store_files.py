"""How a store's files are reached: in its folder, or through the cache of this host."""

import contextlib
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_pipelines import storage
from data_pipelines.errors import BadInput
from data_pipelines.store_cache import StoreCache
from data_pipelines.store_format import open_reader, verify_file

_MOST_OPEN = 256  # shards of a remote store in one process: each holds two of its files open
_AT_ONCE = 16  # small files on their way


def open_files(path: storage.Place, manifest: dict) -> "LocalFiles | RemoteFiles":
    """The files that a store's manifest lists."""
    return RemoteFiles(path, manifest) if storage.is_remote(path) else LocalFiles(path, manifest)


class LocalFiles:
    """The files of a store in a folder."""

    def __init__(self, path: Path, manifest: dict):
        self._path, self._manifest = path, manifest
        self.shards = Shards(lambda name: open_reader(path / name))

    def verify(self, full: bool) -> None:
        """Compares every file with the manifest: existence, size, record count; `full`: SHA-256."""
        for name, expected in self._manifest["files"].items():
            verify_file(self._path, name, expected, full=full)

    def fetch(self, names: list[str]) -> None:
        """Nothing has to come from anywhere."""

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """A file to read."""
        yield self._path / name


class RemoteFiles:
    """The files of a store in an object store, each downloaded whole and compared with the manifest at first use."""

    def __init__(self, path: str, manifest: dict):
        self._path, self._manifest, self._cache = path, manifest, StoreCache()
        self.shards = Shards(self._open_shard, _MOST_OPEN)

    def verify(self, full: bool) -> None:
        """Compares existence and size, from one listing. `full` changes nothing: content is compared at download."""
        found, remedy = storage.file_sizes(self._path), "upload the store again"
        for name, expected in self._manifest["files"].items():
            address = storage.join(self._path, name)
            if name not in found:
                raise BadInput(address, "no such object", "the file in the manifest", remedy)
            if found[name] != expected["size"]:
                raise BadInput(address, f"{found[name]} bytes", f"{expected['size']} bytes", remedy)
        total, room = sum(entry["size"] for entry in self._manifest["files"].values()), self._cache.room()
        if total > room:
            warnings.warn(
                f"{self._path}: {total / 1e9:.1f} GB in a cache of {room / 1e9:.1f} GB ({self._cache.folder}): windows "
                "are read in random order, so files will be downloaded again and again; give the cache more room with "
                "CSFM_CACHE and CSFM_CACHE_GB",
                stacklevel=3,
            )

    def fetch(self, names: list[str]) -> None:
        """Downloads files that will be read next, many at once."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(self._take, names))

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """A file to read, in the cache; it stays there for the time of the context."""
        lease = self._take(name)
        yield lease.path

    def _take(self, name):
        entry = self._manifest["files"][name]
        address = storage.join(self._path, name)
        return self._cache.take(address, entry["size"], entry["sha256"], self.shards.close_oldest)

    def _open_shard(self, name):
        lease = self._take(name)
        reader = open_reader(lease.path)
        found, expected = reader.num_records(), self._manifest["files"][name]["count"]
        if found != expected:
            where = storage.join(self._path, name)
            raise BadInput(where, f"{found} records", f"{expected} records", "upload the store again")
        return _LeasedReader(reader, lease)


class _LeasedReader:
    """A reader of a shard in the cache, which keeps the shard there."""

    def __init__(self, reader, lease):
        self.read, self._lease = reader.read, lease


class Shards:
    """The open shards of this process, by name; safe to use from many threads, and empty after a fork.

    Args:
        open_shard: name -> reader. most: the least recently used of more are closed; None: all stay open.
    """

    def __init__(self, open_shard: Callable, most: int | None = None):
        self._open_shard, self._most = open_shard, most
        self._lock, self._open, self._pid = threading.Lock(), OrderedDict(), os.getpid()

    def get(self, name: str):
        """The reader of a shard; it stays usable for as long as the caller holds it."""
        with self._lock:
            if self._pid != os.getpid():  # forked: the parent's file positions and threads are not ours
                self._open, self._pid = OrderedDict(), os.getpid()
            if name in self._open:
                self._open.move_to_end(name)
                return self._open[name]
        reader = self._open_shard(name)  # may take a download: others go on reading meanwhile
        with self._lock:
            reader = self._open.setdefault(name, reader)
        while self._most is not None and len(self._open) > self._most:
            self.close_oldest()
        return reader

    def close_oldest(self) -> bool:
        """Forgets the reader that has not been used for longest; False where none is open."""
        with self._lock:
            return bool(self._open) and self._open.popitem(last=False) is not None
