"""The `adaptation` part of a configuration: how a pretrained encoder is taught a task."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from csfm_jax import tasks
from csfm_jax.tasks.task import LOSSES, OBJECTIVES
from data_pipelines.errors import BadInput

if TYPE_CHECKING:
    from csfm_jax.config import Config

HEADS = ("linear", "attention", "average", "mixture")


@dataclass(frozen=True)
class AdaptationConfig:
    """Read with `objective.name` "supervised" or "translation" alone; `csfm finetune` fills it in.

    Attributes:
        task: a name of `tasks.TASKS`, or a word as of `tasks.own`; "" in pretraining.
        head: "linear" on the pooled embedding, "attention" (a learned query over a window's tokens), "average" or
            "mixture" (fixed or gated, of all layers' means over tokens: ECG-Soup's PPA and PMA, Nguyen et al. 2025).
        head_dropout: of what the head reads.
        trainable: "all", "head" (the encoder stays as it is, bit by bit) or "lora".
        rates: with "all", how learning rates fall with depth: by "layers" (each deeper one by another factor
            `layer_decay`, BEiT's rule), or in three "groups" (head 1, late half, early half).
        layer_decay: that factor; 0.75 in CSFM; 0.1 with "groups" in the reality check of ECG models; 1 = one rate.
        lora_rank, lora_alpha: with "lora"; the update of a kernel is A B lora_alpha / lora_rank.
        loss: one of `task.LOSSES` of the task's kind; "" = the first.
        weigh_positives: with "bce", a label's positives weigh as much as its negatives in all train recordings.
        halvings: how often the train patients are halved: nested subsets, for label efficiency; 0 = all learn.
        halvings_seed: of the draw of these patients.
        labels: in the order of the outputs; of a signal task, the channels that are predicted. mean, scale: of a
            regression's labels, or of these channels' samples, among train recordings.
        positive_weight: of each label. These four come from the stores, and are found by `resolve`.
    """

    task: str = ""
    head: str = "linear"
    head_dropout: float = 0.0
    trainable: str = "all"
    rates: str = "layers"
    layer_decay: float = 0.75
    lora_rank: int = 0
    lora_alpha: float = 16.0
    loss: str = ""
    weigh_positives: bool = False
    halvings: int = 0
    halvings_seed: int = 0
    labels: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    positive_weight: tuple[float, ...] = ()


def loss_of(adaptation: AdaptationConfig) -> str:
    """The loss that is trained: the one that is named, or the usual one of the task's kind."""
    return adaptation.loss or LOSSES[tasks.get(adaptation.task).kind][0]


def check(config: "Config") -> None:
    """Refuses adaptations that do not fit together.

    Raises:
        BadInput: naming the field.
    """
    ours = config.adaptation
    of_task = tasks.get(ours.task).objective if ours.task else None
    if config.objective.name != of_task and (of_task or config.objective.name in OBJECTIVES.values()):
        found = f"{config.objective.name!r} with the task {ours.task!r}"
        expected = f'"{of_task or OBJECTIVES["multilabel"]}" with a task, or neither'
        raise BadInput("config.objective.name", found, expected, "use csfm finetune, which sets both")
    if not ours.task and config.training.keep_best:
        found, remedy = "a figure, in pretraining", "leave it out; training.keep_checkpoints says how many stay"
        raise BadInput("config.training.keep_best", found, "nothing: losses of other masks are no figure", remedy)
    if not ours.task and config.training.epochs:
        found, expected = str(config.training.epochs), "0 in pretraining, whose length is config.training.steps"
        raise BadInput("config.training.epochs", found, expected, "leave it out; epochs are of csfm finetune")
    if not ours.task and config.data.fold:
        expected = "none in pretraining, which leaves out the stores' own test subjects"
        raise BadInput("config.data.fold", repr(config.data.fold), expected, "leave it out; folds are of csfm finetune")
    if config.data.window.crops and (not ours.task or tasks.get(ours.task).kind == "signal"):
        found, expected = str(config.data.window.crops), "0: in pretraining and of signals nothing is averaged"
        raise BadInput("config.data.window.crops", found, expected, "leave it out")
    if not ours.task:
        return
    kind = tasks.get(ours.task).kind
    if kind == "signal":
        _check_signal(config)
    for name, choices in (
        ("head", HEADS),
        ("trainable", ("all", "head", "lora")),
        ("rates", ("layers", "groups")),
        ("loss", ("", *LOSSES[kind])),
    ):
        if (value := getattr(ours, name)) not in choices:
            expected = "one of " + ", ".join(map(repr, choices)) + (f" for a {kind} task" if name == "loss" else "")
            raise BadInput(f"config.adaptation.{name}", repr(value), expected, "choose one of them")
    for name, value, good, expected in (
        ("head_dropout", ours.head_dropout, 0 <= ours.head_dropout < 1, "a number in [0, 1)"),
        ("layer_decay", ours.layer_decay, 0 < ours.layer_decay <= 1, "above 0 and at most 1"),
        ("lora_alpha", ours.lora_alpha, ours.lora_alpha > 0, "above 0"),
        ("lora_rank", ours.lora_rank, ours.lora_rank >= 0, "0 or more"),
        ("halvings", ours.halvings, ours.halvings >= 0, "0 or more"),
        ("halvings_seed", ours.halvings_seed, ours.halvings_seed >= 0, "0 or more"),
    ):
        if not good:
            raise BadInput(f"config.adaptation.{name}", str(value), expected, "correct it")
    if (ours.trainable == "lora") != (ours.lora_rank > 0):
        found = f"{ours.lora_rank} with trainable={ours.trainable!r}"
        raise BadInput("config.adaptation.lora_rank", found, "1 or more with trainable=lora, else 0", "change one")
    _check_read(ours)
    if (backbone := config.backbone.name) != "transformer":
        told = {"head": ours.head, "trainable": ours.trainable}
        if told["head"] != "linear" or ours.trainable == "lora":
            expected = f"the head linear, and trainable all or head, with the backbone {backbone}"
            raise BadInput("config.adaptation", ", ".join(f"{k}={v!r}" for k, v in told.items()), expected, "change it")
        if ours.layer_decay != 1.0:
            expected = f"1: {backbone} has no layers that were pretrained"
            raise BadInput("config.adaptation.layer_decay", str(ours.layer_decay), expected, "set it to 1")
    if ours.weigh_positives and loss_of(ours) != "bce":
        found, remedy = f"True with the loss {loss_of(ours)!r}", "leave one of them out"
        raise BadInput("config.adaptation.weigh_positives", found, "the loss bce", remedy)
    if loss_of(ours) == "cox" and config.training.accumulate > 1:
        expected = "1: a risk set is taken from the whole batch"
        raise BadInput("config.training.accumulate", str(config.training.accumulate), expected, "set it to 1")
    if not ours.labels:
        raise BadInput("config.adaptation.labels", "none", "those found in stores", "use csfm finetune")


def _check_signal(config: "Config") -> None:
    """What a task of the kind "signal" needs beside: a decoder that predicts tokens of channels."""
    ours, task = config.adaptation, config.adaptation.task
    if (backbone := config.backbone.name) != "transformer":
        expected = f"transformer: {task} predicts signals, and {backbone} has no decoder"
        raise BadInput("config.backbone.name", repr(backbone), expected, "name another task or model")
    for name, usual in (("head", "linear"), ("head_dropout", 0.0), ("weigh_positives", False)):
        if (value := getattr(ours, name)) != usual:
            expected = f"{usual!r}: the decoder is what predicts {task}"
            raise BadInput(f"config.adaptation.{name}", repr(value), expected, "leave it out")
    for name in ("crop_seconds", "shift_seconds", "scale"):
        if value := getattr(config.data.augment, name):
            expected = f"0: it would move the inputs of {task} away from their targets"
            raise BadInput(f"config.data.augment.{name}", f"{value:g}", expected, "leave it out")
    if config.objective.normalise_target:
        expected = "False: targets are measured against one mean and deviation a window"
        raise BadInput("config.objective.normalise_target", "True", expected, "leave it out")


def _check_read(ours: AdaptationConfig) -> None:
    """Refuses values that nothing would read beside `trainable` and `layer_decay`."""
    usual, whole = AdaptationConfig(), ours.trainable == "all"
    for name, read, remedy in (
        (
            "rates",
            whole and ours.layer_decay != 1.0,
            "a whole encoder is trained, at rates that fall (layer_decay < 1)",
        ),
        ("layer_decay", whole or ours.layer_decay == 1.0, "trainable=all: with head and lora one rate is learned at"),
        ("lora_alpha", ours.trainable == "lora", "trainable=lora"),
        ("halvings_seed", ours.halvings > 0, "halvings, 1 or more"),
    ):
        if not read and (value := getattr(ours, name)) != getattr(usual, name):
            raise BadInput(f"config.adaptation.{name}", f"{value}, which nothing reads", remedy, "leave it out")
