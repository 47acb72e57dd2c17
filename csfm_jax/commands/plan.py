"""Compiles a run's training step for TPUs that are not there, and tells whether it fits and how fast it can be.

csfm plan --config=csfm_base --topology=v5e:16x16 --slices=1 --config.data.rows=4096 [--stores=STORES]

Needs the TPU compiler (pip install 'csfm_jax[tpu]') and no TPU. --sweep compares meshes and what is recomputed.
--fill-cache=FOLDER keeps what is compiled, so that a run starts without compiling: docs/scaling.md.
"""

import dataclasses
import itertools
import math
from collections import defaultdict
from typing import NamedTuple

from csfm_jax import config as configs
from csfm_jax import platform_flags
from csfm_jax.commands.options import WrittenHere
from csfm_jax.config import Config, MeshConfig
from data_pipelines.errors import BadInput

REMAT = ("none", "dots", "full")  # from the least that is computed again to the most


def arguments(parser):
    parser.add_argument("--config", required=True, help="a config file or the name of a shipped one")
    parser.add_argument(
        "--topology",
        required=True,
        help="generation and shape of a slice, e.g. v5e:16x16, v5p:4x4x4; "
        "with --fill-cache, `here` is this machine's devices",
    )
    parser.add_argument("--slices", type=int, default=1, help="slices, joined by the data-centre network")
    parser.add_argument(
        "--stores",
        default="",
        help="stores whose windows an epoch consists of, in place of config.data.stores: prints steps and hours",
    )
    parser.add_argument("--largest", action="store_true", help="search for the largest batch that fits: compiles again")
    parser.add_argument(
        "--fill-cache",
        action=WrittenHere,
        metavar="FOLDER",
        help="only compile what the run starts with, into this folder: WORKDIR/compilation_cache, or a shared one",
    )
    parser.add_argument("--sweep", action="store_true", help="compare meshes and encoder.remat, and recommend one")


def run(args) -> None:
    _check(args)
    config = configs.load(args.config, args.overrides)
    if args.fill_cache:
        from csfm_jax.planning.cache import fill

        written = fill(config, args.topology, args.slices, args.fill_cache)
        print(f"{args.fill_cache}: " + ", ".join(f"{name} ({size / 2**20:.1f} MB)" for name, size in written.items()))
        return
    import jax

    jax.config.update("jax_platforms", "cpu")  # the compiler is used, not a device
    from csfm_jax import sharding
    from csfm_jax.planning.topology import Topology

    topology, split = Topology(args.topology, args.slices), True
    if not args.sweep:  # by arithmetic, before the compiler is loaded, which says much
        sizes = sharding.axis_sizes(config.mesh, topology.chips, topology.slices)
        sharding.check(config, jax.sharding.AbstractMesh(tuple(sizes.values()), sharding.AXES))
        split = sizes["fsdp"] > 1
    stores = args.stores or config.data.stores
    epoch = _epoch(config, stores) if stores else None  # before what takes minutes: they may not be there
    # As the job would. A sweep compares meshes of both kinds under the flags of those that split: they are read once.
    platform_flags.set_for_tpu(split=split, slices=topology.slices)
    hosts = f"{topology.hosts} hosts" + (f", {topology.slices} slices" if topology.slices > 1 else "")
    print(f"{args.config} on {topology.name}: {topology.chips} chips, {hosts}", flush=True)
    if args.sweep:
        _sweep(config, topology, epoch)
        return
    from csfm_jax.planning.compiled import DoesNotFit, compile_step

    step = compile_step(config, topology)
    if isinstance(step, DoesNotFit):
        print(f"does not fit: {_gib(step.needed)} needed, {_gib(step.available)} available a chip", flush=True)
    else:
        _print_step(config, topology, step)
        if epoch:
            _print_epoch(config, topology, step, epoch)
    if args.largest:
        _print_largest(config, topology, step)


def _check(args) -> None:
    """Refuses options that would go unread."""
    if args.fill_cache:
        others = [name for name in ("sweep", "largest", "stores") if getattr(args, name)]
        if others:
            expected = "no other question: it compiles one run's programs and looks at none"
            raise BadInput("--fill-cache", " and ".join(f"--{name}" for name in others), expected, "ask without it")
        if args.topology == "here" and args.slices != 1:
            expected = "none: the devices of this machine are what they are"
            raise BadInput("--slices", f"{args.slices} with --topology=here", expected, "leave it out")
    if args.sweep and args.largest:
        raise BadInput("--sweep", "--largest", "one of them", "sweep first, then search with the mesh recommended")
    if args.sweep:
        own = [o for o in args.overrides if o.startswith(("--config.mesh.", "--config.encoder.remat="))]
        if own:
            raise BadInput("--sweep", own[0], "neither a mesh nor encoder.remat: it compares them", "leave it out")


def _print_step(config: Config, topology, step) -> None:
    from csfm_jax.planning.roofline import flops_a_step, roofline

    best, total = roofline(step, topology), flops_a_step(config)
    print(f"parameters: {step.parameters:,}")
    print(
        f"memory a chip: {_gib(step.peak)} of {_gib(topology.chip.hbm)} (arguments {_gib(step.arguments)}, "
        f"temporaries {_gib(step.temporaries)})"
    )
    a_chip = f"{total / topology.chips / 1e12:.2f} a chip; {step.program.flops / 1e12:.2f} with what is computed again"
    print(f"a step: {config.data.rows:,} rows, {total / 1e12:,.1f} TFLOP of the model, {a_chip}")
    found = defaultdict(lambda: [0, 0, 0.0])
    for c in step.program.collectives:
        place = found[c.kind, c.crosses]
        place[0], place[1], place[2] = place[0] + 1, place[1] + c.times, place[2] + c.times * c.moved
    print(f"{'collectives':<22}{'in the program':>15}{'a step':>8}{'MB a chip':>12}")
    for (kind, crosses), (count, times, moved) in sorted(found.items()):
        print(f"{kind + (', across' if crosses else ''):<22}{count:>15}{times:>8}{moved / 1e6:>12,.1f}")
    print(
        "at best, ms: "
        + ", ".join(f"{n} {getattr(best, n) * 1e3:.1f}" for n in ("compute", "memory", "interconnect", "network"))
        + f"; {best.binds} binds"
    )
    print(f"step: {best.overlapped * 1e3:.1f} ms with all communication overlapped, {best.serial * 1e3:.1f} with none")


class _Epoch(NamedTuple):
    """What an epoch of a run's stores is packed into."""

    windows: int
    rows: int


def _epoch(config: Config, stores: str) -> _Epoch:
    from data_pipelines import packing, windows
    from data_pipelines.store import open_stores

    table = windows.epoch_windows(open_stores(stores, "size", config.data.fold), config.tokens, config.data, "train", 0)
    capacities = windows.capacities(config.tokens, config.data)
    return _Epoch(len(table), packing.plan(table.sizes(), capacities, config.data.seed, 0).rows)


def _print_epoch(config: Config, topology, step, epoch: _Epoch) -> None:
    from csfm_jax.planning.roofline import roofline

    steps, best = -(-epoch.rows // config.data.rows), roofline(step, topology)
    hours = [steps * seconds / 3600 for seconds in (best.overlapped, best.serial)]
    print(
        f"an epoch: {epoch.windows:,} windows in {epoch.rows:,} rows, {steps:,} steps, {hours[0]:.2g} to "
        f"{hours[1]:.2g} hours at best; {epoch.windows / steps / best.serial:,.0f} windows a second without overlap"
    )


def _print_largest(config: Config, topology, first) -> None:
    """`first`: what `config` was compiled to."""
    from csfm_jax import sharding
    from csfm_jax.planning import largest
    from csfm_jax.planning.compiled import DoesNotFit, compile_step

    sizes = sharding.axis_sizes(config.mesh, topology.chips, topology.slices)
    least = config.training.accumulate * math.prod(sizes[axis] for axis in sharding.BATCH_AXES)
    begin = config.data.rows // least

    def fit(size: int) -> largest.Fit:
        data = dataclasses.replace(config.data, rows=size * least)
        step = first if size == begin else compile_step(dataclasses.replace(config, data=data), topology)
        if isinstance(step, DoesNotFit):
            return largest.Fit(False, step.needed / topology.chip.hbm)
        return largest.Fit(True, step.peak / topology.chip.hbm)

    found = largest.search(fit, begin)
    rows, too_large = found.fits * least, found.too_large * least
    if rows:
        print(f"largest batch: {rows:,} rows, {rows / topology.chips:g} a chip; {too_large:,} do not fit")
    else:
        print("largest batch: none fits; split more over fsdp, recompute more (encoder.remat), or shorten the rows")


def _sweep(config: Config, topology, epoch: _Epoch | None) -> None:
    from csfm_jax.planning.compiled import DoesNotFit, compile_step
    from csfm_jax.planning.roofline import roofline

    print(f"{'mesh':<26}{'remat':<7}{'GiB a chip':>11}{'overlapped ms':>15}{'serial ms':>11}  binds", flush=True)
    found = []
    for mesh, remat in itertools.product(_meshes(topology), REMAT):
        encoder = dataclasses.replace(config.encoder, remat=remat)
        one = dataclasses.replace(config, mesh=mesh, encoder=encoder)
        name = ", ".join(f"{a}={n}" for a, n in dataclasses.asdict(mesh).items() if n not in (1,))
        try:
            step = compile_step(one, topology)
        except BadInput as error:
            print(f"{name:<26}{remat:<7}refused: {error}", flush=True)
            continue
        if isinstance(step, DoesNotFit):
            print(f"{name:<26}{remat:<7}{step.needed / 2**30:>11.1f}  does not fit", flush=True)
            continue
        best = roofline(step, topology)
        # equal as far as is printed: then what computes less again, and of the meshes the one listed first
        found.append((round(best.serial * 1e3, 1), REMAT.index(remat), len(found), name, step))
        print(
            f"{name:<26}{remat:<7}{step.peak / 2**30:>11.1f}{best.overlapped * 1e3:>15.1f}{best.serial * 1e3:>11.1f}  "
            f"{best.binds}",
            flush=True,
        )
    if found:
        milliseconds, remat, _, name, step = min(found)
        print(f"recommended: {name}, encoder.remat={REMAT[remat]}: {milliseconds:.1f} ms without overlap")
        if epoch:
            _print_epoch(config, topology, step, epoch)
    else:
        print("recommended: none fits; take fewer rows (config.data.rows) or more chips")


def _meshes(topology) -> list[MeshConfig]:
    """Whole copies; parameters over a host's, sixteen and all chips; heads over two chips besides."""
    within = topology.chips // topology.slices
    sizes = sorted({n for n in (1, topology.slice.chips_a_host, 16, within) if within % n == 0})
    meshes = [MeshConfig(replica=topology.slices, fsdp=n) for n in sizes]
    return [*meshes, MeshConfig(replica=topology.slices, tensor=2)]


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
