"""Which stretches of a recording moved a fine-tuned network's score: integrated gradients over its samples.

From the mean signal (zeros, as every channel is z-scored) straight to the window. A patch's LayerNorm answers almost
entirely within the first hundredth of that way, where its deviation meets the norm's epsilon: steps are spaced evenly
in asinh, not in length, or dozens of them would miss what happens.

Source: Sundararajan, Taly, Yan 2017.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from csfm_jax.evaluation.fine_tuned import FineTuned
from csfm_jax.tasks.resolve import read_tokens
from data_pipelines.batch import TokenBatch
from data_pipelines.errors import BadInput
from data_pipelines.loader import pack_windows
from data_pipelines.signals import modality_of
from data_pipelines.windows import row_length

STEPS = 64
_CORNER = np.sqrt(1e-5)  # of a patch's LayerNorm (`models.layers.layer_norm`), in deviations


class Saliency(NamedTuple):
    """What moved one score of one window.

    Attributes:
        channels: (channel id, attribution of every sample [n] float32) each: 0 where no token was read.
        score, baseline: the network's logit for the window, and for the mean signal in every token.
    """

    channels: list[tuple[int, np.ndarray]]
    score: float
    baseline: float


def explain(model: FineTuned, window: list[tuple[int, np.ndarray]], output: int, steps: int = STEPS) -> Saliency | None:
    """Attributes a window's score to its samples; they add up to score - baseline but for the integration's error.

    Args:
        model: a transformer, `merged` (float32 throughout). window: (channel id, samples [n] int16) each. output: which
            score. steps: of the integral.

    Returns:
        None where the window holds no token that the model reads.

    Raises:
        BadInput: another backbone.
    """
    if (name := model.config.backbone.name) != "transformer":
        raise BadInput("saliency", f"the backbone {name}", "a transformer", "leave its saliency out")
    tokens = read_tokens(model.config)
    longest = 1 + sum(len(x) // tokens.patch[modality_of(c).name] for c, x in window
                      if modality_of(c).name in tokens.modalities)  # fmt: skip
    shape = {"rows": 1, "row_tokens": row_length(longest), "row_windows": 1}
    batches = pack_windows([window], tokens, **shape) if longest > 1 else []
    if not batches or batches[0].window[0, 0] < 0:
        return None
    (batch,) = batches
    values, score, baseline = jax.device_get(_integrated(*nnx.split(model.objective), batch, output, steps))
    return Saliency(_per_channel(values[0], batch, window, tokens), float(score), float(baseline))


@partial(jax.jit, static_argnums=(0, 4))
def _integrated(graphdef, state, batch: TokenBatch, output, steps: int):
    """[B, T, P] attributions, and the score (of the one window) at the end and at the beginning of the way."""
    model, whole = nnx.merge(graphdef, state), jnp.asarray(batch.patches)

    def score(patches):
        return model.scores(batch._replace(patches=patches))[0, 0, output]

    # Gauss-Legendre in t, with length = sinh(c t) / sinh(c): the first steps are the corner's size
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    c = np.arcsinh(1 / _CORNER)
    t = (nodes + 1) / 2
    lengths, weights = np.sinh(c * t) / np.sinh(c), weights / 2 * c * np.cosh(c * t) / np.sinh(c)

    def add(total, step):
        length, weight = step
        return total + weight * jax.grad(score)(length * whole), None

    ways = jnp.asarray(lengths, jnp.float32), jnp.asarray(weights, jnp.float32)
    total, _ = jax.lax.scan(add, jnp.zeros_like(whole), ways)
    return total * whole, score(whole), score(jnp.zeros_like(whole))


def _per_channel(values, batch: TokenBatch, window, tokens) -> list[tuple[int, np.ndarray]]:
    found = []
    for channel, samples in window:
        out = np.zeros(len(samples), np.float32)
        modality = modality_of(channel)
        patch = tokens.patch.get(modality.name, 0)
        for at in np.flatnonzero(batch.channel[0] == channel):
            first = round(float(batch.time[0, at]) * modality.rate - patch / 2)
            out[first : first + patch] = values[at, :patch]
        found.append((channel, out))
    return found


def stretches(saliency: np.ndarray, rate: float, seconds: float) -> list[tuple[float, float, float]]:
    """(from, to, sum of attributions) of stretches of so many seconds; those without any are left out."""
    n = max(1, round(seconds * rate))
    starts = np.arange(0, len(saliency), n)
    sums = np.add.reduceat(saliency, starts) if len(starts) else ()
    return [(at / rate, min(at + n, len(saliency)) / rate, float(s)) for at, s in zip(starts.tolist(), sums) if s]
