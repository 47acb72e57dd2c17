"""Where every parameter of the shipped models lies on three meshes, against files: a rule's change shows line by line.

After a change on purpose: CSFM_REWRITE_GOLDEN=1 python -m pytest -n0 tests/test_golden_sharding.py, then look at the
diff. Run as a script, it prints the placements (as JSON): a mesh of eight devices needs a process that has them.
"""

import dataclasses
import difflib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from csfm_jax.config import MeshConfig

GOLDEN = Path(__file__).parent / "golden" / "sharding"
MODELS = ("csfm_nano", "csfm_tiny", "csfm_base", "csfm_large")
MESHES = {
    "data": MeshConfig(),
    "fsdp8": MeshConfig(data=1, fsdp=8),
    "fsdp4_tensor2": MeshConfig(data=1, fsdp=4, tensor=2),
}


def placements() -> dict[str, str]:
    """Name of a golden file -> one line a parameter: name, shape, dtype, spec, and the shape of a device's part.

    No array is made.
    """
    import jax

    from csfm_jax import config as configs
    from csfm_jax import sharding
    from csfm_jax.training.optimizer import make_optimizer
    from csfm_jax.training.state import blueprint

    found = {}
    for model in MODELS:
        config = configs.load(model)
        for name, mesh in MESHES.items():
            optimizer = make_optimizer(config.optimizer, config.training.steps)
            plan = blueprint(dataclasses.replace(config, mesh=mesh), optimizer, sharding.make_mesh(mesh))
            lines = [
                f"{'/'.join(str(key.key) for key in path)} {list(leaf.shape)} {leaf.dtype} "
                f"({', '.join(map(str, leaf.sharding.spec))}) {list(leaf.sharding.shard_shape(leaf.shape))}\n"
                for path, leaf in jax.tree_util.tree_leaves_with_path(plan.abstract.params)
            ]
            found[f"{model}-{name}.txt"] = "".join(lines)
    return found


@pytest.fixture(scope="module")
def placed() -> dict[str, str]:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_every_parameter_lies_where_it_did(placed):
    if os.environ.get("CSFM_REWRITE_GOLDEN"):
        GOLDEN.mkdir(parents=True, exist_ok=True)
        for path in GOLDEN.iterdir():
            path.unlink()
        for name, text in placed.items():
            (GOLDEN / name).write_text(text)
    kept = {path.name: path.read_text() for path in GOLDEN.iterdir()}
    changes = []
    for name in sorted(kept | placed):
        before, after = (texts.get(name, "").splitlines(keepends=True) for texts in (kept, placed))
        changes += difflib.unified_diff(before, after, f"tests/golden/sharding/{name}", "this version", n=0)
    assert not changes, "if this is meant, renew the files: CSFM_REWRITE_GOLDEN=1\n" + "".join(changes)


LINE = re.compile(r"(?P<name>\S+) (?P<shape>\[.*?\]) float32 \(.*?\) (?P<part>\[.*?\])")


def parts(text: str) -> dict[str, float]:
    """Name of each parameter -> in how many parts it lies."""
    lines = [LINE.fullmatch(line) for line in text.splitlines()]
    return {of["name"]: math.prod(json.loads(of["shape"])) / math.prod(json.loads(of["part"])) for of in lines}


def test_what_a_mesh_can_split_is_split(placed):
    """Of the files themselves: a rule that went wrong must not be renewed unseen."""
    for model in MODELS:
        whole, split, both = (parts(placed[f"{model}-{mesh}.txt"]) for mesh in MESHES)
        assert len(whole) > 30 and set(whole.values()) == {1}
        kernels = {name for name in split if name.endswith("kernel")}
        blocks = {name for name in kernels if "/blocks/" in name}
        assert len(kernels) >= 12 and {split[name] for name in kernels} == {8}
        assert len(blocks) == 8 and {both[name] for name in blocks} == {8}
        assert {both[name] for name in kernels - blocks} == {4}  # no heads, no hidden axis: `tensor` leaves them alone


if __name__ == "__main__":
    print(json.dumps(placements()))
