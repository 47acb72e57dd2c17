"""The analytic count against the compiler's, where the compiler's is right: one block, so that a scan hides nothing."""

import dataclasses

import jax
import pytest
from flax import nnx
from model_batches import built, pack, small_config

from csfm_jax.models import flops
from csfm_jax.models.config import DecoderConfig
from csfm_jax.models.encoder import Encoder
from csfm_jax.objectives import build


@pytest.mark.parametrize("projection", ["shared", "modality"])
def test_count_is_near_the_compilers(projection):
    # Wide, so that products outweigh LayerNorm, softmax and the polynomial of erf, which the compiler counts too.
    wide = dict(width=256, depth=1, heads=4, head_dim=64, mlp=1024)
    config = dataclasses.replace(small_config(**wide, projection=projection), decoder=DecoderConfig(**wide))
    batch = pack(config, [[]])

    def measured(make):
        graphdef, state = built(make)
        # The batch is an argument: as a constant, most of the work on it would be done by the compiler.
        forward = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch))
        return forward.lower(state, batch).compile().cost_analysis()["flops"]

    counted = flops.count(config)
    encoder = measured(lambda: Encoder(config.encoder, config.tokens, rngs=nnx.Rngs(0)))
    both = measured(lambda: build(config, rngs=nnx.Rngs(0)))
    assert 1.0 <= encoder / counted.encoder < 1.1
    assert 1.0 <= both / counted.forward < 1.1


def test_depth_and_training():
    config = small_config()
    deeper = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, depth=5))
    block = 2 * 64 * (4 * 32 * 32 + 2 * 32 * 48) + 4 * 64 * 64 * 32
    one, two = flops.count(config), flops.count(deeper)
    assert two.encoder - one.encoder == 3 * block and two.decoder == one.decoder
    assert one.train == 3 * (one.encoder + one.decoder) and one.decoder_share == one.decoder / one.forward


def test_peaks():
    assert flops.peak("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert flops.peak("TPU v5 lite", "bfloat16") == 197e12 and flops.peak("TPU v5", "bfloat16") == 459e12
    assert flops.peak("cpu", "float32") is None
