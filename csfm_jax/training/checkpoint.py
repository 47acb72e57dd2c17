"""Checkpoints: saved in the background by Orbax, sealed by a manifest, and never restored unverified.

    WORKDIR/checkpoints/<step>/{params,optimizer,run}/     one item each, so that fine-tuning reads `params` alone
    WORKDIR/checkpoints/<step>.manifest.json               size and SHA-256 of every file, written after the commit

Orbax makes a step appear whole or not at all, but notices no flipped bit in it. The manifest does; a step without
one is unfinished: it is not restored, and removed before the next save.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from csfm_jax import config as config_lib
from csfm_jax.training.together import anywhere, barrier
from data_pipelines.errors import BadInput

_MANIFEST = re.compile(r"(\d+)\.manifest\.json")
_FILE_KEYS = {"size", "sha256"}  # what a manifest says of each file


class Checkpoints:
    """The checkpoints of one run. All methods are called by every process, from the main thread.

    Args:
        folder: WORKDIR/checkpoints; made if absent. Unfinished steps in it are removed. Every file of the latest step
            is compared with its manifest; a damaged step is set aside as damaged-<step>, and the one before it counts.
        keep: how many of the latest steps stay; at least 2, so that one intact step stands while the next is written.

    Raises:
        BadInput: steps there are, but none is intact.
    """

    def __init__(self, folder: Path, *, keep: int):
        if keep < 2:
            raise BadInput(
                "config.training.keep_checkpoints",
                str(keep),
                "2 or more: the last good step must stand while the next one is written",
                "raise it",
            )
        self.folder = Path(folder).absolute()
        if jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            _remove_unfinished(self.folder)
        barrier("checkpoint folder cleaned")
        _set_damaged_aside(self.folder)
        self._orbax = ocp.training.Checkpointer(
            self.folder,
            context=_context(),
            # The loop decides when to save. Orbax's default policy would save as often as it can.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
        )
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="seal-checkpoint")
        self._sealing = None

    def latest(self) -> int | None:
        """The latest finished step, or None."""
        return max(finished_steps(self.folder), default=None)

    def save(self, step: int, params: dict, optimizer: Any, run: dict) -> None:
        """Starts saving a step; returns when the arrays are copied to the host and may be donated.

        Raises:
            OSError: the previous save failed (ENOSPC: the disk is full; the step before it is intact).
        """
        self.wait()  # one save at a time; its failure must not go unnoticed
        with _disk_full_named(self.folder):
            items = dict(params=params, optimizer=optimizer, run=run)
            committed = self._orbax.save_checkpointables_async(step, items)
        self._sealing = self._sealer.submit(self._seal, step, committed)

    def check(self) -> None:
        """Raises the error of a background save that has failed; called at every step, costs nothing."""
        if self._sealing is not None and self._sealing.done():
            self.wait()

    def wait(self) -> None:
        """Returns when the save under way, if any, is committed and sealed. Raises as `save` does."""
        if self._sealing is not None:
            sealing, self._sealing = self._sealing, None
            with _disk_full_named(self.folder):
                sealing.result()

    def read_run(self) -> dict:
        """The `run` item of the latest finished step; {} where there is no step."""
        step = self.latest()
        return {} if step is None else self._orbax.load_checkpointables(step, dict(run=None))["run"]

    def restore(self, step: int, params: dict, optimizer: Any) -> tuple[dict, Any]:
        """Reads the arrays of the latest step.

        Args:
            params, optimizer: abstract trees (ShapeDtypeStruct with sharding) of what to read.
        """
        items = self._orbax.load_checkpointables(step, dict(params=params, optimizer=optimizer))
        return items["params"], items["optimizer"]

    def close(self) -> None:
        """Waits for the save under way and ends the background threads. Raises as `save` does."""
        with _disk_full_named(self.folder):
            try:
                self.wait()
            finally:
                self._sealer.shutdown()
                self._orbax.close()

    def _seal(self, step: int, committed) -> None:
        committed.result()
        if jax.process_index() == 0:
            write_manifest(self.folder / str(step))
            for number in _numbers(self.folder, manifests=True) - _numbers(self.folder, manifests=False):
                _manifest_path(self.folder / str(number)).unlink()  # its step has been let go


def _set_damaged_aside(folder: Path) -> None:
    """Every process hashes its share of the latest step's files, and all agree on what is damaged."""
    while steps := finished_steps(folder):
        step = folder / str(steps[-1])
        damage = next(_differences(step, jax.process_index(), jax.process_count(), True), None)
        if not anywhere(damage is not None):
            return
        name, found, expected = damage or ("a file", "another process's finding", "the manifest's content")
        if len(steps) == 1:
            raise BadInput(str(step / name), found, expected, _way_back(step))
        if damage:
            going = f"it is set aside as damaged-{step.name}, and the run goes on from step {steps[-2]}"
            print(f"{step / name}: found {found}; expected {expected}; {going}", file=sys.stderr, flush=True)
        barrier(f"step {step.name} examined")
        if jax.process_index() == 0:
            aside = folder / f"damaged-{step.name}"
            shutil.rmtree(aside, ignore_errors=True)
            step.rename(aside)
            _manifest_path(step).rename(folder / f"damaged-{step.name}.manifest.json")
        barrier(f"step {step.name} set aside")


def finished_steps(folder: Path) -> list[int]:
    """Steps that have both a folder and a manifest, ascending."""
    return sorted(_numbers(folder, manifests=True) & _numbers(folder, manifests=False))


def write_manifest(step_folder: Path) -> None:
    """Writes the size and SHA-256 of every file of a committed step beside it, atomically."""
    files = {
        path.relative_to(step_folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(step_folder.rglob("*"))
        if path.is_file()
    }
    target = _manifest_path(step_folder)
    temporary = target.with_suffix(".tmp")
    temporary.write_text(_manifest_text(step_folder, files))
    os.replace(temporary, target)


def verify_step(step_folder: Path, *, shard: int = 0, shards: int = 1, content: bool = True) -> None:
    """Compares a step with its manifest.

    Args:
        step_folder: CHECKPOINTS/<step>.
        shard, shards: this process checks every `shards`-th file from `shard` on.
        content: compare SHA-256 too; False compares sizes only.

    Raises:
        BadInput: names the first file that is missing, has another size or another content.
    """
    for name, found, expected in _differences(step_folder, shard, shards, content):
        raise BadInput(str(step_folder / name), found, expected, _way_back(step_folder))


def restore_params(path: str | Path, verify: bool = True) -> tuple[config_lib.Config, dict, dict]:
    """Reads the parameters of a checkpoint as NumPy arrays; needs no mesh and none of the run's devices.

    Args:
        path: a work directory (its latest finished step), its `checkpoints` folder, or one step's folder.
        verify: hash every file of the step first; False compares sizes only.

    Returns:
        The run's configuration, the parameters (nested dict of float32 arrays), and the `run` item.

    Raises:
        BadInput: no checkpoint there, or a file of it is missing or changed.
    """
    folder = find_step(path)
    verify_step(folder, content=verify)
    with _context():
        described = ocp.checkpointables_metadata(folder).metadata["params"]
        wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), described)
        items = ocp.load_checkpointables(folder, dict(params=wanted, run=None))
    return config_lib.from_dict(items["run"]["config"]), _integer_keys(items["params"]), items["run"]


def read_run(folder: Path) -> dict:
    """The `run` item of a finished step, its arrays left alone."""
    with _context():
        return ocp.load_checkpointables(folder, dict(run=None))["run"]


def find_step(path: str | Path) -> Path:
    """The folder of the step that a work directory, a checkpoints folder or a step's folder stands for."""
    path = Path(path).absolute()
    if path.name.isdigit() and _manifest_path(path).is_file():
        return path
    for folder in (path / "checkpoints", path):
        if folder.is_dir() and (steps := finished_steps(folder)):
            return folder / str(steps[-1])
    raise BadInput(
        str(path),
        "no finished checkpoint" if path.exists() else "nothing",
        "a work directory of csfm train, its checkpoints folder, or one step in it with its manifest beside it",
        "correct the path, or train until the first checkpoint is written",
    )


def _context() -> ocp.Context:
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="run")  # a dict of plain values, as one JSON file
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def _numbers(folder: Path, *, manifests: bool) -> set[int]:
    if manifests:
        return {int(m[1]) for p in folder.iterdir() if (m := _MANIFEST.fullmatch(p.name))}
    return {int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir()}


def _manifest_text(step_folder: Path, files: dict) -> str:
    return json.dumps({"format": 1, "step": int(step_folder.name), "files": files}, indent=1)


def _manifest_path(step_folder: Path) -> Path:
    return step_folder.parent / f"{step_folder.name}.manifest.json"


def _remove_unfinished(folder: Path) -> None:
    finished = set(finished_steps(folder))
    for path in folder.iterdir():
        number = re.match(r"\d+", path.name)
        if number is None or (int(number[0]) in finished and path.name in (number[0], f"{number[0]}.manifest.json")):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _differences(step_folder: Path, shard: int, shards: int, content: bool):
    try:
        text = _manifest_path(step_folder).read_text()
        files = json.loads(text)["files"]
        # written in exactly one way, so that a change shows anywhere in it
        readable = text == _manifest_text(step_folder, files) and all(f.keys() == _FILE_KEYS for f in files.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        readable = False
    if not readable:
        yield f"../{step_folder.name}.manifest.json", "no readable manifest", "the one written after the commit"
        return
    for name in sorted(files)[shard::shards]:
        path, wanted = step_folder / name, files[name]
        if not path.is_file():
            yield name, "no such file", f"{wanted['size']} bytes"
        elif path.stat().st_size != wanted["size"]:
            yield name, f"{path.stat().st_size} bytes", f"{wanted['size']} bytes (truncated or changed)"
        elif content and (actual := _sha256(path)) != wanted["sha256"]:
            yield name, f"SHA-256 {actual[:12]}...", f"{wanted['sha256'][:12]}... (the file's content has changed)"


def _way_back(step_folder: Path) -> str:
    others = [s for s in finished_steps(step_folder.parent) if s < int(step_folder.name)]
    for step in reversed(others):
        if not any(_differences(step_folder.parent / str(step), 0, 1, True)):
            back = f"delete the folder {step_folder} to go on from step {step} (intact)"
            return f"restore the file from a copy, or {back}"
    return "restore the file from a copy; no older step here is intact"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _integer_keys(tree):
    if not isinstance(tree, dict):
        return tree
    return {int(k) if isinstance(k, str) and k.isdigit() else k: _integer_keys(v) for k, v in tree.items()}


@contextlib.contextmanager
def _disk_full_named(folder: Path):
    """Turns the many faces of a full disk (TensorStore reports it as a ValueError) into the OSError it is."""
    try:
        yield
    except Exception as error:
        cause = error
        while cause is not None:
            full = getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            if full or os.strerror(errno.ENOSPC) in str(cause) or os.strerror(errno.EDQUOT) in str(cause):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
            cause = cause.__cause__ or cause.__context__
        raise
