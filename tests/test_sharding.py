"""Mesh, rules and checks; what a mesh does to losses and gradients is in test_step.py."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from csfm_jax import config as config_lib
from csfm_jax import sharding
from csfm_jax.config import MeshConfig
from data_pipelines.errors import BadInput


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


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """One of a machine that is not here; JAX numbers the machines of a job by their boot ids as `slice_index`."""

    id: int
    platform: str
    device_kind: str = "made up"

    @property
    def slice_index(self) -> int:
        return self.id // 4


@pytest.mark.parametrize("platform", ["gpu", "cpu"])
def test_machines_of_a_cluster_are_no_slices(platform):
    mesh = sharding.make_mesh(MeshConfig(fsdp=2, tensor=2), [FakeDevice(n, platform) for n in range(8)])
    assert dict(mesh.shape) == {"replica": 1, "data": 2, "fsdp": 2, "tensor": 2}
    assert [d.id for d in mesh.devices.flat] == list(range(8))  # a machine's devices side by side
    with pytest.raises(BadInput, match="a multiple of the 2 slices"):
        sharding.make_mesh(MeshConfig(), [FakeDevice(n, "tpu") for n in range(8)])


@pytest.mark.parametrize(
    "sizes, devices, expected",  # of a process; which part of how many each of them reads
    [
        ((1, 4, 1, 1), 2, [(0, 2), (1, 2)]),
        ((1, 1, 1, 4), 2, [(0, 1), (0, 1)]),
        ((2, 1, 1, 4), 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((1, 2, 1, 2), 2, [(0, 2), (1, 2)]),
        ((1, 4, 1, 3), 4, None),
        ((1, 2, 1, 6), 4, None),
    ],
)
def test_processes_share_all_of_their_rows_or_none(sizes, devices, expected):
    processes = np.arange(np.prod(sizes)).reshape(sizes) // devices
    if expected is None:
        with pytest.raises(BadInput, match="config.mesh: found 3 processes that share some of their rows but not all"):
            sharding.shares(processes)
    else:
        assert sharding.shares(processes) == dict(enumerate(expected))


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
