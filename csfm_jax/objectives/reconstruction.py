"""Masked reconstruction: mean squared error on hidden patches, cross-entropy on hidden words (He et al. 2022; CSFM)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from csfm_jax.config import Config
from csfm_jax.models.decoder import Decoded, Decoder
from csfm_jax.models.encoder import Encoder
from csfm_jax.models.tokenizer import gather
from data_pipelines.batch import TokenBatch
from data_pipelines.signals import TEXT

TARGET_EPS = 1e-6  # added to the variance of a normalised target, as in He et al. 2022


class ObjectiveOutput(NamedTuple):
    """The loss, and what its averages over many batches are made of.

    Attributes:
        loss: scalar float32, over the global batch.
        sums, counts: equal keys; sum the sums and the counts over batches, then divide. For every modality m of the
            config: "loss/m" (as trained), "mae/m", "rmse/m" (its sum is of squares: take the root after dividing;
            both in units of the window's z-score), "tokens/m" (targets; its count is the number of batches, 1).
            With text: "loss/text", "tokens/text". Counts are float32, exact up to 2^24 tokens a batch.
    """

    loss: jax.Array
    sums: dict[str, jax.Array]
    counts: dict[str, jax.Array]


class MaskedReconstruction(nnx.Module):
    """Encoder over visible tokens, decoder over the whole row, loss on `batch.target`.

    loss = sum_m weight_m mean_m / sum_m weight_m over the modalities m that have a target in the batch, where mean_m is
    over all target tokens of m in the global batch: a modality counts by its weight, not by how many tokens it has, and
    rows and devices do not matter. Text is one of the m.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.normalise_target = config.objective.normalise_target
        self.encoder = Encoder(config.encoder, config.tokens, rngs=rngs)
        self.decoder = Decoder(config.decoder, config.encoder, config.tokens, rngs=rngs)
        vocabulary = self.encoder.vocabulary
        names = vocabulary.modalities + (("text",) if vocabulary.text_length else ())
        self.weights = tuple((name, config.objective.weights.get(name, 1.0)) for name in names)

    def target_counts(self, batch: TokenBatch) -> dict[str, jax.Array]:
        """How many target tokens each part of the loss is a mean over: {"loss/m": float32}."""
        modality, _ = self._modality_and_samples(batch)
        counts = {
            f"loss/{name}": (batch.target & (modality == index)).sum(dtype=jnp.float32)
            for index, name in enumerate(self.encoder.vocabulary.modalities)
        }
        if self.encoder.vocabulary.text_length:
            counts["loss/text"] = (batch.target & (batch.channel == TEXT)).sum(dtype=jnp.float32)
        return counts

    def __call__(
        self, batch: TokenBatch, *, key: jax.Array | None = None, targets: dict[str, jax.Array] | None = None
    ) -> ObjectiveOutput:
        """Args:
        key: of dropout; None = none (evaluation).
        targets: `target_counts` of the batch that this one is a part of: the losses of its parts then add up to
            the loss of the whole. None: a batch by itself.
        """
        decoded = self._decode(batch, key)
        sums, counts = self._signal_errors(decoded, batch)
        if decoded.word_logits is not None:
            wrong, words = _word_errors(decoded, batch)
            sums |= {"loss/text": wrong, "tokens/text": words}
            counts |= {"loss/text": words, "tokens/text": jnp.float32(1)}
        targets = counts if targets is None else targets
        present = [(w * (targets[f"loss/{m}"] > 0), f"loss/{m}") for m, w in self.weights]
        total = sum(w * sums[name] / jnp.maximum(targets[name], 1.0) for w, name in present)
        # A batch without targets (the empty rows that end an epoch) weighs nothing and has loss 0, not NaN.
        weight = sum(w for w, _ in present)
        loss = total / jnp.where(weight > 0, weight, 1.0)
        return ObjectiveOutput(loss, sums, counts)

    def reconstruct(self, batch: TokenBatch) -> jax.Array:
        """Predicted patches [B, T, P] in units of the window's z-score, for every signal token, visible ones too.

        With `normalise_target` a prediction is put back on its true patch's own mean and deviation: the model does not
        predict them.
        """
        return self._in_window_units(self._decode(batch, None).patches, batch)

    def _decode(self, batch, key) -> Decoded:
        return self.decoder(self.encoder(batch, key=key), batch)

    def _modality_and_samples(self, batch):
        """[B, T] modality of each token (-1 = none) and [B, T, P] which of its samples are its own."""
        vocabulary = self.encoder.vocabulary
        modality = jnp.asarray(vocabulary.modality_of_channel)[jnp.asarray(batch.channel)]
        length = jnp.where(modality >= 0, jnp.asarray(vocabulary.patches)[modality], 0)
        return modality, jnp.arange(vocabulary.longest_patch) < length[..., None]

    def _patch_statistics(self, batch, own):
        length = jnp.maximum(own.sum(axis=-1, keepdims=True), 1)
        mean = jnp.where(own, batch.patches, 0.0).sum(axis=-1, keepdims=True) / length
        variance = jnp.square(jnp.where(own, batch.patches - mean, 0.0)).sum(axis=-1, keepdims=True) / length
        return mean, jnp.sqrt(variance + TARGET_EPS)

    def _in_window_units(self, patches, batch):
        if not self.normalise_target:
            return patches
        _, own = self._modality_and_samples(batch)
        mean, deviation = self._patch_statistics(batch, own)
        return jnp.where(own, patches * deviation + mean, 0.0)

    def _signal_errors(self, decoded, batch):
        modality, own = self._modality_and_samples(batch)
        samples = jnp.maximum(own.sum(axis=-1), 1)
        target = jnp.asarray(batch.patches)
        if self.normalise_target:
            mean, deviation = self._patch_statistics(batch, own)
            target = (target - mean) / deviation
        trained = jnp.square(jnp.where(own, decoded.patches - target, 0.0)).sum(axis=-1) / samples
        error = jnp.where(own, self._in_window_units(decoded.patches, batch) - batch.patches, 0.0)
        absolute, squared = jnp.abs(error).sum(axis=-1) / samples, jnp.square(error).sum(axis=-1) / samples

        sums, counts = {}, {}
        for index, name in enumerate(self.encoder.vocabulary.modalities):
            chosen = batch.target & (modality == index)
            tokens = chosen.sum(dtype=jnp.float32)
            for key, value in (("loss", trained), ("mae", absolute), ("rmse", squared)):
                sums[f"{key}/{name}"] = jnp.where(chosen, value, 0.0).sum()
                counts[f"{key}/{name}"] = tokens
            sums[f"tokens/{name}"], counts[f"tokens/{name}"] = tokens, jnp.float32(1)
        return sums, counts


def _word_errors(decoded, batch):
    """Summed cross-entropy of the target words, and their number."""
    real = decoded.word_at < batch.channel.shape[1]
    words = gather(jnp.asarray(batch.text), decoded.word_at)
    log_p = jax.nn.log_softmax(decoded.word_logits, axis=-1)
    wrong = -jnp.take_along_axis(log_p, words[..., None], axis=-1)[..., 0]
    return jnp.where(real, wrong, 0.0).sum(), real.sum(dtype=jnp.float32)
