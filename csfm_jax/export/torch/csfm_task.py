"""A fine-tuned CSFM in plain PyTorch: heads of a task, and predictions for raw recordings by label."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

try:
    from .csfm_encoder import CSFMEncoder, read_folder
    from .csfm_files import Refused
    from .signals import PAD
except ImportError:
    from csfm_encoder import CSFMEncoder, read_folder
    from csfm_files import Refused
    from signals import PAD


class Linear(nn.Module):
    """On the window's embedding."""

    def __init__(self, width, outputs):
        super().__init__()
        self.out = nn.Linear(width, outputs)

    def forward(self, encoder, tokens):
        return self.out(encoder(*tokens).pooled)


class Attention(nn.Module):
    """A learned query a head attends to all tokens of the window."""

    def __init__(self, width, heads, head_dim, outputs):
        super().__init__()
        self.heads, inner = heads, heads * head_dim
        self.norm = nn.LayerNorm(width)
        self.keys, self.values = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.query = nn.Parameter(0.02 * torch.randn(inner))
        self.out = nn.Linear(inner, outputs)

    def forward(self, encoder, tokens):
        read = encoder(*tokens)
        x = self.norm(read.tokens)
        keys, values = (part(x).unflatten(-1, (self.heads, -1)) for part in (self.keys, self.values))
        query = self.query.unflatten(0, (self.heads, -1))
        scores = torch.einsum("bthd,hd->bth", keys, query) / query.shape[1] ** 0.5
        weight = scores.masked_fill((read.channel == PAD)[..., None], -torch.inf).softmax(1)
        return self.out(torch.einsum("bth,bthd->bhd", weight, values).flatten(1))


class Average(nn.Module):
    """On the plain average of all blocks' means over tokens (ECG-Soup's PPA)."""

    def __init__(self, width, outputs):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, encoder, tokens):
        embedded, blocks = encoder.layers(*tokens)
        return self.out(self.norm(torch.einsum("bl,lbd->bd", self.weights(embedded, len(blocks)), blocks)))

    def weights(self, embedded, depth):
        """[B, L], what each block counts."""
        return embedded.new_full((len(embedded), depth), 1 / depth)


class Mixture(Average):
    """As `Average`, blocks weighed by a gate that reads the mean of what enters the first one (ECG-Soup's PMA)."""

    def __init__(self, width, outputs, depth, gate):
        super().__init__(width, outputs)
        widths = (width, *gate)
        self.gate_norm = nn.LayerNorm(width)
        self.gate = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths, widths[1:]))
        self.last = nn.Linear(widths[-1], depth)

    def weights(self, embedded, depth):
        x = self.gate_norm(embedded)
        for layer in self.gate:
            x = nn.functional.gelu(layer(x))
        return self.last(x).softmax(-1)


def build_head(config):
    """The head that `config["task"]` names, with random weights."""
    task, sizes = config["task"], config["encoder"]
    width, outputs = sizes["width"], len(task["outputs"])
    if task["head"] == "attention":
        return Attention(width, sizes["heads"], sizes["head_dim"], outputs)
    if task["head"] == "mixture":
        return Mixture(width, outputs, sizes["depth"], task["gate"])
    return {"linear": Linear, "average": Average}[task["head"]](width, outputs)


@dataclass
class Prediction:
    """What a model says of one recording.

    Attributes:
        values: label -> probability (calibrated where `calibrated`), value in the label's own unit, or log-hazard.
        decisions: label -> whether it is called; only of labels for which validation recordings gave a threshold.
        calibrated: whether temperatures that were fitted on validation recordings were applied.
        scores: [windows, outputs], what the head gave: logits, z-scores or log-hazards. starts: [windows] seconds.
        report: what preprocessing resampled, filtered, dropped or did not know, one dict a given channel.
    """

    values: dict
    decisions: dict
    calibrated: bool
    scores: torch.Tensor
    starts: torch.Tensor
    report: list


class Predicts:
    """`predict`, for modules with `encoder`, `head` and `task` (of config.json)."""

    def scores(self, patches, channel, time, text):
        """[B, outputs] logits, z-scores or log-hazards of windows that are cut into tokens (`CSFMEncoder.forward`)."""
        return self.head(self.encoder, (patches, channel, time, text))

    @torch.no_grad()
    def predict(self, signal, rate, channels, unit="mV", *, mains=None):
        """Preprocesses a raw recording and predicts the task's labels: the mean over its crops.

        Args: as of `CSFMEncoder.embed`. Sensors that the task does not read are left out.

        Returns:
            `Prediction`.

        Raises:
            Refused: nothing in it can be used, or the model was taught no task.
        """
        if not self.task:
            raise Refused("model: found an encoder that was taught no task; expected a fine-tuned one; use embed")
        task, encoder = self.task, self.encoder
        cut, starts, report = encoder.cut(signal, rate, channels, unit, mains=mains, task=task)
        parts = [self.scores(*(x[i : i + encoder.most] for x in cut)) for i in range(0, len(starts), encoder.most)]
        scores = torch.cat(parts)
        values = self._values(scores)
        calibration, decisions = task["calibration"], {}
        if calibration:
            values = _calibrated(values, calibration)
            decisions = _decisions(task["outputs"], values, calibration)
        told = dict(zip(task["outputs"], values.tolist()))
        return Prediction(told, decisions, bool(calibration), scores, starts, report)

    def _values(self, scores):
        """[outputs] float64, the mean over windows of what scores mean."""
        kind = self.task["kind"]
        if kind == "multilabel":
            scores = scores.sigmoid()
        elif kind == "multiclass":
            scores = scores.softmax(-1)
        mean = scores.double().mean(0).cpu().numpy()
        return mean * self.task["scale"] + self.task["mean"] if kind == "regression" else mean


def _calibrated(values, calibration):
    p = np.clip(values, calibration["least"], 1 - calibration["least"])
    if calibration["exclusive"]:
        scaled = np.log(p) / calibration["temperature"]
        share = np.exp(scaled - scaled.max())
        return share / share.sum()
    return 1 / (1 + np.exp(-(np.log(p) - np.log1p(-p)) / calibration["temperature"]))


def _decisions(names, values, calibration):
    if calibration["exclusive"]:
        return {name: i == int(values.argmax()) for i, name in enumerate(names)}
    known = zip(names, values.tolist(), calibration["thresholds"])
    return {name: value >= threshold for name, value, threshold in known if threshold is not None}


class CSFMTask(Predicts, nn.Module):
    """Encoder and head of a fine-tuned model.

    Args:
        config: the content of `config.json`, with its "task". spec: as of `CSFMEncoder`.
    """

    def __init__(self, config, spec=None):
        super().__init__()
        self.task = config["task"]
        self.encoder, self.head = CSFMEncoder(config, spec), build_head(config)

    @classmethod
    def from_folder(cls, folder):
        """Reads an exported folder in evaluation mode, after verifying every file of it.

        Raises:
            Refused: a file is missing or was changed, the weights do not fit, or the folder holds an encoder alone.
        """
        config, spec, load = read_folder(Path(folder))
        if not config.get("task"):
            raise Refused(f"{folder}: found an encoder that was taught no task; expected a fine-tuned one; export one")
        return load(cls(config, spec), "").eval()

    def forward(self, patches, channel, time, text):
        """[B, outputs]; as `scores`."""
        return self.scores(patches, channel, time, text)
