"""A run whose work directory is in an object store (gs://, s3://): written here, sent there.

Orbax saves into a local folder of each host, as it does for a local run; finished files then go through
`data_pipelines.storage`. TensorStore could write to S3 and GCS itself, but with credentials, endpoints and retries of
its own, and Orbax commits a step there by renaming or by marks that a copy loses. Here there is one way to any bucket,
tried again after a lost connection, and one rule: data first, the manifest last. What lies there after a run of one
process is, file by file, what a local run leaves. The price is room on each host's disk for two checkpoints: its own
part of those that are saved, and a whole one at a restart.

    WORKDIR/checkpoints/<step>/, <step>.manifest.json     as in a folder; damaged-<step>
    WORKDIR/checkpoints/<step>.part-<process>.json        what one of several processes has sent; gone with the manifest
    WORKDIR/claim.json                                    that a run is writing there: `claim.py`
    WORKDIR/compilation_cache/                            JAX's; process 0 fills it, every host reads it
    WORKDIR/*.json, *.jsonl, ...                          the record and the lines of the run
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from csfm_jax.training import remote_steps
from csfm_jax.training.checkpoint import Checkpoints, check_keep, orbax_context, set_damaged_aside
from csfm_jax.training.claim import LOCK, Claim, locked
from csfm_jax.training.manifest import (
    Difference,
    finished_steps,
    manifest_path,
    manifest_text,
    read_manifest,
    unfinished,
)
from csfm_jax.training.together import barrier, check_equal
from data_pipelines import storage
from data_pipelines.errors import BadInput
from data_pipelines.storage import Place

_FILES_AT_ONCE = 4  # each large one goes in several parts at once besides
_LIMIT = 3600  # seconds that processes wait for the slowest sender
_SHARED_MEMORY = Path("/dev/shm")
_SHARED = ".shared"  # holds a word of process 0, which the others have to find
_LINES = ("metrics.jsonl", "validation.jsonl", "skipped.jsonl", "goodput.json")  # what a restart goes on with


class Workdir:
    """The work directory of a run, and the folder of this host where the run's files are written.

    In a local run they are the same. Otherwise the folder is below CSFM_RUNS (~/.cache/csfm/runs without); its files,
    but not what is in its folders (tensorboard/, plans/, profile/), are sent at every checkpoint and at the end by
    process 0; a restart, here or elsewhere, fetches the lines that it appends to. One run at a time: `claim.py`.

    Attributes:
        place: the work directory. folder: where its files are written.

    Raises:
        BadInput: on entering, another run is writing there; the object store does not answer.
    """

    def __init__(self, place: Place):
        self.place, self._sent, self._until_end, self._claim = place, {}, contextlib.ExitStack(), None
        self.folder = _local_folder(place) if storage.is_remote(place) else place
        self.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self):
        if jax.process_index() == 0:
            with contextlib.ExitStack() as entered:
                entered.enter_context(locked(self.folder))
                if storage.is_remote(self.place):
                    self._claim = entered.enter_context(Claim(self.place))
                    self._bring_lines()
                self._until_end = entered.pop_all()
        if not storage.is_remote(self.place) and jax.process_count() > 1:
            with contextlib.ExitStack() as refused:
                refused.push(self._until_end)
                self._check_shared()
                refused.pop_all()
        return self

    def _check_shared(self) -> None:
        """A checkpoint is whole when every process has written its part into one folder: of two disks, none ever is."""
        told = self.folder / _SHARED
        if jax.process_index() == 0:
            told.write_text(uuid.uuid4().hex)
        barrier("work directory entered")
        found = told.read_text() if told.is_file() else ""
        remedy = "choose one on a disk that all hosts share, or at s3:// or gs://"
        check_equal("--workdir", found, "a folder that every process sees as process 0 does", remedy)

    def _bring_lines(self) -> None:
        # What is there counts, not what an earlier run may have left here: it goes with the checkpoints.
        for path in self._files():
            path.unlink()
        for name in _LINES:
            address = storage.join(self.place, name)
            if storage.exists(address):
                storage.download(address, self.folder / name)
        print(f"{self.place}: plans and TensorBoard's files are kept in {self.folder}", flush=True)

    def checkpoints(self, keep: int) -> Checkpoints:
        """Its checkpoints, of which `keep` stay."""
        folder = self.folder / "checkpoints"
        if not storage.is_remote(self.place):
            return Checkpoints(folder, keep=keep)
        there = storage.join(self.place, "checkpoints")
        return RemoteCheckpoints(there, folder, keep=keep, confirm=self._confirm, before_seal=self._send_own)

    def _confirm(self) -> None:
        if self._claim:
            self._claim.confirm()

    def _send_own(self) -> None:
        self._confirm()
        self.send()

    def send(self) -> None:
        """Sends the folder's own files, those that have changed; process 0's only."""
        if not storage.is_remote(self.place) or jax.process_index() != 0:
            return
        for path in self._files():
            # A line may be half written; it is complete in the next copy, or dropped by the restart that repeats it.
            data = path.read_bytes()
            digest = hashlib.sha256(data).digest()
            if self._sent.get(path.name) != digest:
                storage.write_bytes(storage.join(self.place, path.name), data)
                self._sent[path.name] = digest

    def _files(self) -> list[Path]:
        return sorted(p for p in self.folder.iterdir() if p.is_file() and p.suffix != ".tmp" and p.name != LOCK)

    def __exit__(self, kind, error, trace) -> None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
            # a file that was open already: its error names none; workers hand batches over in shared memory
            error.filename = str(_SHARED_MEMORY if _full(_SHARED_MEMORY) and not _full(self.folder) else self.folder)
        with self._until_end:
            try:
                self._send_own()
            except BadInput as failed:
                if kind is None:
                    raise
                print(f"the last lines were not sent: {failed}", file=sys.stderr, flush=True)  # the first error counts


class RemoteCheckpoints(Checkpoints):
    """Checkpoints in an object store; used as `Checkpoints`, whose errors and these it raises.

    Args:
        place: WORKDIR/checkpoints. folder: a local one, where steps are on their way; emptied here.
        keep: how many of the latest steps stay there. before_seal: called by every process, in the background, when a
            step's files have been sent and its manifest not yet. confirm: called by process 0 before any is sent, which
            may overwrite those of a run that has gone on in this one's place; raises BadInput if there is one.

    Raises:
        BadInput: steps there are, but none is intact; or the object store does not answer.
    """

    def __init__(
        self,
        place: str,
        folder: Path,
        *,
        keep: int,
        before_seal: Callable[[], None] = lambda: None,
        confirm: Callable[[], None] = lambda: None,
    ):
        check_keep(keep)
        self.place, self._keep, self._before_seal, self._confirm = place, keep, before_seal, confirm
        own = Path(folder).absolute() / f"process-{jax.process_index()}"  # processes may share a disk
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        if jax.process_index() == 0:
            for left in unfinished(place):
                storage.delete_tree(left)
        barrier("checkpoints cleaned")
        # Every process brings the whole step: which part it needs depends on a mesh that may be another one by now.
        set_damaged_aside(place, lambda step: self._bring(step, own), remote_steps.way_back)
        self._latest = max(finished_steps(place), default=None)
        for left in list(own.iterdir()):  # a step that only other processes found damaged: it will be saved again
            if left.name.partition(".")[0] != str(self._latest):
                storage.delete_tree(left)
        # Of the steps here only the latest is of any use.
        self._open(own, 1, orbax_context(apart=True))

    def latest(self) -> int | None:
        return self._latest

    def _bring(self, step: int, folder: Path) -> Difference | None:
        here = folder / str(step)
        damage = remote_steps.fetch(storage.join(self.place, str(step)), here)
        if damage:
            shutil.rmtree(here, ignore_errors=True)
        return damage

    def _seal(self, step: int, committed) -> None:
        super()._seal(step, committed)  # here
        me, everyone = jax.process_index(), jax.process_count()
        there = storage.join(self.place, str(step))
        files = remote_steps.own_files(read_manifest(self.folder / str(step)), me, everyone)

        def send(name: str) -> None:
            storage.upload(self.folder / str(step) / name, storage.join(there, name), files[name]["sha256"])

        if me == 0:
            self._confirm()
        if everyone > 1:
            barrier(f"files of step {step} may be sent", _LIMIT)
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            list(pool.map(send, files))
        if everyone > 1:
            storage.write_bytes(_part_path(there, me), json.dumps(files).encode())
            barrier(f"files of step {step} sent", _LIMIT)
        self._before_seal()
        if me == 0:
            parts = [_part_path(there, n) for n in range(everyone) if everyone > 1]
            for part in parts:
                files |= json.loads(storage.read_bytes(part))
            storage.write_bytes(manifest_path(there), manifest_text(there, files).encode())
            for part in parts:
                storage.delete_tree(part)
            self._let_go()
        self._latest = step

    def _let_go(self) -> None:
        for step in finished_steps(self.place)[: -self._keep]:
            gone = storage.join(self.place, str(step))
            storage.delete_tree(manifest_path(gone))  # first: what is half removed is no step
            storage.delete_tree(gone)


def _full(disk: Path) -> bool:
    return disk.is_dir() and shutil.disk_usage(disk).free < 1 << 20


def _part_path(step: str, process: int) -> str:
    return f"{step}.part-{process}.json"


def _local_folder(place: str) -> Path:
    """The same folder whenever the same work directory is given on this host."""
    base = Path(os.environ.get("CSFM_RUNS") or Path.home() / ".cache" / "csfm" / "runs").absolute()
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", storage.name_of(place))[:60]
    return base / f"{readable}-{hashlib.sha256(place.encode()).hexdigest()[:16]}"
