"""Mesh, rules and checks; on eight devices the objective gives the losses and gradients of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from csfm_jax import config as config_lib
from csfm_jax import sharding
from csfm_jax.config import MeshConfig
from data_pipelines.errors import BadInput

EIGHT = """
import json, jax, numpy as np
from flax import nnx
from csfm_jax import sharding
from csfm_jax.config import MeshConfig
from csfm_jax.objectives import build
from model_batches import built, pack, small_config, window

config, rng = small_config(), np.random.default_rng(0)
make = lambda: build(config, rngs=nnx.Rngs(0))
batch = pack(config, [[window(config, ["I", "RESP"], 6, 3, rng, keep=0.5)] for _ in range(8)])
graphdef, state = built(make)
step = lambda state, batch: jax.value_and_grad(lambda s: nnx.merge(graphdef, s)(batch).loss)(state)
want, want_gradient = jax.jit(step)(state, batch)
mesh = sharding.make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2))
with sharding.use(mesh):
    _, abstract = nnx.get_abstract_model(make, mesh)
    placed = jax.device_put(state, jax.tree.map(lambda x: x.sharding, abstract))
    loss, gradient = jax.jit(step)(placed, jax.device_put(batch, sharding.batch_sharding(mesh)))
pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(want_gradient))]
out = dict(
    loss=abs(float(loss - want)),
    gradient=max(float(abs(a - b).max() / (abs(b).max() + 1e-3)) for a, b in pairs),
    shards=[
        placed["encoder"]["transformer"]["blocks"][name]["kernel"].get_value().addressable_shards[0].data.shape
        for name in ("up", "down")
    ],
)
print(json.dumps(out))
"""


def test_eight_devices_equal_one():
    folder = Path(__file__).parent
    flags = "--xla_force_host_platform_device_count=8"
    paths = os.pathsep.join([str(folder), str(folder.parent)])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": paths}
    command = [sys.executable, "-c", EIGHT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["loss"] < 1e-5 and result["gradient"] < 1e-4, result
    assert result["shards"] == [[2, 16, 24], [2, 24, 16]]  # fsdp halves the width 32, tensor the MLP's 48
    assert "rematerialization" not in done.stderr  # what the compiler says when it replicates activations


def test_mesh_fills_the_axis_that_is_minus_one():
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    assert dict(mesh.shape) == {"replica": 1, "data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("sizes", [dict(fsdp=3), dict(data=2), dict(data=-1, fsdp=-1), dict(tensor=0), dict(data=-2)])
def test_a_mesh_that_does_not_divide_is_refused(sizes):
    with pytest.raises(BadInput, match="config.mesh"):
        sharding.make_mesh(MeshConfig(**sizes), jax.devices()[:1])


def test_slices_fall_on_replicas():
    assert sharding.axis_sizes(MeshConfig(replica=2, fsdp=4), 32, slices=2) == dict(replica=2, data=4, fsdp=4, tensor=1)
    with pytest.raises(BadInput, match="config.mesh.replica: found 1; expected a multiple of the 2 slices"):
        sharding.axis_sizes(MeshConfig(), 32, slices=2)


class FakeMesh:
    shape = {"replica": 1, "data": 4, "fsdp": 2, "tensor": 4}


@pytest.mark.parametrize(
    "values, message",
    [
        ({"data": {"rows": 12}}, "config.data.rows: found 12; expected a multiple of 8"),
        ({"data": {"rows": 16}, "encoder": {"heads": 6}}, "config.encoder.heads: found 6; expected a multiple of 4"),
        ({"data": {"rows": 16}, "decoder": {"width": 33}}, "config.decoder.width"),
    ],
)
def test_sizes_that_the_mesh_does_not_divide_are_refused(values, message):
    with pytest.raises(BadInput, match=message):
        sharding.check(config_lib.from_dict(values), FakeMesh)


def test_rules():
    assert sharding.spec("batch", None, "mlp") == P(("replica", "data", "fsdp"), None, "tensor")
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    assert sharding.spec("batch", "embed", mesh=mesh) == P("data", None)  # axes that a mesh lacks are left out
    x = np.ones((2, 3), np.float32)
    assert sharding.constrain(x, "batch", None) is x  # no mesh, nothing to do
