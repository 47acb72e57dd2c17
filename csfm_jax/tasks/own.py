"""Tasks on a site's own labels, whose name says all of them: they need no file, and travel with a checkpoint."""

import re

from csfm_jax.tasks.task import Task
from data_pipelines.errors import BadInput
from data_pipelines.signals import MODALITIES

MARK = ":"
_KINDS = ("multilabel", "multiclass", "regression", "survival")
_NONE = re.compile(r"[\s?\[\]]")  # in no label that a word can name; "*" is the one mark of patterns
FORM = "KIND:LABEL+LABEL or KIND:LABEL+LABEL:SENSOR+SENSOR"


def task(word: str) -> Task:
    """The task that a word such as "survival:heart_failure+years" or "multilabel:af+flutter:ecg+ppg" says.

    Args:
        word: kind, labels of the stores (or patterns, "rhythm/*"; of "survival" the event and the time to it), and
            the modalities that are read, ECG where none is named. Windows, crops and losses are the usual ones.

    Raises:
        BadInput: it is of another form, or names an unknown kind or modality, or a label twice.
    """
    kind, labels, sensors = _parts(word)
    where = f"task {word}"
    if kind not in _KINDS:
        raise BadInput(where, f"the kind {kind!r}", ", ".join(_KINDS), "choose one of them")
    if kind == "survival" and (len(labels) != 2 or any("*" in label for label in labels)):
        raise BadInput(where, " and ".join(labels), "two labels: the event and the time to it", "name both")
    if kind == "multiclass" and len(labels) == 1 and "*" not in labels[0]:
        raise BadInput(where, "one class", "two or more, or a pattern", "name the others, or say multilabel")
    for sensor in sensors:
        if sensor not in MODALITIES:
            raise BadInput(where, f"the sensor {sensor!r}", ", ".join(MODALITIES), "choose among them")
    return Task(word, f"{kind} of own labels: {', '.join(labels)}", labels, kind, sensors)


def _parts(word: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    kind, *lists = word.split(MARK)
    parts = [tuple(one.split("+")) for one in lists]
    if not 1 <= len(parts) <= 2 or not all(name for names in parts for name in names) or _NONE.search(word):
        raise BadInput("task", repr(word), FORM, "write survival:death+years, say, or multilabel:af+flutter:ecg+ppg")
    if any(len(set(names)) < len(names) for names in parts):
        raise BadInput("task", repr(word), "each label and sensor once", "leave one out")
    return kind, parts[0], parts[1] if len(parts) == 2 else ("ecg",)
