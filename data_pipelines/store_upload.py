"""A store made here -> an object store: data first, the manifest last; a run that was killed sends what is missing.

What lies there without a manifest is no store. `.partial/plan.json` is there from the first moment to the last: it
says what the store will be made of, so that no two are mixed.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from data_pipelines import storage
from data_pipelines.errors import BadInput
from data_pipelines.store_format import MANIFEST, WORK, read_manifest
from data_pipelines.store_writer import compare_plans

_FILES_AT_ONCE = 4
_PLAN = f"{WORK}/plan.json"


def staging_folder(output: str, given: Path | None) -> Path:
    """Where a store is made before it is sent to `output`: the same folder whenever the same command is given.

    Raises:
        BadInput: the folder in TMPDIR is there, but of another user.
    """
    if given is not None:
        return given
    name = f"csfm-prepare-{os.getuid()}-{hashlib.sha256(output.encode()).hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # names in /tmp can be guessed
        raise BadInput(str(folder), "a folder of another user", "one's own", "choose one with --staging")
    return folder


def claim(output: str, plan: dict) -> dict | None:
    """Says at the place itself what will be written there.

    Args:
        plan: what the store is made of, as plain values.

    Returns:
        The manifest where a store of this plan is there already, else None.

    Raises:
        BadInput: another store is there, or is being written, or files that are no store's; or nothing may be written.
    """
    found = storage.file_sizes(output)
    if MANIFEST in found:
        return _finished(output, plan)
    if found and _PLAN not in found:
        remedy = "choose another --output, or remove what is there"
        raise BadInput(output, f"{len(found)} files that are no store", "nothing yet", remedy)
    if not found:
        with contextlib.suppress(BadInput):  # of another plan: told below
            storage.create_bytes(storage.join(output, _PLAN), _plan_bytes(plan))
    try:
        planned = storage.read_bytes(storage.join(output, _PLAN))
    except storage.Missing:  # another job has finished the store since we looked
        return _finished(output, plan)
    compare_plans(output, json.loads(planned), plan)
    return None


def _finished(output: str, plan: dict) -> dict:
    manifest = read_manifest(output)
    compare_plans(output, manifest["plan"], plan)
    return manifest


def send(folder: Path, output: str, progress: Callable[[int, int], None]) -> None:
    """Uploads a finished store; files that are there already, by size and recorded SHA-256, are not sent again.

    Args:
        folder: the store here. output: where it goes; claimed. progress: called with (files done, files in all).
    """
    with _one_at_a_time(folder):
        there = storage.file_sizes(output)
        if MANIFEST in there:
            return  # another job was faster
        files = read_manifest(folder)["files"]
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            sent = [pool.submit(_send_file, folder, output, name, entry, there) for name, entry in files.items()]
            try:
                for done, future in enumerate(as_completed(sent), start=1):
                    future.result()
                    progress(done, len(files))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        storage.write_bytes(storage.join(output, MANIFEST), (folder / MANIFEST).read_bytes())
    release(output)


def release(output: str) -> None:
    """Removes what only an unfinished store needs."""
    storage.delete_tree(storage.join(output, WORK))


def check(output: str, manifest: dict) -> None:
    """Compares every file at the place with the manifest, by size and by the SHA-256 recorded with it.

    Raises:
        BadInput: names the file that is missing or another one.
    """
    there = storage.file_sizes(output)

    def compare(name):
        if not _is_there(output, name, manifest["files"][name], there):
            address = storage.join(output, name)
            remedy = "remove the store's manifest.json there, then give the same command again"
            raise BadInput(address, "no such object, or another one", "the file in the manifest", remedy)

    with ThreadPoolExecutor(_FILES_AT_ONCE * 4) as pool:
        list(pool.map(compare, manifest["files"]))


def _send_file(folder, output, name, entry, there) -> None:
    if not _is_there(output, name, entry, there):
        storage.upload(folder / name, storage.join(output, name), entry["sha256"])


def _is_there(output, name, entry, there) -> bool:
    if there.get(name) != entry["size"]:
        return False
    return storage.recorded_sha256(storage.join(output, name)) == entry["sha256"]


def _plan_bytes(plan: dict) -> bytes:
    return json.dumps(plan, sort_keys=True).encode()


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Two jobs that end together would both send everything: the second waits, and finds it done."""
    with open(folder / ".sending", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
