"""The comparison of two frozen encoders: label groups, splits, probes, intervals, and the check for leaked subjects."""

import fnmatch
from dataclasses import dataclass

import numpy as np

from csfm_jax.evaluation import bootstrap, metrics, probes
from data_pipelines.errors import BadInput
from data_pipelines.store import SPLITS


@dataclass(frozen=True)
class Recordings:
    """The recordings that are evaluated, one row each.

    Attributes:
        subject: [n] hashed subjects, the unit of the bootstrap.
        split: [n] int, 0 train, 1 validation, 2 test.
        labels: name -> [n] float, NaN = not labelled.
    """

    subject: np.ndarray
    split: np.ndarray
    labels: dict[str, np.ndarray]

    @classmethod
    def of(cls, stores, store: np.ndarray, recording: np.ndarray) -> "Recordings":
        """Gathers rows (store number, recording number) of several stores; a label that a store lacks is NaN there."""
        tables = [s.labels() for s in stores]
        names = sorted({name for table in tables for name in table})
        labels = {name: np.full(len(store), np.nan, np.float32) for name in names}
        subject, split = np.zeros(len(store), "S16"), np.zeros(len(store), np.int8)
        for i, (opened, table) in enumerate(zip(stores, tables, strict=True)):
            here = store == i
            subject[here] = opened.index.subject[recording[here]]
            split[here] = opened.index.split[recording[here]]
            for name, values in table.items():
                labels[name][here] = values[recording[here]]
        return cls(subject, split, labels)

    @classmethod
    def whole(cls, stores) -> "Recordings":
        """Every recording of the stores, in order."""
        sizes = [len(s.index) for s in stores]
        return cls.of(stores, np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(n) for n in sizes]))


@dataclass(frozen=True)
class Group:
    """Labels that are judged together: classes by their macro AUROC, or one continuous label by its R2."""

    name: str
    labels: tuple[str, ...]
    continuous: bool


def groups(recordings: Recordings, patterns: str) -> list[Group]:
    """Label groups from patterns separated by commas ("superclass/*,age"); a continuous label is a group of its own.

    Raises:
        BadInput: a pattern matches no label; names the groups there are.
    """
    found = []
    for pattern in filter(None, (p.strip() for p in patterns.split(","))):
        names = fnmatch.filter(recordings.labels, pattern)
        if not names:
            there = sorted({n.split("/")[0] + ("/*" if "/" in n else "") for n in recordings.labels})
            expected = "a pattern of " + ", ".join(there) if there else "stores with labels"
            raise BadInput(f"--labels {pattern}", "no label of that name", expected, "name labels that the stores hold")
        continuous = [n for n in names if not np.isin(_labelled(recordings.labels[n]), (0, 1)).all()]
        if classes := tuple(n for n in names if n not in continuous):
            found.append(Group(pattern, classes, False))
        found += [Group(name, (name,), True) for name in continuous]
    return found


def check_unseen(recordings: Recordings, trained: set[bytes], where: str) -> None:
    """Refuses an evaluation on people whom the encoder has been trained on.

    Args:
        recordings: those to be evaluated. trained: hashed subjects of the checkpoint. where: named in the error.

    Raises:
        BadInput: test subjects are among them; tells how many, and never who.
    """
    test = set(np.unique(recordings.subject[recordings.split == 2]).tolist())
    if seen := len(test & trained):
        raise BadInput(
            where,
            f"{seen} of the {len(test)} test subjects among those that the checkpoint was trained on",
            "none",
            "evaluate on stores whose splits were those of the pretraining, or train again without these subjects",
        )


def check_comparable(incomparable: list[str], complete: bool, unchecked: bool, where: str) -> bool:
    """Refuses an evaluation where hashes cannot tell whether the encoder has been trained on test subjects.

    Args:
        incomparable: stores whose subjects were hashed in another way than those of the training.
        complete: whether all subjects of the training are known. unchecked: whether that has been accepted.
        where: named in the error.

    Returns:
        Whether test subjects are checked.

    Raises:
        BadInput: they are not, and that has not been accepted.
    """
    if complete and not incomparable:
        return True
    if not unchecked:
        found = "a training of which not all subjects are known"
        if complete:
            found = f"no record of the key or the people of {', '.join(incomparable)}: equal subjects would not be seen"
        remedy = "look with `csfm data overlap` at the stores of both, then add --unchecked-subjects"
        raise BadInput(where, found, "subjects hashed as in the training", remedy)
    return False


def judge(
    recordings: Recordings, checkpoint: np.ndarray, random: np.ndarray, group: Group, replicates: int = 1000, seed=0
) -> dict:
    """Probes one label group on two encoders' features of the same recordings.

    Args:
        recordings: n rows. checkpoint, random: [n, D] pooled features of the trained and the untrained encoder.
        group: the labels. replicates, seed: of the paired bootstrap over test patients.

    Returns:
        Plain values: "metric", "checkpoint", "random" and "difference" (each an `Interval` as a dict), counts, the
        regularisation chosen, and figures by label.

    Raises:
        BadInput: no label of the group has both classes (or two values) in both train and test subjects, or no
            validation subject has one.
    """
    names, left_out = _usable(recordings, group)
    labels = np.stack([recordings.labels[n] for n in names], axis=1).astype(np.float64)
    known = ~np.isnan(labels).all(axis=1)
    rows = [known & (recordings.split == i) for i in range(3)]
    if not rows[1].any():
        remedy = "evaluate on more recordings, or choose other labels"
        expected = "some, on whom the probe's regularisation is chosen"
        raise BadInput(f"--labels {group.name}", "no validation subject with these labels", expected, remedy)
    fit = probes.ridge if group.continuous else probes.logistic
    fitted = [fit(*(probes.Cases(features[r], labels[r]) for r in rows)) for features in (checkpoint, random)]
    truth, patients = labels[rows[2]], recordings.subject[rows[2]]
    figures = _figures(group.continuous, fitted, truth, patients, replicates, seed)
    return {
        "group": group.name,
        "labels": list(names),
        "left_out": left_out,
        **figures,
        "recordings": {s: int(r.sum()) for s, r in zip(SPLITS, rows)},
        "subjects": {s: len(np.unique(recordings.subject[r])) for s, r in zip(SPLITS, rows)},
        "strength": {"checkpoint": fitted[0].strength, "random": fitted[1].strength},
        "replicates": replicates,
        "seed": seed,
    }


def _usable(recordings: Recordings, group: Group) -> tuple[list[str], dict[str, str]]:
    names, left_out = [], {}
    for name in group.labels:
        one_sided = [
            SPLITS[i] for i in (0, 2) if len(np.unique(_labelled(recordings.labels[name][recordings.split == i]))) < 2
        ]
        if one_sided:
            left_out[name] = "fewer than two values among " + " and ".join(one_sided) + " subjects"
        else:
            names.append(name)
    if not names:
        raise BadInput(
            f"--labels {group.name}",
            "no label with two values in both train and test subjects",
            "at least one",
            "evaluate on more recordings, or choose other labels",
        )
    return names, left_out


def _figures(continuous, fitted, truth, patients, replicates, seed) -> dict:
    scores = [probe.scores for probe in fitted]
    if continuous:
        named = {"r2": metrics.r2, "mean_absolute_error": metrics.mean_absolute_error}
        both = {
            name: bootstrap.compare(*(_bound(figure, s[:, 0], truth[:, 0]) for s in scores), patients, replicates, seed)
            for name, figure in named.items()
        }
        return {"metric": "r2", **_named(both["r2"]), "mean_absolute_error": _named(both["mean_absolute_error"])}
    macro = bootstrap.compare(
        *(metrics.MacroFigure(metrics.auroc, s, truth) for s in scores), patients, replicates, seed
    )
    each = {"checkpoint": [], "random": []}
    for values, s in zip(each.values(), scores, strict=True):
        values += [float(metrics.macro_auroc(s[:, [k]], truth[:, [k]])[0]) for k in range(truth.shape[1])]
    positives = [int(n) for n in np.nansum(truth, axis=0)]
    return {"metric": "macro_auroc", **_named(macro), "by_label": each, "positives": positives}


def _bound(figure, scores, truth):
    return lambda weights: figure(scores, truth, weights)


def _named(comparison: bootstrap.Comparison) -> dict:
    values = comparison.to_dict()
    return {"checkpoint": values["first"], "random": values["second"], "difference": values["difference"]}


def _labelled(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]
