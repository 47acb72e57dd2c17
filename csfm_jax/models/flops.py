"""Analytic FLOPs of a forward pass and the peak rates of devices: what MFU is made of.

The compiler's own count is no substitute: it counts the body of a scan once, whatever the depth.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from csfm_jax.models import backbone_flops
from csfm_jax.models.vocabulary import Vocabulary
from data_pipelines.windows import capacities

if TYPE_CHECKING:
    from csfm_jax.config import Config

# FLOP/s of one JAX device for dense products, by device_kind: bfloat16, and float32 as JAX computes it by default
# (one bfloat16 pass on TPU, TF32 on NVIDIA). Vendors' data sheets; a TPU7x chip is two devices.
PEAK: dict[str, dict[str, float]] = {
    "TPU v4": {"bfloat16": 275e12, "float32": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12, "float32": 197e12},
    "TPU v5e": {"bfloat16": 197e12, "float32": 197e12},
    "TPU v5": {"bfloat16": 459e12, "float32": 459e12},
    "TPU v5p": {"bfloat16": 459e12, "float32": 459e12},
    "TPU v6 lite": {"bfloat16": 918e12, "float32": 918e12},
    "TPU v6e": {"bfloat16": 918e12, "float32": 918e12},
    "TPU7x": {"bfloat16": 1153.5e12, "float32": 1153.5e12},
    "NVIDIA A100": {"bfloat16": 312e12, "float32": 156e12},
    "NVIDIA H100": {"bfloat16": 989e12, "float32": 494.5e12},
    "NVIDIA H200": {"bfloat16": 989e12, "float32": 494.5e12},
}


@dataclass(frozen=True)
class Flops:
    """Forward FLOPs (a multiply-add is two) of one row, padding included, since it is computed.

    Attributes:
        encoder: over V tokens. decoder: over T tokens, with its heads; 0 where a task is trained.
        frozen: whether the encoder is not trained, so that there is no backward pass through it.
    """

    encoder: float
    decoder: float
    frozen: bool = False

    @property
    def forward(self) -> float:
        return self.encoder + self.decoder

    @property
    def train(self) -> float:
        """Forward and backward, three times forward; what rematerialisation repeats is not counted, as usual."""
        return (1 if self.frozen else 3) * self.encoder + 3 * self.decoder

    @property
    def decoder_share(self) -> float:
        return self.decoder / self.forward


def count(config: "Config") -> Flops:
    """Products of the model that a config describes, for attention over all pairs of a row (as "dense" computes it).

    LayerNorm, GELU, softmax and the gathers are left out: a few percent, and not what a device's peak is about.
    """
    if config.backbone.name != "transformer":  # no decoder: these are trained on labels
        return Flops(backbone_flops.forward(config), 0.0)
    encoder, decoder, vocabulary = config.encoder, config.decoder, Vocabulary.of(config.tokens)
    t, v, s = capacities(config.tokens, config.data)
    samples = sum(vocabulary.patches)
    projected = vocabulary.longest_patch if encoder.projection == "shared" else samples
    encode = 2 * v * projected * encoder.width + _transformer(encoder, v) + 2 * v * s * encoder.width
    decode = 2 * v * encoder.width * decoder.width + _transformer(decoder, t) + 2 * t * decoder.width * samples
    if config.adaptation.task:  # heads of tasks are a fraction of a percent
        decode = decode if config.objective.name == "translation" else 0.0
        return Flops(float(encode), float(decode), config.adaptation.trainable == "head")
    words = min(t, s * vocabulary.text_length)
    decode += 2 * words * decoder.width * vocabulary.text_vocabulary
    return Flops(float(encode), float(decode))


def _transformer(sizes, tokens):
    inner = sizes.heads * sizes.head_dim
    products = 2 * tokens * (4 * sizes.width * inner + 2 * sizes.width * sizes.mlp)
    return sizes.depth * (products + 4 * tokens * tokens * inner)


def peak(device_kind: str, compute: str) -> float | None:
    """FLOP/s of one device at its best, or None where it is not known (CPUs: no MFU is printed).

    Args:
        device_kind: `jax.Device.device_kind`; NVIDIA's carry form and memory behind the name. compute: dtype's name.
    """
    for name in sorted(PEAK, key=len, reverse=True):
        if device_kind == name or device_kind.startswith(name + " "):
            return PEAK[name][compute]
    return None
