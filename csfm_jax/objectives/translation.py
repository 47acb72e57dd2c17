"""Signals from signals: masked reconstruction with a planned mask. Inputs are visible, targets hidden (`pairs.py`)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from csfm_jax import tasks
from csfm_jax.config import Config
from csfm_jax.models import lora
from csfm_jax.models.decoder import Decoder
from csfm_jax.models.encoder import Encoder
from csfm_jax.objectives import losses
from csfm_jax.objectives.reconstruction import ObjectiveOutput
from csfm_jax.tasks.config import loss_of
from csfm_jax.tasks.task import MEASURED
from data_pipelines.batch import TokenBatch
from data_pipelines.signals import CHANNEL_ID, CHANNELS


class Signals(NamedTuple):
    """[B, T, P] float32 each, in the channels' units; what stands at tokens that are no targets means nothing."""

    predicted: jax.Array
    recorded: jax.Array


class Translation(nnx.Module):
    """Encoder over the inputs, the decoder of pretraining over inputs and targets, loss on the targets.

    loss = the mean over all samples of target tokens of the global batch, in deviations from the means that
    `batch.labels` holds; rows, devices and windows do not matter. Parameters have the names of `MaskedReconstruction`,
    so that its decoder goes on here; the layer that predicts words is kept, and not used.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.adaptation = ours = config.adaptation
        self.task = tasks.get(ours.task)
        self.channels = ours.labels
        self.outputs = self.task.outputs(ours.labels)
        self.encoder = Encoder(config.encoder, config.tokens, rngs=rngs)
        self.decoder = Decoder(config.decoder, config.encoder, config.tokens, rngs=rngs)
        if ours.lora_rank:
            self.lora = lora.Adapters(config.encoder, ours.lora_rank, ours.lora_alpha, rngs=rngs)

    def target_counts(self, batch: TokenBatch) -> dict[str, jax.Array]:
        """How many samples the loss is a mean over: {"loss/TASK": float32}."""
        return {f"loss/{self.task.name}": self._own(batch, batch.patches.shape[-1]).sum(dtype=jnp.float32)}

    def __call__(
        self, batch: TokenBatch, *, key: jax.Array | None = None, targets: dict[str, jax.Array] | None = None
    ) -> ObjectiveOutput:
        """Args: as of `MaskedReconstruction`.

        Sums and counts: "loss/TASK", and "mae/CHANNEL" of every target in its unit.
        """
        patches = self._predicted(batch, key)
        own = self._own(batch, patches.shape[-1])
        found = losses.BY_NAME[loss_of(self.adaptation)](patches, jnp.where(own, batch.patches, jnp.nan))
        name = f"loss/{self.task.name}"
        sums, counts = {name: found.value.sum()}, {name: found.count.sum()}
        error = jnp.where(own, jnp.abs(patches - batch.patches), 0.0).sum(axis=-1) * self._references(batch)[1]
        for channel in self.channels:
            mine = batch.target & (jnp.asarray(batch.channel) == CHANNEL_ID[channel])
            sums[f"mae/{channel}"] = jnp.where(mine, error, 0.0).sum()
            counts[f"mae/{channel}"] = jnp.where(mine[..., None], own, False).sum(dtype=jnp.float32)
        targets = counts if targets is None else targets
        return ObjectiveOutput(sums[name] / jnp.maximum(targets[name], 1.0), sums, counts)

    def signals(self, batch: TokenBatch) -> Signals:
        """What is predicted at the target tokens, and what was recorded there."""
        mean, deviation = (x[..., None] for x in self._references(batch))
        return Signals(*(x * deviation + mean for x in (self._predicted(batch, None), jnp.asarray(batch.patches))))

    def predict(self, batch: TokenBatch) -> jax.Array:
        """[B, S, outputs] float32, what is measured of every window (`task.MEASURED`); NaN where a target is absent,
        and for heart rates, which are found on the host (`evaluation.translated`)."""
        return self.measure(batch, self.signals(batch))

    def measure(self, batch: TokenBatch, signals: Signals) -> jax.Array:
        """As `predict`, of `signals`."""
        own = self._own(batch, signals.predicted.shape[-1])
        windows = batch.window.shape[1]

        def total(values):
            """[B, T, P] -> [B, S, K], sums over the samples of each window's targets."""
            of_token = jnp.where(own, values, 0.0).sum(axis=-1)
            # exact: the TPU's default would round what is summed
            exact = jax.lax.Precision.HIGHEST
            return jnp.einsum("bt,bts,btk->bsk", of_token, member, of_channel, precision=exact)

        segment, channel = jnp.asarray(batch.segment), jnp.asarray(batch.channel)
        member = (segment[..., None] == jnp.arange(1, windows + 1)).astype(jnp.float32)
        ids = jnp.asarray([CHANNEL_ID[name] for name in self.channels])
        of_channel = (channel[..., None] == ids).astype(jnp.float32)
        count = total(jnp.ones_like(signals.predicted))
        there, n = count > 0, jnp.maximum(count, 1.0)
        error = signals.predicted - signals.recorded
        # moments about means that are known, and about the window's own afterwards
        mean, deviation = (x[..., None] for x in self._references(batch))
        p, r = ((x - mean) / deviation for x in signals)
        mean_p, mean_r = total(p) / n, total(r) / n
        both, of_p, of_r = (total(x) / n for x in (p * r, p * p, r * r))
        variances = (of_p - mean_p**2) * (of_r - mean_r**2)
        correlation = (both - mean_p * mean_r) / jnp.sqrt(jnp.maximum(variances, 1e-12))
        correlation = jnp.where((of_r - mean_r**2 > 1e-6), jnp.clip(correlation, -1, 1), jnp.nan)
        unknown = jnp.full_like(count, jnp.nan)
        found = (total(jnp.abs(error)) / n, total(error**2) / n, correlation, unknown, unknown)
        values = jnp.stack([jnp.where(there, x, jnp.nan) for x in found], axis=-1)
        return values.reshape(*values.shape[:2], len(self.channels) * len(MEASURED))

    def _predicted(self, batch: TokenBatch, key) -> jax.Array:
        """[B, T, P'] patches in deviations, P' of the batch, whose sensors may be fewer than the model's."""
        own = batch.patches.shape[-1]
        if (missing := self.encoder.vocabulary.longest_patch - own) > 0:
            batch = batch._replace(patches=jnp.pad(batch.patches, ((0, 0), (0, 0), (0, missing))))
        encoder = self.lora.adapt(self.encoder) if self.adaptation.lora_rank else self.encoder
        # features of a frozen encoder are those that it will have when it is used
        encoded = encoder(batch, key=None if self.adaptation.trainable == "head" else key)
        return self.decoder.patches(encoded, batch)[..., :own]

    def _own(self, batch: TokenBatch, longest: int) -> jax.Array:
        """bool [B, T, P]: the samples that are predicted."""
        vocabulary = self.encoder.vocabulary
        modality = jnp.asarray(vocabulary.modality_of_channel)[jnp.asarray(batch.channel)]
        length = jnp.where(batch.target & (modality >= 0), jnp.asarray(vocabulary.patches)[modality], 0)
        return jnp.arange(longest) < length[..., None]

    def _references(self, batch: TokenBatch) -> tuple[jax.Array, jax.Array]:
        """[B, T] mean and deviation, in its unit, that every target is measured against; elsewhere 0 and 1."""
        position = np.full(len(CHANNELS), -1, np.int32)
        position[[CHANNEL_ID[name] for name in self.channels]] = np.arange(len(self.channels))
        at = jnp.asarray(position)[jnp.asarray(batch.channel)]
        B, S, columns = batch.labels.shape
        slot = (jnp.maximum(jnp.asarray(batch.segment) - 1, 0)) * columns
        flat = jnp.asarray(batch.labels).reshape(B, S * columns)
        known = batch.target & (at >= 0)

        def read(first, otherwise):
            found = jnp.take_along_axis(flat, slot + first + jnp.maximum(at, 0), axis=1)
            return jnp.where(known, found, otherwise)

        return read(0, 0.0), read(len(self.channels), 1.0)
