"""The one way to files that may lie in a folder or in an object store: a handful of verbs that take either.

A place is a `Path`, or a string that begins with `s3://` or `gs://` (credentials and endpoints as s3fs and gcsfs find
them: AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, STORAGE_EMULATOR_HOST, ...).
Never make a `Path` of a remote place: it would lose a slash. `place` tells the two apart, `join` goes down.

Every remote request is tried again, with growing random pauses, after lost connections, timeouts, 429 and 5xx; what
still fails is a BadInput that names the place. An object store has no folders: a name with a slash in it is all there
is, nothing is renamed, and an object appears whole or not at all. Listings are never cached.

fsspec is imported by the first remote call, not before; local places need none of it.
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from glob import escape
from pathlib import Path
from typing import BinaryIO

from data_pipelines.errors import BadInput
from data_pipelines.storage_errors import Missing, attempt, missing_package

__all__ = [
    "Missing", "Place", "absolute", "clear_unfinished", "create_bytes", "delete_tree", "download", "download_into",
    "exists", "file_size", "file_sizes", "glob", "is_remote", "join", "list_folder", "move", "name_of", "parent",
    "place", "place_here", "read_bytes", "recorded_sha256", "upload", "whole", "write_bytes",
]  # fmt: skip

Place = str | Path
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")

_DAY = 24 * 3600  # seconds
PART = 1 << 24  # bytes of one request: a lost connection costs at most that much again
# Read once, while the process has one thread: to read it is to set it, and others write files meanwhile.
os.umask(_MASK := os.umask(0))
AT_ONCE = 4  # parts in flight of one transfer; so many times `PART` in memory
_DELETED_AT_ONCE = 16  # requests without content


def is_remote(path: Place) -> bool:
    """Whether a place lies in an object store."""
    return isinstance(path, str) and path.startswith(("s3://", "gs://"))


def place(text: Place) -> Place:
    """What a user wrote as a path -> a `Path`, or the address of a remote place without a slash at its end.

    Raises:
        BadInput: an address of another kind (`gcs://`, `s3a://`, `http://`), or one without a bucket.
    """
    if not (found := _ADDRESS.match(str(text))):
        return Path(text)
    if not is_remote(str(text)):
        raise BadInput(str(text), f"an address of kind {found[1]!r}", "a folder, s3://... or gs://...", "correct it")
    scheme, _, rest = str(text).partition("://")
    bucket, *names = rest.split("/")
    names = [name for name in names if name]
    if not bucket or any(name in (".", "..") for name in names):
        raise BadInput(str(text), "no usable address", f"{scheme}://bucket/name", "correct it")
    return "/".join((f"{scheme}://{bucket}", *names))


def place_here(text: str, option: str) -> Path:
    """What a user wrote as the path of an output that is written on this machine alone.

    Raises:
        BadInput: nothing; or an address, of any kind, which as a path is a folder of that name where the command runs.
    """
    if not text or _ADDRESS.match(text):
        remedy = "give one; what is written there can be copied"
        raise BadInput(option, text or "nothing", "a path on this machine", remedy)
    return Path(text)


def join(path: Place, *names: str) -> Place:
    """A place below another; `names` may hold slashes."""
    return "/".join((path.rstrip("/"), *names)) if is_remote(path) else Path(path, *names)


def absolute(text: Place) -> Place:
    """As `place`; a local path is made absolute."""
    found = place(text)
    return found if is_remote(found) else found.absolute()


def parent(path: Place) -> Place:
    """The folder that a place lies in."""
    return path.rpartition("/")[0] if is_remote(path) else Path(path).parent


def name_of(path: Place) -> str:
    """The last part of a place."""
    return path.rpartition("/")[2] if is_remote(path) else Path(path).name


def exists(path: Place) -> bool:
    """Whether a file (an object) or a folder (an object below) is there."""
    if not is_remote(path):
        return Path(path).exists()
    return attempt(path, _filesystem(path).exists, path)


def file_size(path: Place) -> int:
    """Bytes of a file. Raises Missing where there is none."""
    if not is_remote(path):
        return _local_file(path).stat().st_size
    info = attempt(path, _filesystem(path).info, path)
    if info["type"] != "file":
        raise Missing(path, "no such object or bucket", "an object that exists", "correct the path")
    return int(info["size"])


def file_sizes(path: Place) -> dict[str, int]:
    """Every file below a folder, at any depth: name relative to it, with slashes -> bytes. Empty where nothing is."""
    if not is_remote(path):
        return {f.relative_to(path).as_posix(): f.stat().st_size for f in Path(path).rglob("*") if f.is_file()}
    found = attempt(path, _filesystem(path).find, path, detail=True)
    cut = len(path.partition("://")[2].rstrip("/")) + 1
    return {name[cut:]: int(info["size"]) for name, info in found.items() if name[cut:] and not name.endswith("/")}


def list_folder(path: Place) -> list[Place]:
    """The places directly below a folder, files and folders, by name; none where nothing is there."""
    if not is_remote(path):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # and nothing else: a disk that is away is no
            return sorted(Path(path).iterdir())  # empty folder
        return []
    return glob(path, "*")


def glob(path: Place, pattern: str) -> list[Place]:
    """The places below a folder that match a pattern (`*`, `?`, `**` for any depth), in order."""
    if not is_remote(path):
        return sorted(Path(path).glob(pattern))
    scheme = path.partition("://")[0]
    every = join(re.sub(r"([*?[])", r"[\1]", path), pattern)
    try:  # "raise", or a lost connection would be an empty folder
        found = attempt(path, _filesystem(path).glob, every, on_error="raise")
    except Missing:
        return []
    return [f"{scheme}://{name}" for name in sorted(name.rstrip("/") for name in found)]


def read_bytes(path: Place) -> bytes:
    """A whole file. Raises Missing where there is none."""
    if not is_remote(path):
        return _local_file(path).read_bytes()
    return attempt(path, _filesystem(path).cat_file, path)


def write_bytes(path: Place, data: bytes) -> None:
    """Writes or replaces a file: a reader sees the old content or the new, and a kill leaves one of them.

    Locally the folder is made if need be.
    """
    if is_remote(path):
        attempt(path, _filesystem(path).pipe_file, path, bytes(data))
        return
    with whole(Path(path)) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary file, empty, beside a local one, which it replaces when the body is through; its folder is made if
    need be. A reader sees the old content or the new; an error or a kill leaves the old."""
    with _beside(path) as temporary:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)


def clear_unfinished(path: Path) -> None:
    """Removes what killed writers of a large local file have left beside it, where it has not changed for a day."""
    for left in path.parent.glob(f".{escape(path.name)}.????????"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _DAY:
                left.unlink()


def create_bytes(path: Place, data: bytes) -> None:
    """Writes a file that must not be there yet: of several that try at once, one succeeds.

    Raises:
        BadInput: a file of other content is there. (One of the same content is taken for an earlier try's.)
    """
    try:
        if is_remote(path):
            attempt(path, _filesystem(path).pipe_file, path, bytes(data), mode="create")
            return
        with _beside(Path(path)) as temporary:
            temporary.write_bytes(data)
            _sync(temporary)
            os.link(temporary, path)
    except FileExistsError:
        pass
    if read_bytes(path) != data:
        raise BadInput(str(path), "another file", "nothing yet", "choose another place")


def delete_tree(path: Place) -> None:
    """Removes a file, or a folder with all below it; nothing where nothing is. Never a whole bucket (BadInput)."""
    if is_remote(path):
        if path.rstrip("/").count("/") < 3:
            raise BadInput(path, "a whole bucket", "a folder in it", "name what is to be removed")
        _delete_objects(path)
    elif Path(path).is_dir():
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)


def _delete_objects(path: str) -> None:
    # One by one, each by its exact name: the `rm` of fsspec takes `*`, `?` and `[` in any of them for a pattern.
    system = _filesystem(path)

    def delete(name: str) -> None:
        with contextlib.suppress(Missing):
            attempt(name, system.rm_file, name)

    with ThreadPoolExecutor(_DELETED_AT_ONCE) as pool:
        list(pool.map(delete, [*(join(path, name) for name in file_sizes(path)), path]))


def move(path: Place, to: Place) -> None:
    """Moves a file or a folder to where nothing is, within its disk or its kind of object store.

    An object store copies each object, then removes the old ones: a kill on the way leaves some at both places.
    """
    if not is_remote(path):
        os.rename(path, to)
        return
    copies = [(join(path, name), join(to, name)) for name in file_sizes(path)] or [(path, to)]
    for old, new in copies:
        attempt(old, _filesystem(old).cp_file, old, new)
    delete_tree(path)


def upload(local: Path, path: Place, sha256: str | None = None) -> None:
    """Copies a local file; a large one to an object store in parts, several at once.

    Args:
        sha256: of the file, where it is known: kept with a remote object for `recorded_sha256`. It is not checked here.
    """
    if not is_remote(path):
        with whole(Path(path)) as temporary:
            shutil.copyfile(local, temporary)
        return
    part = max(1 << 24, _local_file(local).stat().st_size // 8192 >> 18 << 18)  # S3 takes 10,000; GCS whole 256 KiB
    options = {"chunksize": part}
    if sha256:
        options["Metadata" if path.startswith("s3://") else "metadata"] = {"sha256": sha256}
    if path.startswith("s3://"):
        options["max_concurrency"] = AT_ONCE
    attempt(path, _filesystem(path).put_file, str(local), path, **options)


def recorded_sha256(path: str) -> str | None:
    """What `upload` kept with a remote object: None where nothing was kept. Raises Missing where there is no object."""
    system = _filesystem(path)

    def kept():
        with contextlib.suppress(KeyError):
            return system.getxattr(path, "sha256")

    return attempt(path, kept)


def download(path: Place, local: Path, *, size: int | None = None, sha256: str | None = None) -> str:
    """Copies a file to a local one, which appears whole and, where `size` and `sha256` are given, right, or not at all.

    Returns:
        Its SHA-256 in hex.

    Raises:
        BadInput: as `download_into`.
    """
    with whole(Path(local)) as temporary, open(temporary, "wb") as file:
        return download_into(path, file, size=size, sha256=sha256)


def download_into(path: Place, file: BinaryIO, *, size: int | None = None, sha256: str | None = None) -> str:
    """Writes a file's content to an open local one, from its position on, and syncs it.

    Parts are asked for in order, a few at once; after a lost connection only its part is asked for again.

    Args:
        size: bytes; None asks. sha256: what the content must have; None takes any.

    Returns:
        The SHA-256 in hex.

    Raises:
        BadInput: nothing there, fewer bytes, or another SHA-256 (names both): what was written is then worthless.
    """
    size = file_size(path) if size is None else size
    hashed = hashlib.sha256()
    for start, data in _parts(path, size):
        if len(data) != min(PART, size - start):
            found = f"{start + len(data)} bytes"
            raise BadInput(str(path), found, f"{size} bytes", "upload the file again")
        hashed.update(data)
        file.write(data)
    if sha256 and hashed.hexdigest() != sha256:
        found = f"content of SHA-256 {hashed.hexdigest()}"
        raise BadInput(str(path), found, f"SHA-256 {sha256}, {size} bytes", "upload the file again")
    file.flush()
    os.fsync(file.fileno())
    return hashed.hexdigest()


def _parts(path, size):
    """Yields (start, bytes) in order; remote ones are on their way before they are asked for."""
    if not is_remote(path):
        with open(_local_file(path), "rb") as file:
            yield from ((start, file.read(PART)) for start in range(0, size, PART))
        return
    system, starts = _filesystem(path), range(0, size, PART)
    ends = [min(start + PART, size) for start in starts]
    if len(starts) == 1:
        yield 0, attempt(path, system.cat_file, path, start=0, end=size)
        return
    pool, coming = ThreadPoolExecutor(AT_ONCE), deque()
    try:
        for start, end in zip(starts, ends):
            coming.append((start, pool.submit(attempt, path, system.cat_file, path, start=start, end=end)))
            while len(coming) == AT_ONCE or (coming and end == size):
                first, data = coming.popleft()
                yield first, data.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _filesystem(path: str):
    """The fsspec file system of a remote place; fsspec keeps one for each process and way to connect."""
    scheme = path.partition("://")[0]
    try:
        import fsspec

        kind = fsspec.get_filesystem_class(scheme)
    except ImportError:
        raise missing_package(path, scheme) from None
    return attempt(path, _connect_s3 if scheme == "s3" else _connect_gs, kind)


def _connect_s3(kind):
    # botocore tries a request three times with pauses; s3fs's own loop around that would multiply them
    config = {"retries": {"total_max_attempts": 3, "mode": "standard"}, "connect_timeout": 10, "read_timeout": 60}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    system = kind(endpoint_url=endpoint, use_listings_cache=False, config_kwargs=config)
    system.retries = 1
    return system


def _connect_gs(kind):
    from aiohttp import ClientTimeout

    logger = logging.getLogger("gcsfs")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)  # it prints the traceback of what is raised, and told in one line, anyway
    return kind(use_listings_cache=False, requests_timeout=ClientTimeout(total=300, sock_connect=10, sock_read=60))


def _local_file(path) -> Path:
    try:  # not `is_file`: it answers for a disk that is away, too
        there = stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        there = False
    if not there:
        raise Missing(str(path), "no such file", "a file", "correct the path")
    return Path(path)


@contextlib.contextmanager
def _beside(path: Path):
    """A new temporary file in a file's folder; removed if it is still there at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    os.chmod(name, 0o666 & ~_MASK)  # mkstemp's files are for their owner alone
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _sync(path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
