"""Supervised tasks by name: what `csfm finetune --task` takes. One file a dataset; a new one is named in `_FILES`."""

import difflib

from csfm_jax.tasks import bidmc, cinc2015, cinc2021, code15, mitdb, others, ptbxl, signals, simulated, sleep, vtac
from csfm_jax.tasks.task import Task
from data_pipelines.errors import BadInput

_FILES = (bidmc, cinc2015, cinc2021, code15, mitdb, others, ptbxl, signals, simulated, sleep, vtac)
TASKS: dict[str, Task] = {task.name: task for file in _FILES for task in file.TASKS}


def get(name: str) -> Task:
    """The task of a name.

    Raises:
        BadInput: there is none; names the nearest.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        remedy = f"did you mean {near[0]}?" if near else "choose one of them"
        raise BadInput("task", repr(name), "one of " + ", ".join(sorted(TASKS)), remedy)
    return TASKS[name]
