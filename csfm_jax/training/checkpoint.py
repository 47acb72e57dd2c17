"""Checkpoints: saved in the background by Orbax, sealed by a manifest, and never restored unverified.

    WORKDIR/checkpoints/<step>/{params,optimizer,run}/     one item each, so that fine-tuning reads `params` alone
    WORKDIR/checkpoints/<step>/average/                    with `training.ema`: what is loaded in place of `params`
    WORKDIR/checkpoints/<step>.manifest.json               size and SHA-256 of every file, written after the commit

Orbax makes a step appear whole or not at all, but notices no flipped bit in it. The manifest does; a step without
one is unfinished: it is not restored, and removed before the next save. Checkpoints in object stores: `remote.py`.
"""

import contextlib
import errno
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from csfm_jax import config as config_lib
from csfm_jax.training import companions, remote_steps
from csfm_jax.training.manifest import (
    Difference,
    differences,
    finished_steps,
    manifest_path,
    no_manifest,
    read_manifest,
    unfinished,
    verify_step,
    way_back,
    write_manifest,
)
from csfm_jax.training.together import anywhere, barrier
from data_pipelines import storage
from data_pipelines.errors import BadInput
from data_pipelines.storage import Place

_SLOWEST = 3600  # seconds that processes wait for the one that brings a step from an object store last
LAST_SAVE = 60.0  # seconds that a run of several processes, which an error ends, leaves the save under way


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
        check_keep(keep)
        folder = Path(folder).absolute()
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for path in unfinished(folder):
                storage.delete_tree(path)
        barrier("checkpoint folder cleaned")
        set_damaged_aside(folder, lambda step: _damage_of_share(folder / str(step)), way_back)
        if jax.process_index() == 0:
            for step in finished_steps(folder)[-1:]:
                remote_steps.join_hosts(folder / str(step))  # a copy of one that hosts sent to an object store
        barrier("checkpoint folder examined")
        self._open(folder, keep, orbax_context())

    def _open(self, folder: Path, keep: int, context: ocp.Context) -> None:
        self.folder = folder
        # the process that Orbax lets write what is written once; the others do not see its folder's manifests made
        self._leads = jax.process_index() == context.multiprocessing_options.primary_host
        _quiet_late_writes()
        self._orbax = ocp.training.Checkpointer(
            self.folder,
            context=context,
            # The loop decides when to save. Orbax's default policy would save as often as it can.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
        )
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="seal-checkpoint")
        self._sealing = None

    def latest(self) -> int | None:
        """The latest finished step, or None."""
        return max(finished_steps(self.folder), default=None)

    def save(self, step: int, params: dict, optimizer: Any, run: dict, average: dict | None = None) -> None:
        """Starts saving a step; returns when the arrays are copied to the host and may be donated.

        Args:
            average: of the parameters, kept as an item of its own; None where the run makes none.

        Raises:
            OSError: the previous save failed (ENOSPC: the disk is full; the step before it is intact).
        """
        self.wait()  # one save at a time; its failure must not go unnoticed
        with _disk_full_named(self.folder):
            items = dict(params=params, optimizer=optimizer, run=run) | _present(average=average)
            committed = self._orbax.save_checkpointables_async(step, items)
        self._sealing = self._sealer.submit(self._seal, step, committed)
        companions.before_end = functools.partial(self._let_seal, step, self._sealing)

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

    def restore(self, step: int, params: dict, optimizer: Any, average: dict | None = None) -> dict:
        """Reads the arrays of the latest step.

        Args:
            params, optimizer, average: abstract trees (ShapeDtypeStruct with sharding) of what to read; None: nothing.

        Returns:
            The three by name.
        """
        wanted = dict(params=params, optimizer=optimizer) | _present(average=average)
        return {"average": None} | self._orbax.load_checkpointables(step, wanted)

    def ended(self, kind, error, trace) -> None:
        """Closes at the end of a run, as an exit callback of a context.

        Where an error ends one of several processes, the save under way may be one that never ends: its commit waits
        for all. Then this process must end at once (`companions.leave`), and the step before stands. Only an error that
        was found here (bad data, steps that are not finite), with disk and connections sound, leaves it a while.
        """
        if error is None or jax.process_count() == 1:
            self.close()
            return
        companions.stand_down()
        if self._sealing is not None and isinstance(error, BadInput):
            futures.wait([self._sealing], LAST_SAVE)

    def close(self) -> None:
        """Waits for the save under way and ends the background threads. Raises as `save` does."""
        with _disk_full_named(self.folder):
            try:
                self.wait()
            finally:
                self._sealer.shutdown()
                self._orbax.close()

    def _let_seal(self, step: int, sealing: futures.Future) -> None:
        # A step appears under its name when all have written it. Hashing it needs no other process; a commit that is
        # still under way does, and would wait for one that is about to end.
        if os.path.exists(self.folder / str(step)):
            futures.wait([sealing], LAST_SAVE)

    def _seal(self, step: int, committed) -> None:
        committed.result()
        if self._leads:
            write_manifest(self.folder / str(step))
            for manifest in self.folder.glob("*.manifest.json"):
                number = manifest.name.partition(".")[0]
                if number.isdigit() and not (self.folder / number).exists():
                    manifest.unlink()  # its step has been let go


def check_keep(keep: int) -> None:
    """Refuses fewer than two checkpoints."""
    if keep < 2:
        raise BadInput(
            "config.training.keep_checkpoints",
            str(keep),
            "2 or more: the last good step must stand while the next one is written",
            "raise it",
        )


def _damage_of_share(step: Path) -> Difference | None:
    # every process hashes its share of the files
    return next(differences(step, jax.process_index(), jax.process_count(), True), None)


def set_damaged_aside(
    folder: Place, damage_of: Callable[[int], Difference | None], way_back: Callable[[Place], str]
) -> None:
    """Moves damaged steps, the latest first, to damaged-<step>, until one is intact; all processes agree on which.

    Args:
        folder: of checkpoints. damage_of: what this process finds wrong with a step. way_back: what the error advises.

    Raises:
        BadInput: steps there are, but none is intact.
    """
    while steps := finished_steps(folder):
        step = storage.join(folder, str(steps[-1]))
        damage = damage_of(steps[-1])
        if not anywhere(f"step {steps[-1]} compared", damage is not None, _SLOWEST):
            return
        name, found, expected = damage or ("a file", "another process's finding", "the manifest's content")
        if len(steps) == 1:
            raise BadInput(str(storage.join(step, name)), found, expected, way_back(step))
        if damage:
            going = f"it is set aside as damaged-{steps[-1]}, and the run goes on from step {steps[-2]}"
            where = storage.join(step, name)
            print(f"{where}: found {found}; expected {expected}; {going}", file=sys.stderr, flush=True)
        barrier(f"step {steps[-1]} examined")
        if jax.process_index() == 0:
            aside = storage.join(folder, f"damaged-{steps[-1]}")
            storage.delete_tree(aside)
            storage.move(step, aside)
            storage.move(manifest_path(step), storage.join(folder, f"damaged-{steps[-1]}.manifest.json"))
        barrier(f"step {steps[-1]} set aside")


def restore_params(path: Place, verify: bool = True) -> tuple[config_lib.Config, dict, dict]:
    """Reads what a run has learned as NumPy arrays; needs no mesh and none of the run's devices.

    That is the running average of the parameters where the checkpoint has one (`training.ema`), and else the
    parameters themselves: the one place where this is decided for everything that loads a checkpoint.

    Args:
        path: a work directory (its latest finished step), its `checkpoints` folder, or one step's folder; here, or in
            an object store.
        verify: hash every file of the step first; False compares sizes only. What comes from an object store is
            hashed on its way, with either.

    Returns:
        The run's configuration, the parameters (nested dict of float32 arrays), and the `run` item.

    Raises:
        BadInput: no checkpoint there, or a file of it is missing or changed.
    """
    step = find_step(path)
    files = read_manifest(step)
    if files is None:
        name, found, expected = no_manifest(step)
        advice = remote_steps.way_back(step) if storage.is_remote(step) else way_back(step)
        raise BadInput(str(storage.join(step, name)), found, expected, advice)
    item = "average" if any(name.startswith("average/") for name in files) else "params"
    with _here(step, (item, "run"), verify) as folder, orbax_context():
        described = ocp.checkpointables_metadata(folder).metadata[item]
        wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), described)
        items = ocp.load_checkpointables(folder, {item: wanted, "run": None})
    return config_lib.from_dict(items["run"]["config"]), _integer_keys(items[item]), items["run"]


def read_run(path: Place) -> dict:
    """The `run` item of a checkpoint, which is named as for `restore_params`; files' sizes are compared only."""
    with _here(find_step(path), ("run",), verify=False) as folder, orbax_context():
        return ocp.load_checkpointables(folder, dict(run=None))["run"]


@contextlib.contextmanager
def _here(step: Place, items: tuple[str, ...], verify: bool) -> Iterator[Path]:
    """The folder of a step; of one in an object store, a copy of some items, which is gone afterwards."""
    if not storage.is_remote(step):
        verify_step(step, content=verify)
        remote_steps.join_hosts(step)
        yield step
        return
    with tempfile.TemporaryDirectory(prefix="csfm-checkpoint-") as folder:
        copy = Path(folder, storage.name_of(step))
        if damage := remote_steps.fetch(step, copy, items):
            name, found, expected = damage
            raise BadInput(storage.join(step, name), found, expected, remote_steps.way_back(step))
        yield copy


def find_step(path: Place) -> Place:
    """The folder of the step that a work directory, a checkpoints folder or a step's folder stands for."""
    path = storage.absolute(path)
    if storage.name_of(path).isdigit() and storage.exists(manifest_path(path)):
        return path
    for folder in (storage.join(path, "checkpoints"), path):
        if steps := finished_steps(folder):
            return storage.join(folder, str(steps[-1]))
    raise BadInput(
        str(path),
        "no finished checkpoint" if storage.exists(path) else "nothing",
        "a work directory of csfm train, its checkpoints folder, or one step in it with its manifest beside it",
        "correct the path, or train until the first checkpoint is written",
    )


def orbax_context(*, apart: bool = False) -> ocp.Context:
    """How Orbax saves and loads.

    Args:
        apart: each process saves what it holds into a folder that the others do not see.
    """
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="run")  # a dict of plain values, as one JSON file
    made = ocp.Context()
    made.checkpointables.registry = registry
    # Weights compress by 8 %. Compressing takes twice the processor time of writing, and memory for a second copy.
    made.array.saving.use_compression = False
    if apart and jax.process_count() > 1:
        made.multiprocessing.primary_host = jax.process_index()  # each is the first in its own folder
        made.array.saving.array_metadata_store = None  # Orbax would look there for every process's
        # Else Orbax says to all processes at once that a step's folders are made, and takes one's word for the others':
        # whose disk is slower would write into folders that are not there, and all would wait for it.
        made.asynchronous.create_directories_asynchronously = False
    return made


def _present(**items) -> dict:
    return {name: item for name, item in items.items() if item is not None}


def _integer_keys(tree):
    if not isinstance(tree, dict):
        return tree
    return {int(k) if isinstance(k, str) and k.isdigit() else k: _integer_keys(v) for k, v in tree.items()}


@functools.cache  # once a process
def _quiet_late_writes() -> None:
    """Where the disk is full, Orbax waits for the first array that fails, and closes its event loop.

    What TensorStore has to say of each array that fails later then ends in an error of that loop. It tells nothing that
    the first one does not, and would bury the line that names the disk under tracebacks.
    """
    shown = sys.unraisablehook

    def hook(raised) -> None:
        if not (isinstance(raised.exc_value, RuntimeError) and str(raised.exc_value) == "Event loop is closed"):
            shown(raised)

    sys.unraisablehook = hook


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
