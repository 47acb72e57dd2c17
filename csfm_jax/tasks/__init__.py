"""Supervised tasks by name: what `csfm finetune --task` takes. One file a dataset; a new one is named in `_FILES`.

Tasks on a site's own labels are told by a word that says all of them (`own.task`).
"""

import difflib

from csfm_jax.tasks import bidmc, cinc2015, cinc2021, code15, mitdb, others, own, ptbxl, signals, simulated, sleep, vtac
from csfm_jax.tasks.task import Task
from data_pipelines.errors import BadInput

_FILES = (bidmc, cinc2015, cinc2021, code15, mitdb, others, ptbxl, signals, simulated, sleep, vtac)
TASKS: dict[str, Task] = {task.name: task for file in _FILES for task in file.TASKS}


def get(name: str) -> Task:
    """The task of a name, or of a word such as "multilabel:af+flutter".

    Raises:
        BadInput: there is none; names the nearest.
    """
    if own.MARK in name:
        return own.task(name)
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        remedy = f"did you mean {near[0]}?" if near else "choose one of them"
        raise BadInput("task", repr(name), f"one of {', '.join(sorted(TASKS))}, or {own.FORM}", remedy)
    return TASKS[name]
