"""The page of a study: figures with intervals, paired differences, ranks, curves, and what was left out and failed.

One self-contained HTML file; no patient, no study and no path of a recording is in it.
"""

from pathlib import Path

import numpy as np

from csfm_jax.evaluation import elsewhere, task_figures
from csfm_jax.evaluation.bootstrap import Interval
from csfm_jax.evaluation.cell import REFITTED, TRAINED
from csfm_jax.evaluation.sensors import ALL
from csfm_jax.evaluation.study import TaskSetup
from csfm_jax.evaluation.study_results import COMPLETE, MISSING, Group, Results
from csfm_jax.reporting import charts, evaluation_curves, evaluation_errors, markup
from data_pipelines import storage

_SHOWN = {
    "multilabel": ("macro_auroc", "macro_average_precision", "macro_sensitivity_at_specificity", "macro_f1",
                   "challenge_score", "brier", "calibration_error", "calibration_error_scaled"),
    "multiclass": ("macro_auroc", "macro_average_precision", "accuracy", "balanced_accuracy", "kappa", "macro_f1",
                   "brier", "calibration_error", "calibration_error_scaled"),
    "regression": ("z_error", "mean_absolute_error", "r2"),
    "survival": ("concordance",),
    "signal": ("correlation", "mean_absolute_error", "root_mean_square_error", "heart_rate_error", "heart_rate_found"),
}  # fmt: skip
NAMES = {
    "macro_auroc": "AUROC", "macro_average_precision": "AUPRC", "macro_f1": "F1", "brier": "Brier score",
    "macro_sensitivity_at_specificity": "sensitivity at 95 % specificity, of the test ROC", "calibration_error": "ECE",
    "calibration_error_scaled": "ECE, temperature-scaled", "z_error": "z-normalised MAE", "r2": "R²",
    "mean_absolute_error": "MAE", "concordance": "Harrell's C",
    "root_mean_square_error": "RMSE", "correlation": "Pearson's r", "heart_rate_error": "heart rate error (1/min)",
}  # fmt: skip

_READINGS = ((TRAINED, "weights as they are"), (REFITTED, "probe or trees fitted again"))


def write(results: Results, alike: dict[str, np.ndarray], target: Path) -> None:
    """Writes the page, whole or not at all. alike: task -> linear CKA of two models' layers."""
    storage.write_bytes(target, render(results, alike).encode())


def render(results: Results, alike: dict[str, np.ndarray]) -> str:
    """The page's HTML."""
    body = [_beginning(results), _ranks(results), _sensors(results), _left_out(results)]
    body += [_task(results, setup, alike.get(setup.task.name)) for setup in results.study.tasks]
    return markup.document("csfm: evaluation", body)


def _beginning(results: Results) -> str:
    study = results.study
    stores = ", ".join(store.name for store in study.settings.stores)
    told = f" Each of {study.folds} folds of patients has models of its own; figures are means over folds."
    lines = [
        f"{len(study.tasks)} tasks, {len(study.models)} models; stores: {stores}; prepared by "
        f"{study.settings.stores[0].spec}.",
        "Models are fitted on train subjects; thresholds, temperatures and regularisation are chosen on validation "
        "subjects; all figures are of test subjects, with 95 % bootstrap intervals over patients. Differences are "
        f"paired, against {study.models[0].word}. All models of a table are read on the same recordings."
        + told
        * (study.folds > 0),
    ]
    return "<h1>Evaluation</h1>" + "".join(f'<p class="soft">{markup.text(line)}</p>' for line in lines)


def _ranks(results: Results) -> str:
    if results.ranks is None:
        return ""
    ranks = results.ranks
    order = np.argsort([i.point for i in ranks.mean_rank])
    rows = [
        [ranks.models[i], _interval(ranks.mean_rank[i]), f"{ranks.best[i]:.0%}", *(float(r) for r in ranks.rank[i])]
        for i in order
    ]
    header = ["model", "mean rank", "best in draws", *ranks.tasks]
    return f"<h2>Ranks over tasks</h2>{markup.table(header, rows)}"


def _sensors(results: Results) -> str:
    """The first model on every subset of the sensors: a row a subset, its figure of each task."""
    word, setups = results.study.models[0].word, results.study.tasks
    words = list(dict.fromkeys(w for setup in setups for w in (*(s.word for s in setup.subsets), *setup.same)))
    columns, header = [], ["sensors"]
    for setup in setups:
        for reading, told in _READINGS:
            read = [setup.same.get(w, w) for w in words]
            found = [results.of(setup.task.name, w, TRAINED if w == ALL else reading) for w in read]
            found = [g if g and word in g.models else None for g in found]
            if any(g for w, g in zip(read, found) if w != ALL or reading == TRAINED):
                main = task_figures.MAIN[setup.task.kind]
                columns.append([_with_patients(g, g.models[word].figures[main]) if g else "" for g in found])
                header.append(f"{setup.task.name}, {_name(main)}; {told}")
    if len(words) < 2 or not columns:
        return ""
    rows = [list(row) for row in zip(words, *columns)]
    return f"<h2>{markup.text(word)} on fewer sensors</h2>{markup.table(header, rows)}"


def _with_patients(group: Group, value: Interval) -> str:
    return f"{_interval(value)}, {group.patients:,} patients"


def _left_out(results: Results) -> str:
    failed = [[task, model, why] for (task, model), why in results.study.failures.items()]
    failed += [[task, "all", why] for task, why in results.broken.items()]
    parts = []
    if failed:
        parts.append(f"<h2>What failed</h2>{markup.table(['task', 'model', 'reason'], failed)}")
    if results.notes:
        items = "".join(f"<li>{markup.text(note)}</li>" for note in results.notes)
        parts.append(f"<h2>What was left out</h2><ul>{items}</ul>")
    return "".join(parts)


def _task(results: Results, setup: TaskSetup, alike: np.ndarray | None) -> str:
    task, group = setup.task, results.of(setup.task.name)
    counts = ", ".join(f"{count:,} {split}" for split, count in setup.resolved.recordings.items())
    parts = [f"<h2>{markup.text(task.name)}</h2>", f"<p>{markup.text(task.about)}. Labelled recordings: {counts}.</p>"]
    if group is None:
        return "".join([*parts, "<p>No model has been read.</p>"])
    one_network = not results.study.folds  # curves and thresholds are of one
    parts += [_figures(group), _pictures(group) if one_network else ""]
    parts += [_by_sensors(results, setup), _by_modalities(results, setup), _elsewhere(results, setup)]
    parts += [_efficiency(results, setup), _labels(results, setup), _alike(alike)]
    if task.kind == "multilabel":
        cells = results.study.of(task.name) if one_network else []
        parts.append(evaluation_errors.section(group, results.study.settings.stores, cells))
    return "\n".join(filter(None, parts))


def _interval(value: Interval, sign: str = "") -> str:
    return f"{value.point:{sign}.3f} ({value.low:{sign}.3f}, {value.high:{sign}.3f})"


def _shown(group: Group) -> list[str]:
    """The figures of a table: means over labels, or of a regression each label's."""
    there = list(group.first.figures)
    return [name for wanted in _SHOWN[group.setup.task.kind] for name in there if name.partition("/")[0] == wanted
            and ("/" not in name or wanted not in there)]  # fmt: skip


def _name(figure: str) -> str:
    name, _, label = figure.partition("/")
    return NAMES.get(name, name.replace("_", " ")) + (f", {label}" if label else "")


def _figures(group: Group) -> str:
    names = _shown(group)
    main = task_figures.MAIN[group.setup.task.kind]
    rows = [[word, *(_interval(judged.figures[name]) for name in names)] for word, judged in group.models.items()]
    told = f"{len(group.first.test.key):,} test recordings of {group.patients:,} patients."
    if alone := {word: j.alone for word, j in group.models.items() if j.alone}:
        told += (
            " Not read by all models, hence left out: "
            + ", ".join(f"{n:,} of {word}" for word, n in alone.items())
            + "."
        )
    differences = [[word, *(_interval(judged.differences[name], "+") for name in names)]
                   for word, judged in group.models.items() if judged.differences]  # fmt: skip
    drawn = {word: _three(judged.figures[main]) for word, judged in group.models.items()}
    parts = [f"<p>{markup.text(told)}</p>", markup.table(["model", *map(_name, names)], rows)]
    parts.append(f"<figure>{charts.intervals(drawn, _name(main))}</figure>")
    if differences:
        first = markup.text(next(iter(group.models)))
        parts += [f"<h3>Difference to {first}, paired</h3>", markup.table(["model", *map(_name, names)], differences)]
    return "".join(parts)


def _three(value: Interval) -> tuple[float, float, float]:
    return value.point, value.low, value.high


def _pictures(group: Group) -> str:
    if group.setup.task.kind not in ("multilabel", "multiclass"):
        return ""
    roc = charts.curves(
        evaluation_curves.roc(group), ("1 - specificity", "sensitivity, mean over labels"), diagonal=True
    )
    parts = [f"<figure>{roc}<figcaption>ROC</figcaption></figure>"]
    for scaled, told in ((False, "as predicted"), (True, "temperature-scaled on validation")):
        drawn = charts.curves(
            evaluation_curves.reliability(group, scaled), ("probability", "share of positives"), diagonal=True
        )
        parts.append(f"<figure>{drawn}<figcaption>Reliability, {told}</figcaption></figure>")
    return f'<div class="grid">{"".join(parts)}</div>'


def _by_sensors(results: Results, setup: TaskSetup) -> str:
    """A heat map of the main figure over subsets of the sensors, for each way of reading them."""
    main, parts = task_figures.MAIN[setup.task.kind], []
    for reading, told in _READINGS:
        # on all sensors there is nothing to be fitted again
        found = [results.of(setup.task.name, s.word, TRAINED if s.word == ALL else reading) for s in setup.subsets]
        groups = {group.subset.word: group for group in found if group is not None}
        words = list(dict.fromkeys(word for at, group in groups.items() if at != ALL for word in group.models))
        if not words:
            continue
        values = np.array([[_point(group, word, main) for group in groups.values()] for word in words])
        drawn = charts.heat(values, words, list(groups), upward=main not in task_figures.LOWER_IS_BETTER)
        parts.append(f"<figure>{drawn}<figcaption>{_name(main)}; {told}</figcaption></figure>")
    return f'<h3>With fewer sensors</h3><div class="grid">{"".join(parts)}</div>' if parts else ""


def _point(group: Group, word: str, figure: str) -> float:
    judged = group.models.get(word)
    return judged.figures[figure].point if judged else np.nan


def _by_modalities(results: Results, setup: TaskSetup) -> str:
    groups = {name: results.of(setup.task.name, recordings=name) for name in (COMPLETE, MISSING)}
    if None in groups.values():
        return ""
    main = task_figures.MAIN[setup.task.kind]
    rows = [
        [word, *(_interval(group.models[word].figures[main]) for group in groups.values())]
        for word in groups[COMPLETE].models
    ]
    counts = [f"{name} ({len(g.first.test.key):,} recordings)" for name, g in groups.items()]
    header = f"<h3>{_name(main)}, recordings with all modalities and without some</h3>"
    return header + markup.table(["model", *counts], rows)


def _elsewhere(results: Results, setup: TaskSetup) -> str:
    names = [f"{elsewhere.HEAD}{store.name}" for store in setup.elsewhere]
    groups = [group for name in names if (group := results.of(setup.task.name, recordings=name))]
    if not groups:
        return ""
    main = task_figures.MAIN[setup.task.kind]
    words = {word: None for group in groups for word in group.models}
    rows = [
        [word, *(_interval(g.models[word].figures[main]) if word in g.models else "" for g in groups)] for word in words
    ]
    counts = [
        f"{g.recordings.removeprefix(elsewhere.HEAD)} ({len(g.first.test.key):,} recordings of {g.patients:,} patients)"
        for g in groups
    ]
    header = f"<h3>{_name(main)} on other sources, where no label was learned and nothing chosen</h3>"
    return header + markup.table(["model", *counts], rows)


def _efficiency(results: Results, setup: TaskSetup) -> str:
    curves = results.curves.get(setup.task.name)
    if not curves:
        return ""
    series = {word: (curve.sizes, curve.errors.point) for word, curve in curves.items()}
    main = task_figures.MAIN[setup.task.kind]
    error = _name(main) if main in task_figures.LOWER_IS_BETTER else f"1 - {_name(main)}"
    drawn = charts.curves(series, ("labelled train patients", error), logarithmic=True)
    rows = [[word, _interval(curve.ratio.ratio)] for word, curve in curves.items() if curve.ratio]
    against = next(iter(curves.values())).against
    told = markup.table(["model", f"labels needed for what {against} reaches with all of them"], rows) if rows else ""
    return f"<h3>With fewer labels</h3><figure>{drawn}</figure>{told}"


def _labels(results: Results, setup: TaskSetup) -> str:
    parts = []
    for model in results.study.models:
        table = results.tables.get((setup.task.name, model.word))
        if table is None or len(table) < 2:
            continue
        names = list(table[0])
        rows = [["" if row[name] is None else row[name] for name in names] for row in table]
        body = markup.table([name.replace("_", " ") for name in names], rows)
        parts.append(f"<details><summary>{markup.text(model.word)}</summary>{body}</details>")
    told = '<p class="soft">Thresholds have the best F1 of validation recordings.</p>'
    return f"<h3>By label</h3>{told}{''.join(parts)}" if parts else ""


def _alike(values: np.ndarray | None) -> str:
    if values is None:
        return ""
    names = [[f"{i + 1}" for i in range(n)] for n in values.shape]
    drawn = charts.heat(values, *names, label="layer of the second model")
    return f"<h3>Linear CKA of layers, test windows</h3><figure>{drawn}</figure>"
