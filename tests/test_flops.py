"""The analytic count against the compiler's, where the compiler's is right: one block, so that a scan hides nothing."""

import dataclasses

import jax
import pytest
from flax import nnx
from model_batches import pack, small_config

from csfm_jax.models import flops
from csfm_jax.models.encoder import Encoder
from csfm_jax.objectives import build


@pytest.mark.parametrize("projection", ["shared", "modality"])
def test_count_is_near_the_compilers(projection):
    config = small_config(depth=1, width=64, mlp=256, projection=projection)
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, depth=1, width=64, mlp=256))
    batch = pack(config, [[]])

    def measured(make):
        graphdef, state = nnx.split(make())
        outputs = lambda state: nnx.merge(graphdef, state)(batch)  # noqa: E731
        return jax.jit(outputs).lower(state).compile().cost_analysis()["flops"]

    counted = flops.count(config)
    encoder = measured(lambda: Encoder(config.encoder, config.tokens, rngs=nnx.Rngs(0)))
    both = measured(lambda: build(config, rngs=nnx.Rngs(0)))
    # The compiler also counts LayerNorm, softmax and GELU, a larger share at this width than at a real one.
    assert 1.0 <= encoder / counted.encoder < 1.15
    assert 1.0 <= both / counted.forward < 1.15


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
