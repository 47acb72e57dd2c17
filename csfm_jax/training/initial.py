"""Weights to begin from: the encoder of an earlier run, or published CSFM weights.

The decoder starts anew; where a task predicts signals, it is the earlier run's, too.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from csfm_jax.config import Config
from csfm_jax.encoding import load, load_objective
from csfm_jax.loaded_encoder import LoadedEncoder
from csfm_jax.training import record
from csfm_jax.training.state import TrainState
from data_pipelines.errors import BadInput
from data_pipelines.storage import absolute, is_remote
from data_pipelines.store import Store, check_spec

RANDOM = "random"  # in place of a path: a run that begins at random, and goes on only if it has begun so

# What may differ from the weights' own configuration: how they are run, not what they are.
_FREE = ("dropout", "pooling", "remat", "compute", "attention")


@dataclass(frozen=True)
class Initial:
    """Weights for step 0.

    Attributes:
        params: the encoder's parameters, a nested dict of arrays under `Encoder`'s names.
        about: plain values for the run's record: "path", "step" or "sha256", "preprocessing", and "subjects", the count
            and digest of the hashed subjects that these weights were trained on, and "hashes", how they were hashed
            (`record.TrainedOn`); None where they are not known.
        subjects: those hashed subjects, sorted; as many as are known.
        decoder: its parameters, where signals are predicted; else None.
    """

    params: dict
    about: dict
    subjects: list[str]
    decoder: dict | None = None


def read(path: str, config: Config, stores: list[Store], tokenizer: str | None) -> Initial:
    """Reads initial weights and holds them against the run that is to go on from them.

    Args:
        path: a checkpoint, as `encoding.load` takes it, or a file of published CSFM weights.
        config, stores: of the run. tokenizer: JSON text of the run, or None without text.

    Raises:
        BadInput: no intact weights there, or another architecture, vocabulary, preprocessing or tokenizer; names the
            first field that differs.
    """
    loaded, goes_on = load(path), config.objective.name == "translation"
    _check_sizes(config, loaded.config, path, ("encoder", "tokens", *(("decoder",) if goes_on else ())))
    for store in stores:
        check_spec(store.spec, loaded.spec, str(store.path))
    if tokenizer is not None:
        _check_words(tokenizer, loaded, path)
    trained = record.trained_on(loaded.provenance)
    subjects = sorted(subject.decode() for subject in trained.subjects)
    about = {name: loaded.provenance[name] for name in ("step", "sha256") if name in loaded.provenance}
    about |= {"path": str(absolute(path)), "preprocessing": str(loaded.spec)}
    about["hashes"] = None if trained.hashes is None else sorted(map(list, trained.hashes))
    about["subjects"] = record.summary(subjects) if trained.complete else None
    decoder = _decoder(path) if goes_on else None
    return Initial(nnx.to_pure_dict(nnx.state(loaded.encoder, nnx.Param)), about, subjects, decoder)


def _decoder(path: str) -> dict:
    """Parameters of a checkpoint's decoder; BadInput where it holds none."""
    found = "published weights, which hold no decoder"
    if is_remote(path) or not Path(path).is_file():
        objective, loaded = load_objective(path)
        if hasattr(objective, "decoder"):
            return nnx.to_pure_dict(nnx.state(objective.decoder, nnx.Param))
        found = f"a checkpoint of the objective {loaded.config.objective.name!r}, which holds no decoder"
    raise BadInput(path, found, "one of masked reconstruction, whose decoder goes on", "give one of csfm train")


def put(state: TrainState, params: dict, decoder: dict | None = None) -> TrainState:
    """The state with the encoder's parameters replaced, and the decoder's where given, placed as they were."""
    parts = {"encoder": params} | ({} if decoder is None else {"decoder": decoder})

    def placed(old, new):
        # the step donates what it is given: a view of the weights' own memory must not be
        return jax.device_put(np.asarray(new, old.dtype), old.sharding, may_alias=False)

    def replaced(whole):
        return whole | {name: jax.tree.map(placed, whole[name], part) for name, part in parts.items()}

    average = None if state.average is None else replaced(state.average)
    return state._replace(params=replaced(state.params), average=average)


def check_resumed(path: str | None, saved: dict, where: str) -> None:
    """Refuses to go on with a run that began from other weights; the weights themselves are not read again.

    Args:
        path: of this command, `RANDOM`, or None where it says nothing. saved: `run` of the checkpoint. where: the work
            directory.
    """
    if path is None:
        return
    began = (saved.get("initial") or {}).get("path")
    if (None if path == RANDOM else str(absolute(path))) != began:
        found, expected = (p or "a random initialisation" for p in (began, None if path == RANDOM else path))
        remedy = "choose another --workdir for another run"
        raise BadInput(where, f"a run that began from {found}", f"one that began from {expected}", remedy)


def _check_sizes(config: Config, theirs: Config, where: str, parts: tuple[str, ...]) -> None:
    for part in parts:
        ours, found = (_described(getattr(c, part)) for c in (config, theirs))
        for name, value in found.items():
            if ours.get(name) != value:
                field = f"config.{part}.{name}"
                raise BadInput(field, str(ours.get(name)), f"{value}, as in {where}", f"give --{field}={value}")


def _described(part) -> dict:
    values = {name: value for name, value in dataclasses.asdict(part).items() if name not in _FREE}
    for modality, samples in values.pop("patch", {}).items():
        if modality in values["modalities"]:
            values[f"patch.{modality}"] = samples
    if values.get("text_length") == 0:
        del values["text_vocabulary"]  # there is no table of words
    return values


def _check_words(tokenizer: str, loaded: LoadedEncoder, where: str) -> None:
    """The same token id must mean the same word. Published weights bring no tokenizer: its size at least must fit."""
    from tokenizers import Tokenizer

    theirs, published = loaded.tokenizer_json, "step" not in loaded.provenance
    if theirs is not None and theirs != tokenizer:
        remedy = "give --config.data.tokenizer=, the tokenizer.json in the work directory of these weights"
        raise BadInput("config.data.tokenizer", "another tokenizer", f"that of {where}", remedy)
    words, entries = loaded.config.tokens.text_vocabulary, Tokenizer.from_str(tokenizer).get_vocab_size()
    if published and entries != words:
        remedy = "give --config.data.tokenizer=, the tokenizer.json that these weights were trained with"
        raise BadInput("config.data.tokenizer", f"{entries} words", f"{words}, as in {where}", remedy)
