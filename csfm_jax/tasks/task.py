"""Task: what is to be told from which sensors, before any store or model is known."""

import dataclasses
import math
from dataclasses import dataclass

from data_pipelines.augment import AugmentConfig
from data_pipelines.config import WindowConfig
from data_pipelines.stretches import Cut

# kind -> losses that fit it, the usual one first
LOSSES = {
    "multilabel": ("bce", "asymmetric", "focal"),
    "multiclass": ("cross_entropy",),
    "regression": ("huber", "squared"),
    "survival": ("cox",),
    "signal": ("squared", "huber"),
}
# kind -> the figures that it is judged by, the first one first
METRICS = {
    "multilabel": ("macro_auroc",),
    "multiclass": ("macro_auroc", "accuracy", "kappa", "macro_f1"),
    "regression": ("mean_absolute_error", "r2"),
    "survival": ("concordance",),
    "signal": ("correlation", "mean_absolute_error", "root_mean_square_error"),
}
# kind -> the objective that teaches it
OBJECTIVES = dict.fromkeys(LOSSES, "supervised") | {"signal": "translation"}
# of a signal task, what is measured of every target channel of a recording; means over its windows. Errors are in the
# channel's unit, the rate's in beats per minute; "rate_found": share of the windows with a heart rate whose prediction
# has one, too.
MEASURED = ("absolute_error", "squared_error", "correlation", "rate_error", "rate_found")


@dataclass(frozen=True)
class Rewards:
    """What it earns to call one label where another is true: of `decisions.challenge_score`.

    Attributes:
        labels: of rows and columns. worth: of calling the column's where the row's is true.
        normal: the one that a doctor who never looks would call.
    """

    labels: tuple[str, ...]
    worth: tuple[tuple[float, ...], ...]
    normal: str


@dataclass(frozen=True)
class Task:
    """A supervised task on the recordings of prepared stores.

    Attributes:
        name: for `--task`, in lines and in checkpoints.
        about: one line for people.
        labels: names or patterns ("superclass/*") of the stores' labels; of "survival" exactly two: the event (0 or 1)
            and the time to it, or to the end of observation; none of "signal".
        kind: "multilabel" (0/1 each), "multiclass" (one of the labels is 1), "regression", "survival", or "signal"
            (samples of `targets`, told from those of `inputs`).
        sensors: modalities that are read; recordings may lack some of them.
        seconds: length of a window. Below that of the usual recording of ten seconds, so that beats fall elsewhere
            within the tokens of every epoch and crop (docs/evaluation.md has what that is worth).
        crops: windows of a recording whose predictions are averaged: where it is longer than a window, so many that
            lie evenly from its start to its end and may overlap; of signals, one after another and at most so many.
        begin, end: seconds of every recording between which windows lie; 0 as the end is the recording's own.
        inputs, targets: of "signal": modalities ("ecg") or channels ("I") that are given, and that are asked for.
        added: of "signal": what is added to the inputs (`data_pipelines.augment`), which may then be targets too.
        cut: of a sequence, whose cases are stretches of recordings and whose labels are classes of events: which ones;
            None: cases are recordings.
        rewards: of "multilabel", where a challenge's score is told beside the other figures.
    """

    name: str
    about: str
    labels: tuple[str, ...]
    kind: str
    sensors: tuple[str, ...] = ("ecg",)
    seconds: float = 9.0
    crops: int = 8
    begin: float = 0.0
    end: float = 0.0
    inputs: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    added: AugmentConfig | None = None
    cut: Cut | None = None
    rewards: Rewards | None = None

    @property
    def objective(self) -> str:
        """Name of the objective that teaches it."""
        return OBJECTIVES[self.kind]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Figures that the task is judged by, the first one first."""
        return METRICS[self.kind]

    def crops_of(self, window: WindowConfig) -> WindowConfig:
        """The windows of a recording that predictions are averaged over, for a model that learned from `window`: as
        many as `window.crops` or else the task says; of shorter ones more, where these cover a recording."""
        crops = self.crops if self.cut is not None else window.crops or self.crops
        most = max(crops, math.ceil(self.crops * self.seconds / window.seconds - 1e-6))
        crops = 0 if self.kind == "signal" else crops
        return dataclasses.replace(window, random_start=False, crops=crops, most_per_recording=most)

    def outputs(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Names of what a model predicts: the labels; of "survival" the event's log-hazard alone; of "signal", whose
        labels are channels, what is measured of each recording."""
        if self.kind == "signal":
            return tuple(f"{label}/{name}" for label in labels for name in MEASURED)
        return labels[:1] if self.kind == "survival" else labels
