"""The models of a study by short words: which weights, which part of them is taught, from which baseline."""

import hashlib
import json
import re
from dataclasses import dataclass

from csfm_jax import config as configs
from csfm_jax import encoding
from csfm_jax.config import Config
from csfm_jax.training import initial
from data_pipelines import preprocess
from data_pipelines.errors import BadInput
from data_pipelines.storage import exists, place
from data_pipelines.store import Store, check_spec

# kind -> the words of a `csfm finetune` that make it; {} = those of the recipe: all of the encoder, layer decay 0.75
FINE_TUNED = {
    "attention": ("--config.adaptation.trainable=head", "--config.adaptation.head=attention"),
    "finetuned": (),
    "lora": ("--config.adaptation.trainable=lora", "--config.adaptation.lora_rank=8"),
    "scratch": (),
}
PROBED = ("linear", "random")
BASELINES = ("benchmark_s4", "benchmark_net1d", "benchmark_xresnet1d")
TREES = "trees"
TABULAR = (*PROBED, TREES)  # fitted on a table of features
_WHICH = ("path", "step", "weights", "sha256")  # of a provenance: which weights
DECIDED = ("adaptation.trainable", "adaptation.head", "adaptation.task")  # by --models and --tasks
# fields -> the kinds of models that read them; overrides of the others go to all
_READ_BY = {
    "adaptation.lora_rank": ("lora",), "adaptation.lora_alpha": ("lora",),
    "adaptation.rates": ("finetuned", "scratch"), "adaptation.layer_decay": ("finetuned", "scratch"),
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """One model of a study.

    Attributes:
        word: as it was given; its name in every table. kind: a key of `FINE_TUNED`, of `PROBED`, "trees", or "given" (a
            work directory that was already fine-tuned). source: a checkpoint, a config, or "".
        config: of the weights, or of the network that is trained from scratch; None of trees.
        provenance: of the weights; {} where there are none. spec: their preprocessing, or None.
    """

    word: str
    kind: str
    source: str
    config: Config | None
    provenance: dict
    spec: preprocess.Spec | None

    @property
    def folder(self) -> str:
        """The name of its folders."""
        return folder_name(self.word, f"{self.kind}-{self.source.rstrip('/').rpartition('/')[2]}")

    @property
    def init(self) -> str:
        """Weights that a fine-tuning begins from."""
        return initial.RANDOM if self.kind == "scratch" else self.source

    @property
    def identity(self) -> dict:
        """What its predictions depend on, beside the study's settings; plain values. Of weights their digest: a run
        that was made anew in the same place is another one; of a network without weights that of its configuration."""
        told = {name: self.provenance[name] for name in _WHICH if name in self.provenance}
        if self.config is not None and not self.provenance:
            words = json.dumps(self.config.to_dict(), sort_keys=True)
            told["config"] = hashlib.sha256(words.encode()).hexdigest()
        return told

    def fine_tuning(self, overrides: list[str]) -> list[str]:
        """The overrides of its `csfm finetune`: the word's, then those of the study."""
        mine = [w for w in overrides if self.kind in _READ_BY.get(_field(w), (self.kind,))]
        given = {_field(word) for word in mine}
        return [word for word in FINE_TUNED[self.kind] if _field(word) not in given] + mine


def _field(word: str) -> str:
    return word.partition("=")[0].removeprefix("--config.")


def folder_name(word: str, short: str) -> str:
    """A word of the command as a folder's name: itself, or legible, as `short` is, and another one for every word."""
    if re.fullmatch(r"\w+", word):
        return word
    legible = re.sub(r"[^\w.-]+", "-", short)
    return f"{legible[:40]}-{hashlib.sha256(word.encode()).hexdigest()[:8]}"


def parse(words: str, stores: list[Store], overrides: list[str]) -> list[Model]:
    """The models of `--models`, in its order; nothing is read of their arrays.

    Args:
        words: separated by commas. stores: whose preprocessing every model must have. overrides: of the fine-tunings.

    Raises:
        BadInput: an unknown word, a model given twice, no checkpoint or config of that name, another preprocessing
            than the stores', or an override of what the words decide.
    """
    for word in overrides:
        if _field(word) in DECIDED:
            raise BadInput(word.partition("=")[0], "a value", "none: --models and --tasks decide it", "leave it out")
    named = [word.strip() for word in words.split(",") if word.strip()]
    if not named:
        raise BadInput("--models", "none", "one or more, such as linear:RUN,trees", "name them")
    if len(set(named)) < len(named):
        raise BadInput("--models", "a model given twice", "each once", "leave one out")
    models = [_model(word) for word in named]
    for model in models:
        for store in stores if model.spec is not None else ():
            check_spec(store.spec, model.spec, model.word)
    return models


def _model(word: str) -> Model:
    kind, _, source = word.partition(":")
    if word == TREES:
        return Model(word, TREES, "", None, {}, None)
    if word in BASELINES:
        return Model(word, "scratch", word, configs.load(word), {}, None)
    if kind in (*FINE_TUNED, *PROBED) and not source:
        raise BadInput(f"--models={word}", "no checkpoint or config", f"{word}:NAME", "name what it begins from")
    if kind == "scratch" or (kind == "random" and _is_config(source)):
        return Model(word, kind, source, configs.load(source), {}, None)
    if kind in (*FINE_TUNED, *PROBED):
        about = encoding.about(source)
        provenance = {} if kind == "random" else about.provenance
        return Model(word, kind, source, about.config, provenance, about.spec)
    if exists(place(word)):
        return _given(word)
    known = ", ".join([*(f"{k}:..." for k in ("linear", "attention", "finetuned", "lora", "random", "scratch")),
                       *BASELINES, TREES])  # fmt: skip
    raise BadInput(f"--models={word}", "no model and no folder of that name", f"{known}, or a folder", "correct it")


def _given(word: str) -> Model:
    about = encoding.about(word)
    if not about.config.adaptation.task:
        found, expected = "a checkpoint that was taught no task", "a work directory of csfm finetune"
        raise BadInput(f"--models={word}", found, expected, f"give finetuned:{word} or linear:{word}")
    return Model(word, "given", word, about.config, about.provenance, about.spec)


def _is_config(source: str) -> bool:
    return source.endswith(".py") or source in configs.shipped_configs()
