"""A run's configuration: one tree of frozen dataclasses, filled from a config file and the command line.

A field that is unknown or has the wrong type is refused here, by name; a field exists only if some code reads it.
"""

import dataclasses
import difflib
import json
import runpy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csfm_jax.models.backbone_config import BackboneConfig
from csfm_jax.models.config import DecoderConfig, EncoderConfig
from csfm_jax.tasks.config import AdaptationConfig
from data_pipelines.config import DataConfig, TokenConfig
from data_pipelines.errors import BadInput

if TYPE_CHECKING:  # config files need it; models and steps that are built from a `Config` do not
    import ml_collections


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is predicted, and how much each kind of token counts.

    Attributes:
        name: "reconstruction" (masked patches and masked text tokens), or of a task (`adaptation`):
            "supervised", or "translation" where signals are predicted.
        normalise_target: z-score every target patch (He et al. 2022).
        weights: modality (or "text") -> weight of its mean loss; 1 for those not named.
    """

    name: str = "reconstruction"
    normalise_target: bool = False
    weights: dict[str, float] = field(default_factory=lambda: {"text": 0.1})


@dataclass(frozen=True)
class OptimizerConfig:
    """Linear warm-up, then decay. No weight decay on vectors, embeddings and CLS.

    Attributes:
        name: "adamw", or "muon" for the kernels of the blocks (AdamW for all else); rates and decay mean the same.
        decay: how the rate falls after the warm-up: half a "cosine" or "linear", down to final_fraction of it at the
            last step; "constant" stays.
        beta1, beta2: AdamW's; Muon's momentum is 0.95.
    """

    name: str = "adamw"
    learning_rate: float = 3e-4
    decay: str = "cosine"
    final_fraction: float = 0.05
    warmup_steps: int = 2000
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.05
    clip_norm: float = 1.0


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how often, and when to stop.

    Attributes:
        steps: optimizer steps in all. seed: of initialisation and dropout.
        epochs: of a fine-tuning, in place of steps: passes over its train recordings, which `csfm finetune` turns into
            steps; measured after each of them unless eval_every is given. 0: steps says how long.
        log_every, eval_every, save_every: in steps. eval_batches: validation batches for each kind of mask.
        keep_checkpoints: how many of the latest steps stay on disk.
        bad_steps: so many skipped steps in a row stop the run: not finite, or spikes.
        spike: a step whose gradient norm is so many times the running mean of the norms is skipped; 0 skips none.
        ema: decay of a running average of the parameters, kept beside them: what validation measures and what
            checkpoints are loaded for, in every other command; training itself goes on from the last ones. 0: none.
        accumulate: parts in which a batch is computed, one after the other: memory for data.rows / accumulate rows.
        keep_best: figure of a fine-tuning's validation.jsonl whose best step stays in WORKDIR/best; "first" = the first
            that the task is judged by; "" keeps the latest alone.
        hang_seconds: a step, or the last save, that takes longer has the stacks of its process printed (opening stores
            after hours only); 0 never.
        profile_step, profile_steps: from which step on, and for how many, JAX's profiler runs; 0 never.
    """

    steps: int = 100_000
    epochs: int = 0
    seed: int = 0
    log_every: int = 50
    eval_every: int = 2000
    eval_batches: int = 8
    save_every: int = 1000
    keep_checkpoints: int = 2
    bad_steps: int = 10
    spike: float = 0.0
    ema: float = 0.0
    accumulate: int = 1
    keep_best: str = ""
    hang_seconds: float = 900.0
    profile_step: int = 0
    profile_steps: int = 5


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each named axis; at most one is -1 (what is left). See `csfm_jax.sharding`."""

    replica: int = 1
    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class Config:
    tokens: TokenConfig = field(default_factory=TokenConfig)
    data: DataConfig = field(default_factory=DataConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain values (str, float, int, bool, lists, dicts), as JSON keeps them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


# Mappings with free keys: a config may add keys to them.
_OPEN = {"tokens.patch", "data.weights", "data.mask.weights", "objective.weights"}


def default() -> "ml_collections.ConfigDict":
    """All defaults as a ConfigDict; a config file starts from it and sets what differs."""
    return _as_dict(Config())


def _as_dict(config: Config) -> "ml_collections.ConfigDict":
    import ml_collections

    config = ml_collections.ConfigDict(dataclasses.asdict(config))
    for path in _OPEN:
        node = config
        for part in path.split("."):
            node = node[part]
        node.unlock()
    return config


def from_dict(values: dict[str, Any]) -> Config:
    """Builds the checked configuration from plain values (a ConfigDict's, or a checkpoint's).

    Raises:
        BadInput: a field is unknown, missing or of another type; the message names it and the nearest known one.
    """
    return _build(Config, values, "config")


def _build(cls, values, where):
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise _unknown(where, name, fields)
    built = {}
    for name, f in fields.items():
        if name not in values:
            continue
        value, path = values[name], f"{where}.{name}"
        if dataclasses.is_dataclass(f.type):
            built[name] = _build(f.type, dict(value), path)
        else:
            built[name] = _cast(value, f.type, path)
    return cls(**built)


def _unknown(where, name, fields):
    near = difflib.get_close_matches(name, fields, n=1)
    remedy = f"did you mean {where}.{near[0]}?" if near else "remove it"
    return BadInput(f"{where}.{name}", "a field that nothing reads", "one of " + ", ".join(fields), remedy)


def _cast(value, kind, where):
    origin = getattr(kind, "__origin__", kind)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(value)
    if origin is dict and hasattr(value, "items"):
        of = kind.__args__[1]
        return {k: _cast(v, of, f"{where}.{k}") for k, v in value.items()}
    if origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if origin in (int, str, bool) and type(value) is origin:
        return value
    raise BadInput(where, f"a {type(value).__name__}", f"a {origin.__name__}", "correct the config")


def find(name_or_path: str) -> Path:
    """Resolves `--config`: a path to a .py file, or the name of a shipped config ("csfm_base")."""
    return find_among(shipped_configs(), name_or_path, "config")


def find_among(shipped: dict[str, Path], name_or_path: str, kind: str) -> Path:
    """A path to a .py file, or the name of a shipped one. kind: of file, which is also the option's name."""
    path = Path(name_or_path)
    if path.suffix == ".py" and path.is_file():
        return path
    if path.stem in shipped:
        return shipped[path.stem]
    raise BadInput(
        f"--{kind}={name_or_path}",
        f"no such file or shipped {kind}",
        "a path to a .py file or one of " + ", ".join(sorted(shipped)),
        "correct the path",
    )


def shipped_configs(folder: str = ".") -> dict[str, Path]:
    """Name -> file of every config that came with the package. folder: among them, such as "recipes"."""
    here = Path(__file__).parent
    for root in (here / "_configs", here.parent / "configs"):  # in a wheel; in a source tree
        if root.is_dir():
            return {p.stem: p for p in sorted((root / folder).glob("*.py")) if p.stem != "__init__"}
    return {}


def load(name_or_path: str, overrides: list[str] = ()) -> Config:
    """Reads a config file and applies `--config.section.field=value` overrides.

    Args:
        name_or_path: see `find`; the file defines `get_config() -> ConfigDict`.
        overrides: command-line words, all of the form `--config.x.y=value`.

    Raises:
        BadInput: unknown file or field, a file that fails, or a value that does not parse as the field's type.
    """
    path = find(name_or_path)
    return _overridden(lambda: runpy.run_path(str(path))["get_config"](), overrides, name_or_path)


def override(config: Config, overrides: list[str]) -> Config:
    """Applies `--config.section.field=value` words to a configuration that is at hand; raises as `load`."""
    return _overridden(lambda: _as_dict(config), overrides, "of the checkpoint")


def _overridden(make, overrides: list[str], name: str) -> Config:
    from absl import flags
    from ml_collections import config_flags

    for word in overrides:
        _check_known(word)
    added = [word for word in overrides if _adds_key(word)]  # ConfigDict's own flags know no new keys
    # the last of several words for a field: of a tuple, ConfigDict's flags would join them
    last = {word.partition("=")[0]: word for word in overrides if word not in added}
    words = ["csfm", *last.values()]
    try:
        values = flags.FlagValues()
        config = make()
        # without sys_argv it would take the overrides that it knows from this process's own command line
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=words)
        values(words)
        raw = values.config.to_dict()
    except Exception as error:
        raise unusable(f"--config={name}", "config", error) from error
    for word in added:
        _add_key(raw, word)
    return from_dict(raw)


def unusable(where: str, kind: str, error: Exception) -> BadInput:
    """What is said of a config file that fails: it is a program, and does so in any way that programs do."""
    return BadInput(
        where,
        f"{type(error).__name__}: {' '.join(str(error).split())}",
        f"a {kind} file that runs, known fields, values of their types",
        f"see the shipped {kind}s, and the dataclasses in csfm_jax/config.py and data_pipelines/config.py",
    )


def field_of(word: str) -> str:
    """The field of a word: x.y of `--config.x.y=value`."""
    return word.partition("=")[0].removeprefix("--config.")


def _check_known(word: str) -> None:
    where, kind = "config", Config
    for name in field_of(word).split("."):
        if dataclasses.is_dataclass(kind):
            fields = {f.name: f for f in dataclasses.fields(kind)}
            if name not in fields:
                raise _unknown(where, name, fields)
            where, kind = f"{where}.{name}", fields[name].type


def _adds_key(word: str) -> bool:
    return field_of(word).rpartition(".")[0] in _OPEN


def _add_key(raw: dict, word: str) -> None:
    name, _, value = word.removeprefix("--").partition("=")
    *parents, key = name.removeprefix("config.").split(".")
    node = raw
    for part in parents:
        node = node[part]
    try:
        node[key] = json.loads(value)
    except ValueError:
        raise BadInput(name, value or "nothing", "a number", "correct the value") from None
