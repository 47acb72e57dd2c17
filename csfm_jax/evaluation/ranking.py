"""Models ranked over tasks, and how sure the ranks are: a table of wins that one lucky test set cannot turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from csfm_jax.evaluation import bootstrap
from csfm_jax.evaluation.bootstrap import Figure, Interval
from data_pipelines.errors import BadInput


@dataclass(frozen=True)
class Task:
    """One task on which every model is read.

    Attributes:
        name: of the task. figures: model -> its figure, as in `bootstrap.replicate`.
        patients: [n], the patient of each test case. higher_is_better: False for errors.
    """

    name: str
    figures: Mapping[str, Figure]
    patients: np.ndarray
    higher_is_better: bool = True


@dataclass(frozen=True)
class RankTable:
    """Ranks from 1, the best; equal figures share the mean of their ranks.

    Attributes:
        models, tasks: names, in the order of the arrays.
        figure: [models, tasks] on the cases themselves. rank: [models, tasks].
        mean_rank: one interval a model, over draws of every task's patients.
        best: [models], share of the draws in which no model had a lower mean rank.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    figure: np.ndarray
    rank: np.ndarray
    mean_rank: tuple[Interval, ...]
    best: np.ndarray


def rank_table(tasks: Sequence[Task], replicates: int = 1000, seed: int = 0, confidence: float = 0.95) -> RankTable:
    """Ranks models in every task and averages, on the cases and on every draw of patients.

    In a draw, a task in which a model has no figure (a class was not drawn) is left out of that draw's mean.

    Args:
        tasks: each with the same models. replicates, seed, confidence: of the bootstrap; task i draws with the i-th
            child of the seed, so that tasks are independent and a table is reproducible.

    Raises:
        BadInput: no task, other models in one task than in the first, or a model without a figure on a task's cases.
    """
    if not tasks:
        raise BadInput("tasks", "none", "at least one", "give the tasks over which to rank")
    models = tuple(tasks[0].figures)
    points, ranks = [], []
    for task, child in zip(tasks, np.random.SeedSequence(seed).spawn(len(tasks))):
        if set(task.figures) != set(models):
            found = ", ".join(sorted(set(task.figures) ^ set(models)))
            remedy = "read every model on every task, or leave the task out"
            raise BadInput(f"task {task.name}", f"other models than in {tasks[0].name} ({found})", "the same", remedy)
        read = bootstrap.replicate(
            [task.figures[m] for m in models], task.patients, replicates, int(child.generate_state(1)[0])
        )
        if np.isnan(read.point).any():
            missing = ", ".join(m for m, value in zip(models, read.point) if np.isnan(value))
            raise BadInput(f"task {task.name}", f"no figure for {missing}", "one for each model", "leave the task out")
        sign = -1.0 if task.higher_is_better else 1.0
        points.append(read.point)
        # all models on one draw, with the point as draw 0; NaN where one of them has no figure
        ranks.append(rankdata(sign * np.c_[read.point, read.drawn], axis=0, nan_policy="propagate"))
    table = np.stack(ranks)  # [tasks, models, 1 + R]
    known = ~np.isnan(table)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, table, 0).sum(0) / known.sum(0)
    drawn = mean[:, 1:]
    there = ~np.isnan(drawn).any(axis=0)
    best = (drawn[:, there] <= drawn[:, there].min(axis=0, initial=np.inf) + 1e-12).mean(axis=1)
    intervals = tuple(bootstrap.interval(m[0], m[1:], confidence) for m in mean)
    return RankTable(models, tuple(t.name for t in tasks), np.stack(points, 1), table[..., 0].T, intervals, best)
