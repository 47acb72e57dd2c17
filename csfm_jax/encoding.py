"""Checkpoints read: `load` makes a `LoadedEncoder`, `about` tells what weights are without reading them."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from csfm_jax.config import Config
from csfm_jax.loaded_encoder import LoadedEncoder
from csfm_jax.models import attention, lora
from csfm_jax.models.encoder import Encoder
from csfm_jax.training import manifest
from data_pipelines import preprocess
from data_pipelines.errors import BadInput
from data_pipelines.signals import CHANNELS
from data_pipelines.storage import Place, is_remote


def load(path: Place) -> LoadedEncoder:
    """Reads the encoder of a checkpoint, after verifying every file of it, or published weights.

    Args:
        path: a work directory of `csfm train` (its latest step), its `checkpoints` folder, or one step's folder, here
            or in an object store; or a file for `load_published_csfm`.

    Raises:
        BadInput: no checkpoint there, a file that was changed, or one of another preprocessing version.
    """
    from csfm_jax.export.published import load_published_csfm
    from csfm_jax.training.checkpoint import find_step, restore_params

    if not is_remote(path) and Path(path).is_file():
        return load_published_csfm(path)
    step = find_step(path)
    config, params, run = restore_params(step)
    config = _computed_here(config)
    _check_backbone(config, str(step))
    params = lora.encoder_params(params, config.adaptation)
    encoder = with_params(lambda: Encoder(config.encoder, config.tokens, rngs=nnx.Rngs(0)), params, str(step))
    spec, tokenizer = _spec_of(run, str(step)), run.get("tokenizer")
    return LoadedEncoder(config, encoder, spec, tokenizer, _provenance(step, run))


class About(NamedTuple):
    """What is known of weights without reading them: configuration, where they come from, and their preprocessing."""

    config: Config
    provenance: dict[str, Any]
    spec: preprocess.Spec


def about(path: Place) -> About:
    """Reads what a checkpoint, or a file of published weights, says of itself; arguments and errors as of `load`."""
    from csfm_jax.config import from_dict
    from csfm_jax.training.checkpoint import find_step, read_run

    if not is_remote(path) and Path(path).is_file():
        loaded = load(path)
        return About(loaded.config, loaded.provenance, loaded.spec)
    step, run = find_step(path), read_run(path)
    return About(_computed_here(from_dict(run["config"])), _provenance(step, run), _spec_of(run, str(step)))


def load_objective(path: Place) -> tuple[Any, LoadedEncoder]:
    """As `load`, with the decoder: the whole objective that was trained, and its encoder ready for use."""
    from csfm_jax import objectives
    from csfm_jax.training.checkpoint import find_step, restore_params

    step = find_step(path)
    config, params, run = restore_params(step)
    config = _computed_here(config)
    objective = with_params(lambda: objectives.build(config, rngs=nnx.Rngs(0)), params, str(step))
    spec, tokenizer = _spec_of(run, str(step)), run.get("tokenizer")
    encoder = objective.lora.adapt(objective.encoder) if config.adaptation.lora_rank else objective.encoder
    return objective, LoadedEncoder(config, encoder, spec, tokenizer, _provenance(step, run))


def random_encoder(config: Config, seed: int = 0, spec: preprocess.Spec | None = None) -> LoadedEncoder:
    """The same network before training: what a trained one is compared with.

    Args:
        config: the run's. seed: of the initialisation. spec: preprocessing; None = this package's own.
    """

    _check_backbone(config, "config")

    def build() -> Encoder:
        return Encoder(config.encoder, config.tokens, rngs=nnx.Rngs(seed))

    graphdef, _ = nnx.split(nnx.eval_shape(build))
    state = jax.jit(lambda: nnx.state(build()))()  # one program instead of one for every array
    encoder = nnx.merge(graphdef, state)
    return LoadedEncoder(config, encoder, spec or preprocess.get_spec("csfm-jax"), None, {"seed": seed})


def _computed_here(config: Config) -> Config:
    # The kernel that a run named for its own devices; those at hand are not its choice, and the weights are the same.
    if attention.runs_here(config.encoder.attention):
        return config
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, attention="auto"))


def _check_backbone(config: Config, where: str) -> None:
    if (name := config.backbone.name) != "transformer":
        found = f"the backbone {name}, a supervised baseline"
        raise BadInput(where, found, "a transformer encoder", "use csfm predict for its predictions")


def with_params(build, params: dict, where: str) -> nnx.Module:
    """A module with given parameters in place of initial ones, which are never made.

    Args:
        build: makes the module. params: nested dict of arrays under the module's names. where: named in errors.

    Raises:
        BadInput: names or shapes differ from the module's.
    """
    graphdef, state = nnx.split(nnx.eval_shape(build))
    wanted = {"/".join(map(str, k)): v.shape for k, v in nnx.to_flat_state(state)}
    found = {"/".join(map(str, k)): np.shape(v) for k, v in _flat(params)}
    if differing := sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k)):
        name = differing[0]
        remedy = "use the checkpoint with the version of csfm_jax that wrote it"
        raise BadInput(
            f"{where}: {name}", str(found.get(name, "no such parameter")), str(wanted.get(name, "none")), remedy
        )
    nnx.replace_by_pure_dict(state, jax.tree.map(jax.numpy.asarray, params))
    return nnx.merge(graphdef, state)


def _provenance(step: Place, run: dict) -> dict:
    told = {name: run.get(name) for name in ("subjects", "initial", "stores")}
    return {"path": str(step), "step": int(run["step"]), "weights": manifest.digest(step), **told}


def _flat(tree, path=()):
    for key, value in tree.items():
        yield from _flat(value, (*path, key)) if isinstance(value, dict) else [((*path, key), value)]


def _spec_of(run: dict, where: str) -> preprocess.Spec:
    """The preprocessing of a checkpoint; refused where this package's of that name, or its channels, are others."""
    ours = [channel.name for channel in CHANNELS]
    if (channels := run.get("channels", [])) != ours[: len(channels)]:
        remedy = "use the version of csfm_jax that wrote it"
        raise BadInput(where, "another channel vocabulary", "this version's or a start of it", remedy)
    try:
        spec = preprocess.Spec.from_dict(run["preprocessing"])
    except (KeyError, TypeError) as error:
        expected = "a preprocessing spec that this version knows"
        raise BadInput(where, f"none ({error})", expected, "use the version of csfm_jax that wrote it") from None
    ours = preprocess.SPECS.get(spec.name)
    if ours is None or (found := preprocess.mismatch(spec, ours)):
        found = found if ours is not None else f"preprocessing {spec}"
        raise BadInput(where, found, str(ours) if ours else "a known spec", "use the version of csfm_jax that wrote it")
    return spec
