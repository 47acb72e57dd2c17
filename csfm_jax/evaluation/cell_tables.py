"""Cells of models that read a table of features: probes on frozen embeddings, trees on classical measurements."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from csfm_jax.evaluation import features, sensors, tabular
from csfm_jax.evaluation.cell import REFITTED, SPLITS, TRAINED, Cell, holds
from csfm_jax.evaluation.sensors import Sensors
from csfm_jax.evaluation.study_models import TREES
from csfm_jax.training.claim import locked
from data_pipelines import storage
from data_pipelines.errors import BadInput
from data_pipelines.store import Store
from data_pipelines.store_view import ChannelsOf

_MEASURED_SECONDS = 300.0  # of a recording, by trees, where the task sets no end


def table_files(cell: Cell, subsets: list[Sensors]) -> None:
    """Predictions of probes or trees: read as fitted on all sensors, fitted again, and fitted on fewer patients."""
    if not cell.wanted(subsets):
        return
    fit, stores, labels = _fit(cell), cell.settings.stores, cell.resolved.labels
    known = [tabular.Known.of(t, stores, labels) for t in _tables(cell, subsets, stores)]
    whole = known[0]
    if not all(len(one.labelled(0)) for one in known):
        expected = "some, with every subset of the sensors"
        raise BadInput(f"task {cell.task.name}", "no labelled train recording", expected, "use fewer --sensors")
    fractions = tabular.train_subsets(whole, cell.patients)

    def keep(pair, subset, reading, k=0):
        for split, found in zip(SPLITS, pair):
            if not k or split == "test":
                target = cell.file(subset, reading, split, k)
                number = len(np.unique(whole.subject[fractions[k]]))
                cell.write(found, stores, target, labels, train_patients=number)

    for subset, pair in zip(subsets, tabular.fitted(fit, whole, known)):
        keep(pair, subset, TRAINED)
    for subset, one in zip(subsets[1:], known[1:]):
        keep(tabular.fitted(fit, one, [one])[0], subset, REFITTED)
    for k, rows in enumerate(fractions[1:], 1):
        keep(tabular.fitted(fit, whole, [whole], rows)[0], subsets[0], TRAINED, k)


def read_elsewhere(cell: Cell, store: Store, target: Path) -> None:
    """Predictions for the test recordings of another store, of the model that was fitted here on all sensors."""
    stores, labels = cell.settings.stores, cell.resolved.labels
    (here,) = (tabular.Known.of(t, stores, labels) for t in _tables(cell, cell.subsets[:1], stores))
    (there,) = (tabular.Known.of(t, [store], labels) for t in _tables(cell, cell.subsets[:1], [store], "test"))
    ((_, found),) = tabular.fitted(_fit(cell), here, [there])
    cell.write(found, [store], target, labels)


def _fit(cell: Cell) -> tabular.Fit:
    return tabular.boosted(cell.task, cell.settings.seed) if cell.model.kind == TREES else tabular.linear(cell.task)


def _tables(
    cell: Cell, subsets: list[Sensors], stores: list[Store], split: str | None = None
) -> Iterator[tabular.Table]:
    """The features of every subset of the sensors, in order; made once for all tasks that read the same windows.

    Args: stores, split: whose recordings are measured, all of them or one split's.
    """
    encoder = None
    for subset in subsets:
        target = _features_file(cell, subset, stores, split)
        target.parent.mkdir(parents=True, exist_ok=True)
        # a command beside this one may be making it for another task
        with locked(target.parent, math.inf, f".{target.stem}.lock"):
            if target.exists():
                pass
            elif cell.model.kind == TREES:
                _keep(_classical(cell, sensors.seen(stores, subset, split)), target)
            else:
                encoder = encoder or cell.network()
                found = features.recording_features(encoder, sensors.seen(stores, subset, split), cell.window)
                _keep(tabular.Table(found.store, found.recording, found.windows, found.pooled), target)
        with np.load(target) as kept:
            yield tabular.Table(*(kept[name] for name in tabular.Table._fields))


def _features_file(cell: Cell, subset: Sensors, stores: list[Store], split: str | None) -> Path:
    task = cell.task
    read = [task.begin, task.end] if cell.model.kind == TREES else dataclasses.asdict(cell.window)
    decides = [cell.model.identity, sorted(subset.channels), read]
    decides += [] if task.cut is None else [dataclasses.asdict(task.cut)]
    # a table counts stores, so that their order decides, too; folds of one store share its table
    decides += [split, [[store.name, store.manifest["digest"]] for store in stores]]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    return cell.settings.features / cell.model.folder / f"{subset.file}-{digest}.npz"


def _keep(table: tabular.Table, target: Path) -> None:
    storage.clear_unfinished(target)
    with storage.whole(target) as temporary, open(temporary, "wb") as file:
        np.savez(file, **table._asdict())


def _classical(cell: Cell, stores: list[ChannelsOf]) -> tabular.Table:
    from csfm_jax.baselines.feature_table import feature_table

    task = cell.task
    seconds = task.end - task.begin if task.end else _MEASURED_SECONDS
    found = feature_table(stores, cell.settings.workers, seconds, task.begin)
    for group, number in sorted(found.failures.items()):
        print(f"  {group}: could not be measured on {number:,} of {len(found.values):,} recordings", flush=True)
    held = [holds(store, store.channels) for store in stores]
    rows = np.flatnonzero(np.concatenate(held))
    return tabular.Table(found.store[rows], found.recording[rows], np.ones(len(rows), np.int64), found.values[rows])
