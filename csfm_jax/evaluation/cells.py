"""Makes a cell's predictions: the network is taught where it is to be, then asked, each file once."""

import dataclasses
import errno
import shlex
import sys
import time
from pathlib import Path

import jax

from csfm_jax.commands import finetune
from csfm_jax.evaluation import cell_tables, leakage, sensors
from csfm_jax.evaluation.cell import NOT_FINISHED, SPLITS, TRAINED, Cell
from csfm_jax.evaluation.fine_tuned import FineTuned
from csfm_jax.evaluation.sensors import ALL, Sensors
from csfm_jax.evaluation.study_models import FINE_TUNED, TABULAR
from csfm_jax.tasks.resolve import resolve
from csfm_jax.training import best
from data_pipelines.errors import BadInput

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # every cell would fail of these


class Stopped(Exception):
    """A signal ended a fine-tuning; the same command goes on with it."""


def run(cell: Cell) -> None:
    """Makes what is missing of a cell's predictions, and writes down how that went.

    Raises:
        BadInput: predictions of other weights than the model's are there. Stopped: see there. OSError: no room.
    """
    identity = cell.model.identity
    before = {name: value for name, value in cell.status.items() if name not in ("unfinished", "broke")}
    if before and (differing := [name for name in identity if before["weights"].get(name) != identity[name]]):
        found = f"predictions that were not made by {cell.model.word} as it is now: another {', '.join(differing)}"
        raise BadInput(str(cell.folder), found, "its own", "remove the folder, or choose another --workdir")
    left_out = {s.word: why for s in cell.subsets if (why := cell.missing(s))}
    there = [s for s in cell.subsets if s.word not in left_out]
    began, told = time.time(), {"weights": identity, "left_out": left_out}
    if ALL in left_out:
        cell.note(told | {"failed": left_out[ALL]})
        return
    try:
        told |= {"unchecked": _unchecked(cell)}
    except BadInput as error:
        cell.note(told | {"failed": str(error)})
        return
    complete = bool(before) and before["failed"] is None
    if complete and not cell.wanted(there):
        if (kept := before | {"unchecked": told["unchecked"]}) != cell.status:
            cell.note(kept)  # the rest is of the commands that made it
        return

    def note_without(why: str, **more) -> None:
        """Of a cell that was complete before this command wanted more of it, the figures stand."""
        cell.note((before | told | {"unfinished": why} if complete else told | {"failed": why}) | more)

    note_without(NOT_FINISHED)  # from here on, what lies there is of these weights
    try:
        make = cell_tables.table_files if cell.model.kind in TABULAR else network_files
        make(cell, there)
        told |= {"unread": _read_elsewhere(cell), "last_step": _read_at_last_step(cell)}
        cell.note(told | {"failed": None, "seconds": round(time.time() - began, 1)})
    except BadInput as error:
        note_without(str(error))
    except Stopped:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise
        # its text may name anything; the place in the code goes to the terminal, and the others go on
        sys.excepthook(*sys.exc_info())
        note_without(f"{type(error).__name__}, see the output of the command", broke=True)


def _unchecked(cell: Cell) -> list[str]:
    """Names of the stores of whose test subjects it cannot be told whether the model was trained on them, where that
    has been accepted.

    Raises:
        BadInput: it was trained on some; or it cannot be told, and that has not been accepted.
    """
    if not cell.model.provenance:
        return []
    rest = cell.model.provenance, cell.settings.unchecked, cell.model.word
    checked = leakage.check(cell.settings.stores, *rest)
    return [] if checked else [store.name for store in cell.settings.stores]


def network_files(cell: Cell, subsets: list[Sensors]) -> None:
    """Predictions of a fine-tuned network, the same weights for every subset of sensors."""
    model, stores = FineTuned.load(_taught(cell)), cell.settings.stores
    for subset in subsets:
        for split in SPLITS:
            _predict(cell, model, subset, stores, split, cell.file(subset, TRAINED, split))
    for k in range(1, cell.halvings + 1):
        if not (target := cell.file(subsets[0], TRAINED, "test", k)).exists():
            _predict(cell, FineTuned.load(_taught(cell, k)), subsets[0], stores, "test", target, k)


def _predict(cell, model: FineTuned, subset: Sensors, stores, split: str, target: Path, halvings: int = 0) -> None:
    # of a network that was taught elsewhere nobody knows on whom
    told = {"train_patients": len(cell.patients[halvings])} if cell.model.kind != "given" else {}
    if not target.exists():
        found = model.predict(sensors.seen(stores, subset), split)
        cell.write(found, stores, target, model.config.adaptation.labels, **told)


def _read_elsewhere(cell: Cell) -> dict[str, str]:
    """Predictions for other stores' test recordings; name of a file -> why the store could not be read, which is no
    fault of the cell's own."""
    unread = {}
    for target, store in cell.elsewhere.items():
        if target.exists():
            continue
        try:
            if cell.model.provenance:
                leakage.check([store], cell.model.provenance, cell.settings.unchecked, cell.model.word)
            if cell.model.kind in TABULAR:
                cell_tables.read_elsewhere(cell, store, target)
            else:
                _predict(cell, FineTuned.load(_taught(cell)), cell.subsets[0], [store], "test", target)
        except BadInput as error:
            unread[target.name] = str(error)
    return unread


def _read_at_last_step(cell: Cell) -> bool:
    """Whether a best step was to be read, and none was kept."""
    taught = cell.model.kind in FINE_TUNED
    return taught and bool(cell.config.training.keep_best) and not best.kept(cell.folder / "fine_tuning")


def _taught(cell: Cell, halvings: int = 0) -> Path | str:
    """Where the fine-tuned network lies, once `csfm finetune` is through with it; halvings: of its train patients."""
    if cell.model.kind == "given":
        return cell.model.source
    config, workdir = cell.config, cell.folder / "fine_tuning"
    if halvings:
        ours = dataclasses.replace(config.adaptation, halvings=halvings, halvings_seed=cell.settings.seed)
        config, workdir = dataclasses.replace(config, adaptation=ours), cell.folder / f"fine_tuning.half-{halvings}"
    resolved = resolve(config, cell.settings.stores)
    config = finetune.with_rows(resolved.adapted(config), cell.settings.stores)
    config = finetune.with_steps(config, cell.settings.stores)
    from csfm_jax.training.loop import train

    init, command = cell.model.init, shlex.join(["csfm", *sys.argv[1:]])
    last = train(config, workdir, init=init, command=command)
    jax.clear_caches()  # of many networks one after another
    if last < config.training.steps:
        raise Stopped
    return best.place(workdir)
