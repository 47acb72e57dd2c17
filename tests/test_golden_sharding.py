"""Where every parameter of the shipped models lies on five meshes, against files: a rule's change shows line by line.

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
    "fsdp": MeshConfig(data=1, fsdp=8),
    "tensor": MeshConfig(tensor=2),
    "fsdp_tensor": MeshConfig(data=1, fsdp=4, tensor=2),
    "replica_fsdp": MeshConfig(replica=2, data=1, fsdp=4),
}


def placements() -> dict[str, str]:
    """Name of a golden file -> one line a parameter: name, shape, dtype, spec, a device's part where a mesh splits it.

    No array is made.
    """
    from csfm_jax import config as configs
    from csfm_jax import sharding
    from csfm_jax.training.optimizer import make_optimizer
    from csfm_jax.training.state import blueprint

    found = {}
    for model in MODELS:
        config, placed = configs.load(model), {}
        optimizer = make_optimizer(config.optimizer, config.training.steps)
        for name, mesh in MESHES.items():
            plan = blueprint(dataclasses.replace(config, mesh=mesh), optimizer, sharding.make_mesh(mesh))
            moments = plan.abstract.optimizer[1]  # of the clip, AdamW, the decay and the rate
            assert _lies(moments.mu) == _lies(moments.nu) == _lies(plan.abstract.params)  # so the files need not say it
            for line, whole, part in _lies(plan.abstract.params):
                placed.setdefault(line, []).extend([] if part == whole else [f"{name} {part}"])
        found[f"{model}.txt"] = "".join(f"{line} {', '.join(parts)}".rstrip() + "\n" for line, parts in placed.items())
    return found


def _lies(tree) -> list[tuple[str, list[int], list[int]]]:
    """Of each leaf: name, shape, dtype and spec as a line; its shape; and the shape of a device's part."""
    import jax

    return [
        (
            f"{'/'.join(str(key.key) for key in path)} {list(leaf.shape)} {leaf.dtype} "
            f"({', '.join(map(str, leaf.sharding.spec))}):",
            list(leaf.shape),
            list(leaf.sharding.shard_shape(leaf.shape)),
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


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


LINE = re.compile(r"(?P<name>\S+) (?P<shape>\[.*?\]) float32 \(.*?\):(?P<parts>.*)")


def parts(text: str) -> dict[str, dict[str, float]]:
    """Mesh -> name of each parameter -> in how many parts it lies."""
    found = {mesh: {} for mesh in MESHES}
    for line in text.splitlines():
        of = LINE.fullmatch(line)
        split = dict(re.findall(r"(\w+) (\[.*?\])", of["parts"]))
        for mesh in MESHES:
            part = split.get(mesh, of["shape"])
            found[mesh][of["name"]] = math.prod(json.loads(of["shape"])) / math.prod(json.loads(part))
    return found


def test_what_a_mesh_can_split_is_split(placed):
    """Of the files themselves: a rule that went wrong must not be renewed unseen."""
    for model in MODELS:
        of = parts(placed[f"{model}.txt"])
        assert len(of["data"]) > 30 and set(of["data"].values()) == {1}
        kernels = {name for name in of["fsdp"] if name.endswith("kernel")}
        blocks = {name for name in kernels if "/blocks/" in name}
        assert len(kernels) >= 12 and len(blocks) == 8
        # Blocks have heads or a hidden axis, which `tensor` splits; it leaves the other kernels alone.
        expected = {"fsdp": (8, 8), "tensor": (2, 1), "fsdp_tensor": (8, 4), "replica_fsdp": (4, 4)}
        for mesh, (of_blocks, of_others) in expected.items():
            assert {of[mesh][name] for name in blocks} == {of_blocks}
            assert {of[mesh][name] for name in kernels - blocks} == {of_others}


if __name__ == "__main__":
    print(json.dumps(placements()))
