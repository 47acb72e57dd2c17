"""The device mesh, the one table from logical to mesh axes, and what applies it. Model code knows no device."""

import contextlib
import math
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from csfm_jax.models.backbone_config import split_sizes
from data_pipelines.errors import BadInput

if TYPE_CHECKING:
    from csfm_jax.config import Config, MeshConfig

AXES = ("replica", "data", "fsdp", "tensor")

# A row of the batch goes to every axis but `tensor`; parameters are split over `fsdp` (gathered when used) and `tensor`
# (Megatron style: heads and the hidden axis of the MLP). Replicas keep whole copies: slices joined by a slow network.
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("replica", "data", "fsdp")),
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    # Kept whole on purpose: small, or of a length (30,522 words, 13 channels, 25 samples) that no mesh divides.
    ("layers", None),
    ("qkv", None),
    ("head_dim", None),
    ("vocabulary", None),
    ("channel", None),
    ("step", None),
    ("patch", None),
    ("vector", None),
    # Axes of activations.
    ("token", None),
    ("segment", None),
)
BATCH_AXES = dict(RULES)["batch"]


def axis_sizes(config: "MeshConfig", devices: int, slices: int = 1) -> dict[str, int]:
    """How many devices lie along each axis: arithmetic alone, so that a job is checked where its devices are not.

    Args:
        config: at most one axis is -1 and takes what is left. devices: of all processes. slices: that they come in.

    Raises:
        BadInput: the axes do not multiply to the number of devices, or slices do not fall on the axis `replica`.
    """
    sizes = dict(zip(AXES, (config.replica, config.data, config.fsdp, config.tensor)))
    known, shown = math.prod(s for s in sizes.values() if s != -1), ", ".join(f"{a}={s}" for a, s in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 for axis, size in sizes.items() if axis not in free):
        raise BadInput("config.mesh", shown, "sizes of 1 or more and at most one -1", "correct the mesh")
    if devices % known or (known != devices and not free):
        remedy = "change an axis, or set one of them to -1 to take what is left"
        raise BadInput("config.mesh", shown, f"axes that multiply to the {devices} devices", remedy)
    sizes |= {axis: devices // known for axis in free}
    if sizes["replica"] % slices:
        expected = f"a multiple of the {slices} slices: their network is too slow for any other axis"
        raise BadInput("config.mesh.replica", str(sizes["replica"]), expected, "change it")
    return sizes


def make_mesh(config: "MeshConfig", devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh over (replica, data, fsdp, tensor).

    Args:
        config: size of each axis; at most one is -1 and takes what is left.
        devices: default all devices of all processes.

    Raises:
        BadInput: the axes do not multiply to the number of devices, or slices do not fall on the axis `replica`.
    """
    devices = jax.devices() if devices is None else devices
    # Elsewhere JAX makes up a slice for every machine, to keep their order; nothing there says that their network is
    # slow.
    on_tpu = devices[0].platform == "tpu"
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if on_tpu else 1
    sizes = tuple(axis_sizes(config, len(devices), slices).values())
    # An axis may take a part of one of the torus's own: JAX's `make_mesh` lets it on a v5e alone.
    if slices > 1:
        within, across = (sizes[0] // slices, *sizes[1:]), (slices, 1, 1, 1)
        laid = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    else:
        laid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    # Auto, said explicitly: batch and parameters share the axis `fsdp`, which Explicit mode refuses unless every weight
    # is resharded by hand at its use; in Auto the compiler gathers it.
    return Mesh(laid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


@contextlib.contextmanager
def use(mesh: Mesh):
    """Within it `constrain` and the parameters' axis names mean places on the mesh. Enter it to create and to step.

    Parameters are placed by `jax.jit(build, out_shardings=...)` with the shardings of `nnx.get_abstract_model`.
    """
    with jax.set_mesh(mesh), nnx.logical_axis_rules(RULES):
        yield mesh


def check(config: "Config", mesh: Mesh) -> None:
    """Refuses a config whose rows or sizes the mesh does not divide.

    Raises:
        BadInput: naming the field and the mesh axes.
    """
    parts = config.training.accumulate
    over = parts * math.prod(mesh.shape[a] for a in BATCH_AXES)
    if config.data.rows % over:
        times = f" x {parts} parts (training.accumulate)" if parts > 1 else ""
        expected = f"a multiple of {over}, the mesh's {' x '.join(BATCH_AXES)}{times}"
        raise BadInput("config.data.rows", str(config.data.rows), expected, "change it or config.mesh")
    sizes = []
    for part in ("encoder", "decoder"):
        of = getattr(config, part)
        sizes += [
            (f"config.{part}.width", of.width, ("fsdp",)),
            (f"config.{part}.heads", of.heads, ("tensor",)),
            (f"config.{part}.mlp", of.mlp, ("tensor",)),
        ]
    sizes += [(f"config.backbone.{name}", size, ("fsdp",)) for name, size in split_sizes(config.backbone)]
    for field, size, axes in sizes:
        over = math.prod(mesh.shape[a] for a in axes)
        if size % over:
            expected = f"a multiple of {over}, the mesh's {' x '.join(axes)}"
            raise BadInput(field, str(size), expected, "change it or config.mesh")


def spec(*logical: str | None, mesh: Mesh | None = None) -> PartitionSpec:
    """Logical axis names -> PartitionSpec by `RULES`; with `mesh`, axes that it lacks are left out."""
    rules = dict(RULES)
    return PartitionSpec(*(_present(None if name is None else rules[name], mesh) for name in logical))


def _present(axes, mesh):
    if axes is None or mesh is None:
        return axes
    kept = tuple(a for a in ((axes,) if isinstance(axes, str) else axes) if a in mesh.shape)
    return (kept[0] if len(kept) == 1 else kept) or None


def ambient_mesh():
    """The mesh of the enclosing `use`, or None."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Asks the compiler to lay `x` out by its logical axis names; does nothing without a mesh.

    `with_sharding_constraint` knows no logical names, hence this helper.
    """
    mesh = ambient_mesh()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, spec(*logical, mesh=mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every field of a TokenBatch: the first axis (rows) over the data axes, the rest whole."""
    return NamedSharding(mesh, spec("batch", mesh=mesh))


class Share(NamedTuple):
    """Which of the global batch's rows a process reads: part `number` of `parts`."""

    number: int
    parts: int


def shares(processes: np.ndarray) -> dict[int, Share]:
    """Every process's share of the rows. Processes that only split heads between them read the same rows.

    Args:
        processes: [replica, data, fsdp, tensor], the number of the process that has the device there.

    Raises:
        BadInput: the row shards of two processes overlap in part.
    """
    by_shard = processes.reshape(-1, processes.shape[AXES.index("tensor")])
    held: dict[int, set[int]] = {}
    for (shard, _), process in np.ndenumerate(by_shard):
        held.setdefault(int(process), set()).add(shard)
    groups = sorted({tuple(sorted(shards)) for shards in held.values()})
    if sum(map(len, groups)) != len(by_shard) or len(set(map(len, groups))) > 1:
        found = f"{len(held)} processes that share some of their rows but not all"
        expected = "a tensor axis that lies within a process, or spans whole processes"
        raise BadInput("config.mesh", found, expected, "change config.mesh.tensor")
    return {process: Share(groups.index(tuple(sorted(shards))), len(groups)) for process, shards in held.items()}


def rows_share(mesh: Mesh) -> Share:
    """This process's share of the rows; raises as `shares`."""
    return shares(np.vectorize(lambda device: device.process_index)(mesh.devices))[jax.process_index()]
