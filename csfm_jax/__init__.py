"""csfm_jax: pretraining of foundation models on heterogeneous biosignals.

    encoder = csfm_jax.load("runs/mine")
    result = encoder.embed(signal, rate=500, channels=["I", "II", "PPG"], unit="mV")

Importing the package imports no JAX; the names below are resolved when they are first used.
"""

import importlib

__version__ = "0.1.0"

_LAZY = {"load": "csfm_jax.encoding", "load_published_csfm": "csfm_jax.export.published"}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'csfm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
