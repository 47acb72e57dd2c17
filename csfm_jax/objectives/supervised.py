"""A supervised task: an encoder that sees everything, a head, and a loss on the labels of windows."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from csfm_jax import tasks
from csfm_jax.config import Config
from csfm_jax.models import backbone_config, heads, lora
from csfm_jax.models.backbones import build_encoder
from csfm_jax.models.encoder import Encoder
from csfm_jax.objectives import losses
from csfm_jax.objectives.reconstruction import ObjectiveOutput
from csfm_jax.tasks.config import loss_of
from data_pipelines.batch import TokenBatch


class Supervised(nnx.Module):
    """Encoder, its low-rank updates where there are any, and head; loss on `batch.labels`.

    loss = the mean over all labelled entries (of "cox": over events) of the global batch: rows, devices and windows
    without labels do not matter.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.adaptation = ours = config.adaptation
        self.task = tasks.get(ours.task)
        self.outputs = self.task.outputs(ours.labels)
        self.encoder = build_encoder(config, rngs=rngs)
        sizes = dataclasses.replace(config.encoder, width=backbone_config.width(config))
        self.head = heads.build(ours.head, sizes, len(self.outputs), ours.head_dropout, rngs=rngs)
        if ours.lora_rank:
            self.lora = lora.Adapters(config.encoder, ours.lora_rank, ours.lora_alpha, rngs=rngs)

    def target_counts(self, batch: TokenBatch) -> dict[str, jax.Array]:
        """How many labelled entries the loss is a mean over: {"loss/TASK": float32}."""
        labels = self._labels(batch)
        zero = jnp.zeros((*labels.shape[:-1], len(self.outputs)), jnp.float32)
        return {f"loss/{self.task.name}": self._losses(zero, labels).count.sum()}

    def __call__(
        self, batch: TokenBatch, *, key: jax.Array | None = None, targets: dict[str, jax.Array] | None = None
    ) -> ObjectiveOutput:
        """Args: as of `MaskedReconstruction`.

        Sums and counts: "loss/TASK", and of a regression "mae/LABEL" in the label's own unit.
        """
        labels, scores = self._labels(batch), self.scores(batch, key=key)
        found = self._losses(scores, labels)
        name = f"loss/{self.task.name}"
        sums, counts = {name: found.value.sum()}, {name: found.count.sum()}
        if self.task.kind == "regression":
            error = jnp.abs(scores - labels) * jnp.asarray(self.adaptation.scale, jnp.float32)
            for i, label in enumerate(self.outputs):
                known = ~jnp.isnan(labels[..., i])
                sums[f"mae/{label}"] = jnp.where(known, error[..., i], 0.0).sum()
                counts[f"mae/{label}"] = known.sum(dtype=jnp.float32)
        targets = counts if targets is None else targets
        return ObjectiveOutput(sums[name] / jnp.maximum(targets[name], 1.0), sums, counts)

    def scores(self, batch: TokenBatch, *, key: jax.Array | None = None) -> jax.Array:
        """[B, S, outputs] float32 as the loss takes them: logits, z-scores or log-hazards. key: of dropout."""
        # A task may read fewer sensors than the encoder knows, whose longest patch is then shorter.
        longest = self.encoder.vocabulary.longest_patch if isinstance(self.encoder, Encoder) else 0
        if (missing := longest - batch.patches.shape[-1]) > 0:
            batch = batch._replace(patches=jnp.pad(batch.patches, ((0, 0), (0, 0), (0, missing))))
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        encoder = self.lora.adapt(self.encoder) if self.adaptation.lora_rank else self.encoder
        # features of a frozen encoder are those that it will have when it is used
        read = self.head.read(encoder, batch, None if self.adaptation.trainable == "head" else keys[0])
        return self.head(read, batch.window.shape[1], key=keys[1])

    def predict(self, batch: TokenBatch) -> jax.Array:
        """[B, S, outputs] float32 for people: probabilities, values in the label's unit, or log-hazards."""
        scores = self.scores(batch)
        if self.task.kind == "multilabel":
            return jax.nn.sigmoid(scores)
        if self.task.kind == "multiclass":
            return jax.nn.softmax(scores, axis=-1)
        if self.task.kind == "regression":
            scale, mean = (jnp.asarray(x, jnp.float32) for x in (self.adaptation.scale, self.adaptation.mean))
            return scores * scale + mean
        return scores

    def _labels(self, batch):
        labels = jnp.asarray(batch.labels)
        if self.task.kind != "regression":
            return labels
        mean, scale = (jnp.asarray(x, jnp.float32) for x in (self.adaptation.mean, self.adaptation.scale))
        return (labels - mean) / scale

    def _losses(self, scores, labels) -> losses.Losses:
        name = loss_of(self.adaptation)
        if name == "bce":
            weight = self.adaptation.positive_weight if self.adaptation.weigh_positives else ()
            return losses.bce(scores, labels, weight)
        return losses.BY_NAME[name](scores, labels)
