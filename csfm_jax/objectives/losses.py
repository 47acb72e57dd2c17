"""Losses of supervised tasks, element by element; NaN labels weigh nothing and leave no trace in gradients.

Functions take scores and labels of equal shape [..., K] and give a loss and a count of the same shape (or [...] where
the labels are one choice): the mean over a batch is the sum of the one over the sum of the other.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Losses(NamedTuple):
    """value: float32, 0 where nothing is known. count: float32, 1 where something is, else 0."""

    value: jax.Array
    count: jax.Array


def bce(logits: jax.Array, labels: jax.Array, positive_weight: tuple[float, ...] = ()) -> Losses:
    """Binary cross-entropy; `positive_weight` [K] multiplies the loss of positives."""
    known, truth = _known(labels)
    value = optax.losses.sigmoid_binary_cross_entropy(logits, truth)
    if positive_weight:
        value *= 1 + truth * (jnp.asarray(positive_weight, jnp.float32) - 1)
    return _masked(value, known)


def asymmetric(logits: jax.Array, labels: jax.Array) -> Losses:
    """ASL (Ridnik et al. 2021) with the constants that CSFM is fine-tuned with: gamma- 4, gamma+ 1, clip 0.05.

    The negatives' probability is shifted by the clip, so that easy ones weigh nothing at all.
    """
    known, truth = _known(labels)
    p = jax.nn.sigmoid(logits)
    not_p = jnp.minimum(1 - p + 0.05, 1.0)
    positive = -jax.nn.log_sigmoid(logits) * (1 - p)
    negative = -jnp.log(not_p) * (1 - not_p) ** 4
    return _masked(truth * positive + (1 - truth) * negative, known)


def focal(logits: jax.Array, labels: jax.Array) -> Losses:
    """Focal loss (Lin et al. 2017), gamma 2, positives and negatives weighed alike."""
    known, truth = _known(labels)
    return _masked(optax.losses.sigmoid_focal_loss(logits, truth, gamma=2.0), known)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> Losses:
    """Softmax cross-entropy of the one label that is 1; [...]. A window with a NaN label, or not exactly one 1, is not
    labelled."""
    known, truth = _known(labels)
    known = known.all(axis=-1) & (truth.sum(axis=-1) == 1)
    return _masked(optax.losses.softmax_cross_entropy(logits, truth), known)


def huber(predicted: jax.Array, labels: jax.Array) -> Losses:
    """Huber's loss with its corner at 1; both in units of the label's deviation."""
    known, truth = _known(labels)
    return _masked(optax.losses.huber_loss(predicted, truth), known)


def squared(predicted: jax.Array, labels: jax.Array) -> Losses:
    """Half the squared error; both in units of the label's deviation."""
    known, truth = _known(labels)
    return _masked(optax.losses.l2_loss(predicted, truth), known)


def cox(log_hazard: jax.Array, labels: jax.Array) -> Losses:
    """Minus Cox's log partial likelihood, by event, with Breslow's ties; the risk sets are of all windows given.

    Args:
        log_hazard: [..., 1]. labels: [..., 2], the event (0 or 1) and the time to it or to the end of observation.

    Returns:
        [...]; count is 1 for events. The sum needs the whole batch: parts of it have other risk sets.
    """
    known, truth = _known(labels)
    known = known.all(axis=-1).reshape(-1)
    event, time = (truth[..., i].reshape(-1) for i in range(2))
    risk = log_hazard.reshape(-1)
    # [who has the event, who is still observed]; everybody is in a set of their own, so that none is empty
    at_risk = (known & (time[None, :] >= time[:, None])) | jnp.eye(len(time), dtype=bool)
    happened = known & (event > 0.5)
    value = jax.nn.logsumexp(jnp.where(at_risk, risk, -jnp.inf), axis=1) - risk
    shape = labels.shape[:-1]
    return _masked(value.reshape(shape), happened.reshape(shape))


BY_NAME = {
    "bce": bce,
    "asymmetric": asymmetric,
    "focal": focal,
    "cross_entropy": cross_entropy,
    "huber": huber,
    "squared": squared,
    "cox": cox,
}


def _known(labels):
    known = ~jnp.isnan(labels)
    return known, jnp.where(known, labels, 0.0)


def _masked(value, known) -> Losses:
    return Losses(jnp.where(known, value, 0.0), known.astype(jnp.float32))
