"""A backbone on frame tokens gives on four devices what it gives on one, and none of them computes another's rows."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from frame_batches import FRAMES, initialised, packed, small, window

from csfm_jax import sharding
from csfm_jax.config import MeshConfig


def on_mesh(kind: str, mesh: dict | None) -> dict:
    """Embeddings and gradients of one fixed model and batch, whole; with a mesh, what its FFTs hold on a device."""
    config, rng = small(kind), np.random.default_rng(9)
    windows = [window(rng, int(rng.integers(6, FRAMES + 1))) for _ in range(9)]
    (batch,) = packed(config, windows, rows=4, tokens=40)
    graphdef, state = initialised(config)

    def loss(state, batch):
        pooled = nnx.merge(graphdef, state)(batch).pooled
        return (pooled**2).sum(), pooled

    step = jax.jit(jax.grad(loss, has_aux=True))
    if mesh is None:
        found, text = step(state, batch), ""
    else:
        with sharding.use(sharding.make_mesh(MeshConfig(**mesh))) as made:
            places = nnx.get_named_sharding(state, made)
            state, batch = jax.device_put(state, places), jax.device_put(batch, sharding.batch_sharding(made))
            compiled = step.lower(state, batch).compile()
            found = compiled(state, batch)
            text = compiled.as_text()
    gradient, pooled = jax.device_get(found)
    return {
        "pooled": pooled.tolist(),
        "gradient": [leaf.ravel().tolist() for leaf in jax.tree.leaves(gradient)],
        "ffts": shapes_of("fft", text),
        "gathers": shapes_of("all-gather", text) + shapes_of("all-gather-start", text),
        "devices": jax.device_count(),
    }


def shapes_of(operation: str, text: str) -> list[list[int]]:
    """Shapes of an operation's results in a compiled program, as one device sees them."""
    return [[int(n) for n in m.split(",")] for m in re.findall(rf"= \w+\[([\d,]+)\]\S* {operation}\(", text)]


def test_four_devices_give_what_one_gives():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    command = [sys.executable, __file__, json.dumps(["s4", {"data": 2, "fsdp": 2}])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    four, one = json.loads(done.stdout.splitlines()[-1]), on_mesh("s4", None)
    assert (one["devices"], four["devices"]) == (1, 4)
    np.testing.assert_allclose(four["pooled"], one["pooled"], atol=1e-5)
    for got, want in zip(four["gradient"], one["gradient"]):
        np.testing.assert_allclose(got, want, atol=1e-4 * max(1, np.abs(want).max()))
    # 4 rows of 3 windows on 4 devices: the signals of 3 windows on each, and the kernels, which have no windows
    assert four["gathers"] and not any(shape[0] in (4, 12) for shape in four["gathers"]), "rows are not gathered"
    assert four["ffts"] and all(len(shape) == 2 or shape[0] == 3 for shape in four["ffts"])


if __name__ == "__main__":
    print(json.dumps(on_mesh(*json.loads(sys.argv[1]))))
