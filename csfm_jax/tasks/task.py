"""Task: what is to be told from which sensors, before any store or model is known."""

import math
from dataclasses import dataclass

# kind -> losses that fit it, the usual one first
LOSSES = {
    "multilabel": ("bce", "asymmetric", "focal"),
    "multiclass": ("cross_entropy",),
    "regression": ("huber", "squared"),
    "survival": ("cox",),
}
# kind -> the figures that it is judged by, the first one first
METRICS = {
    "multilabel": ("macro_auroc",),
    "multiclass": ("macro_auroc", "accuracy", "macro_f1"),
    "regression": ("mean_absolute_error", "r2"),
    "survival": ("concordance",),
}


@dataclass(frozen=True)
class Task:
    """A supervised task on the recordings of prepared stores.

    Attributes:
        name: for `--task`, in lines and in checkpoints.
        about: one line for people.
        labels: names or patterns ("superclass/*") of the stores' labels; of "survival" exactly two: the event (0 or 1)
            and the time to it, or to the end of observation.
        kind: "multilabel" (0/1 each), "multiclass" (one of the labels is 1), "regression", "survival".
        sensors: modalities that are read; recordings may lack some of them.
        seconds: length of a window.
        crops: windows of a recording whose predictions are averaged, at most.
        begin, end: seconds of every recording between which windows lie; 0 as the end is the recording's own.
    """

    name: str
    about: str
    labels: tuple[str, ...]
    kind: str
    sensors: tuple[str, ...] = ("ecg",)
    seconds: float = 10.0
    crops: int = 4
    begin: float = 0.0
    end: float = 0.0

    @property
    def metrics(self) -> tuple[str, ...]:
        """Figures that the task is judged by, the first one first."""
        return METRICS[self.kind]

    def windows(self, seconds: float) -> int:
        """Windows of so many seconds whose predictions are averaged, at most: a model of shorter windows is judged on
        the same stretch as others."""
        return max(1, math.ceil(self.crops * self.seconds / seconds - 1e-6))

    def outputs(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Names of what a model predicts: the labels, or of "survival" the event's log-hazard alone."""
        return labels[:1] if self.kind == "survival" else labels
