"""For backends that the compiler cannot split: kernels, and loops whose length the data decide."""

import jax
from jax.sharding import PartitionSpec

from csfm_jax import sharding


def per_device(run, q, k, v, segments):
    """`run` of the arguments on each device's own rows (the data axes) and heads (`tensor`); without a mesh, just run.

    Args:
        run: takes the other arguments, of any number of rows and heads. The rest: see `csfm_jax.models.attention`.
    """
    mesh = sharding.ambient_mesh()
    if mesh is None:
        return run(q, k, v, segments)
    rows = sharding.spec("batch", None, "heads", None, mesh=mesh)
    ids = PartitionSpec(rows[0], None)
    # check_vma: a kernel's outputs and a loop's first values carry no varying-axes type.
    mapped = jax.shard_map(run, in_specs=(rows, rows, rows, ids), out_specs=rows, check_vma=False)
    return mapped(q, k, v, segments)
