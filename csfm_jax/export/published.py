"""CSFM weights as Gu et al. publish them (by agreement, under their own terms) -> an encoder of this project.

    encoder = csfm_jax.load_published_csfm("CSFM_tiny.pt")
    config, params, left_out = published.parameters("CSFM_tiny.pt")      # to go on training from

Sizes are read from the shapes. Nothing in the file is executed.
"""

import hashlib
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flax import nnx

from csfm_jax.config import Config
from csfm_jax.encoding import with_params
from csfm_jax.export.names import from_torch, published_names
from csfm_jax.loaded_encoder import LoadedEncoder
from csfm_jax.models.config import EncoderConfig
from csfm_jax.models.encoder import Encoder
from data_pipelines.config import DataConfig, TokenConfig, WindowConfig
from data_pipelines.errors import BadInput
from data_pipelines.preprocess import get_spec
from data_pipelines.signals import CSFM_CHANNELS, MODALITIES

log = logging.getLogger(__name__)

HEAD_DIM = 64  # of every published size
_ENCODER_PART = re.compile(r"(cls_token|ts_|text_|transformer\.)")
_LAYER = re.compile(r"transformer\.layers\.(\d+)\.")
_PREFIX = "encoder."


@dataclass(frozen=True)
class Published:
    """A published file's content in this project's terms.

    Attributes:
        config: sizes and vocabulary; everything else at its default.
        params: the encoder's parameters, a nested dict under `Encoder`'s names; `MaskedReconstruction` takes it as its
            "encoder".
        left_out: keys that are no part of the encoder (classification and dense heads).
        sha256: of the file.
    """

    config: Config
    params: dict
    left_out: tuple[str, ...]
    sha256: str


def load_published_csfm(path: str | Path) -> LoadedEncoder:
    """Reads published CSFM weights into an encoder with the published preprocessing.

    Args:
        path: a .safetensors file, or a PyTorch file (needs PyTorch; read with `weights_only`, so nothing is executed).

    Raises:
        BadInput: not such a file, or a key or shape that the published encoder does not have; the message names it.
    """
    made = parameters(path)
    config = made.config
    encoder = with_params(lambda: Encoder(config.encoder, config.tokens, rngs=nnx.Rngs(0)), made.params, str(path))
    provenance = {"path": str(path), "sha256": made.sha256, "left_out": list(made.left_out)}
    return LoadedEncoder(config, encoder, get_spec("csfm-published"), None, provenance)


def parameters(path: str | Path) -> Published:
    """Reads published CSFM weights; arguments and errors as `load_published_csfm`."""
    path = Path(path)
    state, left_out = _encoder_part(_read(path), path)
    if left_out:
        log.warning("%s: left out, no part of the encoder: %s", path, ", ".join(left_out))
    sizes = _sizes(state, path)
    _check(state, _shapes(*sizes), path)
    encoder, tokens = sizes
    params = from_torch(state, encoder.depth, encoder.heads, encoder.head_dim)
    window = WindowConfig(seconds=encoder.position_steps * encoder.position_seconds)
    config = Config(tokens=tokens, encoder=encoder, data=replace(DataConfig(), window=window))
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Published(config, params, tuple(left_out), digest)


def _read(path: Path) -> dict:
    if not path.is_file():
        raise BadInput(str(path), "no such file", "a .safetensors or PyTorch file of weights", "correct the path")
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:9] == b"{":  # eight bytes of header length, then a JSON header
        return _read_safetensors(path)
    return _read_torch(path)


def _read_safetensors(path: Path) -> dict:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error


def _read_torch(path: Path) -> dict:
    try:
        import torch
    except ImportError:
        remedy = "pip install torch, or convert the file to .safetensors"
        raise BadInput(str(path), "a PyTorch file, but no PyTorch", "PyTorch to read it with", remedy) from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its unpickler, its zip reader or its C++ code happens to raise
        raise _unreadable(path, error) from error
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
    if not isinstance(loaded, dict):
        raise _unreadable(path, TypeError(f"a {type(loaded).__name__}"))
    return {key: value.float().numpy() for key, value in loaded.items() if isinstance(value, torch.Tensor)}


def _unreadable(path, error):
    found = f"something that cannot be read as weights ({' '.join(str(error).split())[:120]})"
    return BadInput(
        str(path), found, "tensors by name in safetensors or a PyTorch file", "get a whole copy of the file"
    )


def _encoder_part(state: dict, path: Path) -> tuple[dict, list[str]]:
    """Splits keys into the encoder's, without prefix, and all others."""
    prefixed = any(key.startswith(_PREFIX) for key in state)
    part, left_out = {}, []
    for key, value in state.items():
        name = key.removeprefix(_PREFIX)
        if prefixed == key.startswith(_PREFIX) and _ENCODER_PART.match(name):
            part[name] = np.asarray(value).astype(np.float32)
        else:
            left_out.append(key)
    if not part:
        found = f"{len(state)} keys, none of an encoder" + (f" (first: {min(state)})" if state else "")
        raise BadInput(str(path), found, "keys such as encoder.cls_token", "give a file of CSFM weights")
    return part, sorted(left_out)


def _sizes(state: dict, path: Path) -> tuple[EncoderConfig, TokenConfig]:
    """Reads sizes from the shapes that tell them; `_check` then holds every other shape against them."""

    def size(key: str, axis: int, rank: int) -> int:
        shape = state[key].shape if key in state else None
        if shape is None or len(shape) != rank or shape[axis] == 0:
            raise _wrong(path, key, shape, f"{rank} axes")
        return shape[axis]

    width = size("cls_token", 2, 3)
    layers = {int(m[1]) for key in state if (m := _LAYER.match(key))}
    inner = size("transformer.layers.0.0.to_qkv.weight", 0, 2)
    if inner % (3 * HEAD_DIM):
        raise _wrong(path, "transformer.layers.0.0.to_qkv.weight", (inner, width), f"a multiple of {3 * HEAD_DIM} rows")
    patch = size("ts_to_patch_embedding.2.weight", 1, 2)
    encoder = EncoderConfig(
        width=width,
        depth=max(layers) + 1,
        heads=inner // (3 * HEAD_DIM),
        head_dim=HEAD_DIM,
        mlp=size("transformer.layers.0.1.net.1.weight", 0, 2),
        position_steps=size("ts_pos_embedding", 1, 3),
        position_seconds=patch / MODALITIES["ecg"].rate,
    )
    tokens = TokenConfig(
        modalities=("ecg", "ppg"),
        channels="csfm",
        patch=TokenConfig().patch | {"ecg": patch, "ppg": patch},
        text_length=size("text_pos_embedding", 1, 3),
        text_vocabulary=size("text_to_embedding.0.weight", 0, 2),
    )
    return encoder, tokens


def _shapes(encoder: EncoderConfig, tokens: TokenConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of a published encoder of these sizes."""
    d, inner, mlp, patch = encoder.width, encoder.heads * encoder.head_dim, encoder.mlp, tokens.patch["ecg"]
    special = {
        "cls_token": (1, 1, d),
        "ts_channel_type_embedding": (1, len(CSFM_CHANNELS), d),
        "ts_pos_embedding": (1, encoder.position_steps, d),
        "text_type_embedding": (1, 1, d),
        "text_pos_embedding": (1, tokens.text_length, d),
        "ts_to_patch_embedding.1.weight": (patch,),
        "ts_to_patch_embedding.1.bias": (patch,),
        "ts_to_patch_embedding.2.weight": (d, patch),
        "text_to_embedding.0.weight": (tokens.text_vocabulary, d),
        "0.to_qkv.weight": (3 * inner, d),
        "0.to_out.0.weight": (d, inner),
        "1.net.1.weight": (mlp, d),
        "1.net.1.bias": (mlp,),
        "1.net.4.weight": (d, mlp),
    }
    return {name: special.get(_LAYER.sub("", name), (d,)) for name in published_names(encoder.depth)}


def _check(state: dict, shapes: dict, path: Path) -> None:
    for name in sorted(state.keys() | shapes.keys()):
        found = state[name].shape if name in state else None
        if found != shapes.get(name):
            raise _wrong(path, name, found, f"shape {shapes[name]}" if name in shapes else "no such key")
        if not np.isfinite(state[name]).all():
            raise _wrong(path, name, found, "finite values", of="not a number in shape ")


def _wrong(path, key, shape, expected, of="shape "):
    found = "no such key" if shape is None else f"{of}{tuple(shape)}"
    return BadInput(f"{path}: {key}", found, expected, "give a file of published CSFM weights, unchanged")
