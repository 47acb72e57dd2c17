"""Fills a compilation cache before a run needs it: with programs for chips that are not there, or for this machine.

The cache is JAX's own, a file a program: what the compiler wrote, compressed, named by a hash of program, options,
flags, topology and versions of jaxlib and compiler. No pickle is in it; JAX's serialised executables
(`jax.experimental.serialize_executable`) are pickles, which is why they are not used.
"""

import warnings
from pathlib import Path

from csfm_jax import platform_flags, sharding
from csfm_jax.config import Config
from data_pipelines.errors import BadInput

HERE = "here"


def fill(config: Config, topology: str, slices: int, folder: Path) -> dict[str, int]:
    """Compiles a run's training step, evaluation and initialisation into a cache.

    Args:
        config: of the run. topology: "v5e:16x16", or "here": all devices of this process. slices: joined by a network.
        folder: made if absent. A run takes WORKDIR/compilation_cache, or what JAX_COMPILATION_CACHE_DIR names.

    Returns:
        Name of each program -> bytes of its file.

    Raises:
        BadInput: the config does not fit the devices; no compiler; a folder that cannot be written.
    """
    path = folder.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput("--fill-cache", error.strerror, "a folder that can be written", "choose another") from None
    if topology != HERE:
        from csfm_jax.planning.topology import Topology

        # Flags are part of an entry's name.
        split = sharding.axis_sizes(config.mesh, Topology(topology, slices).chips, slices)["fsdp"] > 1
        platform_flags.set_for_tpu(split=split, slices=slices)
    import jax

    if topology != HERE:
        jax.config.update("jax_platforms", "cpu")  # the compiler is used, not a device
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    from csfm_jax.planning import compiled
    from csfm_jax.planning.topology import Topology
    from csfm_jax.training.step import make_eval_step

    devices = jax.devices() if topology == HERE else Topology(topology, slices).devices()
    config = config if topology == HERE else compiled.for_tpu(config)
    plan, mesh = compiled.planned(config, devices)
    with sharding.use(mesh), warnings.catch_warnings():
        # a compiler without its chips writes entries but cannot read them back: it compiles again
        warnings.filterwarnings("ignore", message="Error reading persistent compilation cache entry")
        batch = compiled.abstract_batch(config, mesh)
        compiled.lowered_step(config, plan, mesh).compile()
        make_eval_step(plan).lower(plan.abstract.params, batch).compile()
        plan.initialisation().lower().compile()
    return {name: _size(path, name) for name in ("step", "evaluate", "build")}


def _size(folder: Path, name: str) -> int:
    files = list(folder.glob(f"jit_{name}-*-cache"))
    if not files:
        expected = "an entry of each program"
        raise BadInput("--fill-cache", f"no entry jit_{name} in {folder}", expected, "see what JAX warns of above")
    return max(files, key=lambda file: file.stat().st_mtime).stat().st_size
