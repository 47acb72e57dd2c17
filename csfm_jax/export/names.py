"""The encoder's parameters under the names of the published weights, and back.

Linear kernels are transposed ((out, in) in PyTorch), scanned blocks unstacked, tables get a leading axis of 1.
"""

import numpy as np

_TABLES = {
    "cls_token": ("tokenizer", "cls"),
    "ts_channel_type_embedding": ("tokenizer", "place", "channel"),
    "ts_pos_embedding": ("tokenizer", "place", "time"),
    "text_type_embedding": ("tokenizer", "place", "text_type"),
    "text_pos_embedding": ("tokenizer", "place", "text_index"),
}
# name within a projection or a block -> (path, kind); kinds say how an array is turned round
_PROJECTION = {
    "1.weight": (("norm_in", "scale"), "same"),
    "1.bias": (("norm_in", "bias"), "same"),
    "2.weight": (("linear", "kernel"), "linear"),
    "2.bias": (("linear", "bias"), "same"),
    "3.weight": (("norm_out", "scale"), "same"),
    "3.bias": (("norm_out", "bias"), "same"),
}
_TEXT = {
    "text_to_embedding.0.weight": (("words",), "same"),
    "text_to_embedding.1.weight": (("norm", "scale"), "same"),
    "text_to_embedding.1.bias": (("norm", "bias"), "same"),
}
_BLOCK = {
    "0.norm.weight": (("attention_norm", "scale"), "same"),
    "0.norm.bias": (("attention_norm", "bias"), "same"),
    "0.to_qkv.weight": (("attention", "qkv", "kernel"), "qkv"),
    "0.to_out.0.weight": (("attention", "out", "kernel"), "heads"),
    "0.to_out.0.bias": (("attention", "out", "bias"), "same"),
    "1.net.0.weight": (("mlp_norm", "scale"), "same"),
    "1.net.0.bias": (("mlp_norm", "bias"), "same"),
    "1.net.1.weight": (("up", "kernel"), "linear"),
    "1.net.1.bias": (("up", "bias"), "same"),
    "1.net.4.weight": (("down", "kernel"), "linear"),
    "1.net.4.bias": (("down", "bias"), "same"),
}
_NORM = {"transformer.norm.weight": ("norm", "scale"), "transformer.norm.bias": ("norm", "bias")}


def to_torch(params: dict) -> dict[str, np.ndarray]:
    """The encoder's parameters (nested dict, as `nnx.to_pure_dict` gives) -> name -> float32 array.

    A projection per modality is named `ts_to_patch_embedding.<modality>.1.weight` and so on; parts that a model does
    not have (text, learned positions) are left out.
    """
    state = {}
    for name, path in _TABLES.items():
        if (value := _get(params, path)) is not None:
            state[name] = value[None, None] if value.ndim == 1 else value[None]
    for part, projection in params["tokenizer"]["patch"]["projections"].items():
        prefix = "ts_to_patch_embedding." + ("" if part == "shared" else f"{part}.")
        state |= {prefix + n: _turn(_get(projection, path), kind) for n, (path, kind) in _PROJECTION.items()}
    if text := params["tokenizer"].get("text"):
        state |= {n: _turn(_get(text, path), kind) for n, (path, kind) in _TEXT.items()}
    blocks = params["transformer"]["blocks"]
    for name, (path, kind) in _BLOCK.items():
        for i, value in enumerate(_get(blocks, path)):
            state[f"transformer.layers.{i}.{name}"] = _turn(value, kind)
    state |= {n: _get(params["transformer"], path) for n, path in _NORM.items()}
    return {n: np.ascontiguousarray(v, np.float32) for n, v in state.items()}


def from_torch(state: dict[str, np.ndarray], depth: int, heads: int, head_dim: int) -> dict:
    """The inverse of `to_torch` for a model with one shared projection and text, as published.

    Args:
        state: exactly the names that `published_names` lists, without prefix.
    """
    params = {}
    for name, path in _TABLES.items():
        value = state[name][0]
        _set(params, path, value[0] if name in ("cls_token", "text_type_embedding") else value)
    for name, (path, kind) in _PROJECTION.items():
        value = _turn(state["ts_to_patch_embedding." + name], kind)
        _set(params, ("tokenizer", "patch", "projections", "shared", *path), value)
    for name, (path, _) in _TEXT.items():
        _set(params, ("tokenizer", "text", *path), state[name])
    for name, (path, kind) in _BLOCK.items():
        layers = (state[f"transformer.layers.{i}.{name}"] for i in range(depth))
        _set(params, ("transformer", "blocks", *path), np.stack([_unturn(v, kind, heads, head_dim) for v in layers]))
    for name, path in _NORM.items():
        _set(params, ("transformer", *path), state[name])
    return params


def published_names(depth: int) -> list[str]:
    """Every encoder key of a published file, without prefix and without heads."""
    blocks = [f"transformer.layers.{i}.{name}" for i in range(depth) for name in _BLOCK]
    return [*_TABLES, *("ts_to_patch_embedding." + n for n in _PROJECTION), *_TEXT, *blocks, *_NORM]


def _turn(value, kind):
    if kind == "same":
        return value
    if kind == "qkv":  # [D, 3, H, d]
        return value.reshape(value.shape[0], -1).T
    if kind == "heads":  # [H, d, D]
        return value.reshape(-1, value.shape[-1]).T
    return value.T


def _unturn(value, kind, heads, head_dim):
    if kind == "same":
        return value
    if kind == "qkv":
        return value.T.reshape(-1, 3, heads, head_dim)
    if kind == "heads":
        return value.T.reshape(heads, head_dim, -1)
    return value.T


def _get(tree, path):
    for part in path:
        if part not in tree:
            return None
        tree = tree[part]
    return np.asarray(tree) if not isinstance(tree, dict) else tree


def _set(tree, path, value):
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = np.asarray(value, np.float32)
