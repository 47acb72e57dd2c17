"""What the predictions of a study say: figures with intervals, paired differences, ranks, label efficiency."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from csfm_jax.evaluation import (
    decisions,
    elsewhere,
    label_curves,
    prediction_files,
    ranking,
    sensors,
    tables,
    task_figures,
)
from csfm_jax.evaluation.bootstrap import Interval, Replicates, interval
from csfm_jax.evaluation.cell import REFITTED, SPLITS, TRAINED, Cell
from csfm_jax.evaluation.label_curves import Curve
from csfm_jax.evaluation.prediction_files import Read
from csfm_jax.evaluation.sensors import ALL, Sensors
from csfm_jax.evaluation.study import Study, TaskSetup
from csfm_jax.evaluation.study_reads import figures, in_order, main_figure
from csfm_jax.tasks.task import Task
from data_pipelines import storage
from data_pipelines.errors import BadInput
from data_pipelines.signals import CHANNELS

COLUMNS = (
    "task", "model", "sensors", "reading", "recordings", "fraction", "against", "figure", "label", "point", "low",
    "high", "empirical_low", "empirical_high", "cases", "patients",
)  # fmt: skip
_VALUES = ("point", "low", "high", "empirical_low", "empirical_high")  # of an `Interval`
EVERY, COMPLETE, MISSING = "all", "complete", "missing"  # of the modalities that a task reads


@dataclass(frozen=True)
class Judged:
    """One model in a group.

    Attributes:
        test, validation: its predictions; of test, the recordings that all models of the group have predicted.
        figures: name -> interval. differences: name -> interval of this model minus the first one named; {} of itself.
        alone: test recordings that other models have not predicted, which are left out.
    """

    test: Read
    validation: Read
    figures: dict[str, Interval]
    differences: dict[str, Interval]
    alone: int


@dataclass(frozen=True)
class Group:
    """Models that were read on the same test recordings of a task.

    Attributes:
        setup: the task. subset: of the sensors. reading: "trained" or "refitted" (see `cells`). recordings: "all",
            "complete" or "missing" of the modalities that the task reads, or of a store "elsewhere/NAME".
        models: word -> `Judged`, in their order.
    """

    setup: TaskSetup
    subset: Sensors
    reading: str
    recordings: str
    models: dict[str, Judged]

    @property
    def first(self) -> Judged:
        return next(iter(self.models.values()))

    @property
    def patients(self) -> int:
        return len(np.unique(self.first.test.subject))


@dataclass(frozen=True)
class Results:
    """Attributes: study. groups. ranks, or None with fewer than two models. curves: task -> model -> `Curve`. tables:
    (task, model) -> `tables.label_table`. notes: lines on what was left out. broken: task -> why it has no figures."""

    study: Study
    groups: list[Group]
    ranks: ranking.RankTable | None
    curves: dict[str, dict[str, Curve]]
    tables: dict[tuple[str, str], list[dict]]
    notes: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    def of(self, task: str, subset: str = ALL, reading: str = TRAINED, recordings: str = EVERY) -> Group | None:
        found = [g for g in self.groups if (g.setup.task.name, g.subset.word, g.reading, g.recordings)
                 == (task, subset, reading, recordings)]  # fmt: skip
        return found[0] if found else None


def gather(study: Study, replicates: int, seed: int) -> Results:
    """Reads every prediction of a study; replicates, seed: of the bootstrap over test patients."""
    notes: list[str] = []
    groups, curves, labelled, broken = [], {}, {}, {}
    for setup in study.tasks:
        notes += [f"{setup.task.name}: {label} is left out: {why}" for label, why in setup.resolved.left_out.items()]
        if len(setup.stores) < len(study.settings.stores):
            read = ", ".join(store.name for store in setup.stores)
            notes.append(f"{setup.task.name}: read on {read}; the other stores have none of its labels")
        notes += [f"{setup.task.name}: no recording has the sensors {word}" for word in setup.absent]
        notes += [f"{setup.task.name}: {word} is the same as {before}" for word, before in setup.same.items()]
        notes += [f"{setup.task.name}: no test recording of {name} has its labels" for name in setup.unlabelled]
        try:
            mine = list(_groups(study, setup, replicates, seed, notes))
            curves[setup.task.name] = label_curves.curves(study, setup, replicates, seed)
        except BadInput as error:  # a damaged file of predictions, say: the other tasks have figures
            broken[setup.task.name] = str(error)
            continue
        groups += mine
        for whole in (group for group in mine if (group.subset.word, group.recordings) == (ALL, EVERY)):
            notes += _one_class(whole)
            if setup.task.kind == "multilabel" and not study.folds:  # thresholds are of one network
                labelled |= {(setup.task.name, word): _label_table(judged) for word, judged in whole.models.items()}
    for cell in study.cells:
        notes += _of_cell(cell)
    notes = list(dict.fromkeys(notes))  # some hold for several tasks
    return Results(study, groups, _ranks(study, groups, replicates, seed), curves, labelled, notes, broken)


def _of_cell(cell: Cell) -> list[str]:
    """Lines on what a model was not read on, and on what its figures do not hold."""
    task, word, status = cell.task.name, cell.model.word, cell.status
    whole, unread = cell.subsets[0].channels & sensors.held(cell.settings.stores), status.get("unread", {})
    notes = [f"{task}: {word} with the sensors {of}: {why}"
             for of, why in status.get("left_out", {}).items() if of != ALL]  # fmt: skip
    if silent := [CHANNELS[channel].name for channel in sorted(whole - cell.channels(cell.subsets[0]))]:
        notes.append(f"{task}: {word} reads no {', '.join(silent)}, whatever the sensors")
    if status.get("last_step"):
        notes.append(f"{task}: {word} is read at its last step: none had the figure of training.keep_best")
    if unchecked := status.get("unchecked"):
        notes.append(f"whether {word} was trained on test subjects of {', '.join(unchecked)} is not checked")
    notes += [f"{task}: {word} on {store.name}: {unread[file.name]}"
              for file, store in cell.elsewhere.items() if file.name in unread]  # fmt: skip
    taught = {*(cell.model.provenance.get("stores") or {})} & {store.name for store in cell.settings.elsewhere}
    return notes + [f"{word} was pretrained on train recordings of {name}" for name in sorted(taught)]


def _groups(study: Study, setup: TaskSetup, replicates: int, seed: int, notes: list[str]) -> Iterator[Group]:
    for subset in setup.subsets:
        for reading in (TRAINED, REFITTED):
            read = _read_models(study, setup, subset, reading, notes)
            if not read:
                continue
            if not set.intersection(*(set(test.key) for _, test in read.values())):
                notes.append(f"{setup.task.name}, sensors {subset.word}: no test recording was predicted by all models")
                continue
            yield _group(setup, subset, reading, EVERY, read, replicates, seed)
            if subset.word == ALL:
                yield from _by_modalities(study, setup, subset, read, replicates, seed)
                yield from _elsewhere(study, setup, subset, read, replicates, seed)


def _by_modalities(study, setup, subset, read, replicates, seed) -> Iterator[Group]:
    """Recordings that hold all of the task's modalities, and those that lack some, where there are both."""
    stores = study.of(setup.task.name)[0].settings.stores
    flags = sensors.complete(stores, setup.task)
    whole = {f"{s.name}/{study_.decode()}" for s, flag in zip(stores, flags) for study_ in s.index.study[flag]}
    is_whole = {word: np.isin(test.key, list(whole)) for word, (_, test) in read.items()}
    for name, wanted in ((COMPLETE, True), (MISSING, False)):
        common = set.intersection(*(set(test.key[is_whole[word] == wanted]) for word, (_, test) in read.items()))
        if common and any(is_whole[word].any() and not is_whole[word].all() for word in read):
            some = {word: (v, test.rows(is_whole[word] == wanted)) for word, (v, test) in read.items()}
            yield _group(setup, subset, TRAINED, name, some, replicates, seed)


def _elsewhere(study, setup, subset, read, replicates, seed) -> Iterator[Group]:
    """The test recordings of each other store, at thresholds and temperatures of the study's own."""
    cells = [cell for cell in study.of(setup.task.name) if cell.model.word in read]
    for store in setup.elsewhere:
        files = {cell.model.word: file for cell in cells for file, one in cell.elsewhere.items() if one is store}
        others = {word: in_order(prediction_files.read(file), setup) for word, file in files.items() if file.exists()}
        some = {word: (read[word][0], test) for word, test in others.items() if test is not None and len(test.key)}
        if some and set.intersection(*(set(test.key) for _, test in some.values())):
            yield _group(setup, subset, TRAINED, f"{elsewhere.HEAD}{store.name}", some, replicates, seed)


def _read_models(study, setup, subset, reading, notes) -> dict[str, tuple[Read, Read]]:
    """word -> (validation, test) of the models that have predicted, in the columns of the study's labels."""
    found = {}
    for cell in study.of(setup.task.name):
        files = [cell.file(subset, reading, split) for split in SPLITS]
        if cell.status.get("failed", "") is not None or not all(file.exists() for file in files):
            continue
        both = [in_order(prediction_files.read(file), setup) for file in files]
        if None in both:
            notes.append(f"{setup.task.name}: {cell.model.word} was taught other labels than these stores hold")
        else:
            found[cell.model.word] = both
    return found


def _group(setup, subset, reading, recordings, read, replicates, seed) -> Group:
    common = set.intersection(*(set(test.key) for _, test in read.values()))
    aligned = {}
    for word, (_, test) in read.items():
        rows = np.array([i for i in np.argsort(test.key) if test.key[i] in common], int)
        aligned[word] = test.rows(rows)
    ready = {word: figures(setup, test, read[word][0]) for word, test in aligned.items()}
    subjects = next(iter(aligned.values())).subject
    drawn = task_figures.replicate(ready, subjects, replicates, seed)
    first = next(iter(read))
    models = {}
    for word, found in drawn.items():
        each = {name: interval(float(r.point[0]), r.drawn[0]) for name, r in found.items()}
        against = {} if word == first else {name: _minus(r, drawn[first][name]) for name, r in found.items()}
        alone = len(read[word][1].key) - len(common)
        models[word] = Judged(aligned[word], read[word][0], each, against, alone)
    return Group(setup, subset, reading, recordings, models)


def _minus(one: Replicates, other: Replicates) -> Interval:
    return interval(float(one.point[0] - other.point[0]), one.drawn[0] - other.drawn[0])


def _label_table(judged: Judged) -> list[dict]:
    thresholds = decisions.choose_thresholds(judged.validation.values, judged.validation.labels)
    test = judged.test
    return tables.label_table(test.outputs, test.values, test.labels, thresholds)


def _one_class(group: Group) -> list[str]:
    """Labels that some macro mean leaves out, each with where, and how many it holds."""
    task, lines = group.setup.task, []
    if task.kind not in ("multilabel", "multiclass"):
        return lines
    reads = [("test", "", group.first.test)]
    if task.kind == "multilabel":  # exclusive classes have no thresholds
        reads += [("validation", f" that {word} reads", judged.validation) for word, judged in group.models.items()]
    told = set()  # most models read the same recordings
    for split, whose, read in reads:
        if (one := (split, _alone(task, read))) in told:
            continue
        whose = whose if any(before == split for before, _ in told) else ""
        told.add(one)
        for fold, alone in one[1]:
            where = f"{split} recordings{whose}" + (f" of fold {fold}" if fold else "")
            lines += [f"{task.name}: {name} has one class only among {where}" for name in alone]
            if alone:
                without = "AUROC and AUPRC" if split == "test" else "F1 at thresholds, which these choose,"
                every = len(read.labels_of)
                lines.append(f"{task.name}, {where}: macro {without} hold {every - len(alone)} of {every} labels")
    return lines


def _alone(task: Task, read: Read) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Of every fold, its number and the labels that have one class only."""
    found = []
    for fold in np.unique(read.fold).tolist():
        labels = task_figures.exclusive_or_any(task, read.labels[read.fold == fold])
        both = (labels > 0.5).any(axis=0) & (labels <= 0.5).any(axis=0)
        found.append((fold, tuple(name for name, has in zip(read.labels_of, both) if not has)))
    return tuple(found)


def _ranks(study: Study, groups: list[Group], replicates: int, seed: int) -> ranking.RankTable | None:
    """Over the tasks, of the models that have a figure in every one of them."""
    whole = [g for g in groups if (g.subset.word, g.reading, g.recordings) == (ALL, TRAINED, EVERY)]
    names = {g.setup.task.name: task_figures.MAIN[g.setup.task.kind] for g in whole}
    words = [
        model.word
        for model in study.models
        if whole and all(_has(g, model.word, names[g.setup.task.name]) for g in whole)
    ]
    if len(words) < 2:
        return None
    ranked = [
        ranking.Task(
            g.setup.task.name,
            {word: main_figure(g.setup, g.models[word].test) for word in words},
            g.first.test.subject,
            higher_is_better=names[g.setup.task.name] not in task_figures.LOWER_IS_BETTER,
        )
        for g in whole
    ]
    return ranking.rank_table(ranked, replicates, seed)


def _has(group: Group, word: str, figure: str) -> bool:
    return word in group.models and np.isfinite(group.models[word].figures[figure].point)


def rows(results: Results) -> list[tuple]:
    """The long table: a row a figure of a model, in the order of `COLUMNS`."""
    found = []
    for group in results.groups:
        at = (group.setup.task.name, group.subset.word, group.reading, group.recordings)
        cases, patients = len(group.first.test.key), group.patients
        for word, judged in group.models.items():
            for against, named in (("", judged.figures), (next(iter(group.models)), judged.differences)):
                for name, value in named.items():
                    figure, _, label = name.partition("/")
                    found.append((at[0], word, *at[1:], 1.0, against, figure, label, *values(value), cases, patients))
    for task, curves in results.curves.items():
        for word, curve in curves.items():
            for k in range(1, len(curve.sizes)):
                value = interval(float(curve.errors.point[k]), curve.errors.drawn[k])
                counts = curve.cases, curve.patients
                found.append((task, word, ALL, TRAINED, EVERY, 0.5**k, "", "error", "", *values(value), *counts))
    return found


def values(interval: Interval) -> tuple[float, ...]:
    """What the long table holds of a figure."""
    return tuple(getattr(interval, name) for name in _VALUES)


def write(results: Results, target: Path) -> None:
    """The long table as Parquet, whole or not at all."""
    write_rows(rows(results), target)


def write_rows(every: list[tuple], target: Path) -> None:
    """Rows in the order of `COLUMNS`, as Parquet, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = dict.fromkeys(COLUMNS, pa.string()) | dict.fromkeys(("fraction", *_VALUES), pa.float64())
    kinds |= dict.fromkeys(("cases", "patients"), pa.int64())
    arrays = [pa.array([row[i] for row in every], kinds[name]) for i, name in enumerate(COLUMNS)]
    with storage.whole(target) as temporary:
        pq.write_table(pa.table(arrays, names=list(COLUMNS)), temporary)


def summary(results: Results) -> str:
    """One line a task and model: the figure that it is ranked by, and its difference to the first model."""
    wide = 2 + max(len(model.word) for model in results.study.models)
    lines = [f"{'task':<24}{'model':<{wide}}{'figure':<13}{'':<23}difference to the first"]
    for setup in results.study.tasks:
        group, name = results.of(setup.task.name), task_figures.MAIN[setup.task.kind]
        for word, judged in group.models.items() if group else ():
            difference = _told(judged.differences[name], "+") if judged.differences else ""
            figure = name.replace("_", " ")
            lines.append(
                f"{setup.task.name:<24}{word:<{wide}}{figure:<13}{_told(judged.figures[name]):<23}{difference}"
            )
    return "\n".join(lines)


def _told(value: Interval, sign: str = "") -> str:
    return f"{value.point:{sign}.3f} ({value.low:{sign}.3f}, {value.high:{sign}.3f})"
