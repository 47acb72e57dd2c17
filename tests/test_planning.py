"""The compiled step of TPU slices that are not there: what it holds, and that the reading of its text is right."""

import dataclasses
import importlib.util
import os
import types

import jax
import pytest

from csfm_jax import cli, platform_flags, sharding
from csfm_jax import config as configs
from csfm_jax.commands import plan
from csfm_jax.config import MeshConfig
from csfm_jax.planning import compiled, program
from csfm_jax.planning.compiled import DoesNotFit, compile_step
from csfm_jax.planning.roofline import roofline
from csfm_jax.planning.topology import Topology
from data_pipelines.errors import BadInput

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed here"
)


@pytest.fixture(autouse=True)
def quickly():
    """What is compiled here is looked at: with all optimisations, of which the TPU's compiler takes its least level in
    half of the time. Kinds of collectives, kernels and FLOPs are those of a run; memory and how collectives are joined
    are not."""
    values = {"jax_disable_most_optimizations": False, "jax_optimization_level": "O0"}
    before = {"jax_disable_most_optimizations": jax.config.read("jax_disable_most_optimizations")}
    before["jax_optimization_level"] = jax.config.jax_optimization_level
    for name, value in values.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(autouse=True)
def own_flags(monkeypatch):
    """What a plan sets stays with it."""
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != "LIBTPU_INIT_ARGS"})


PROGRAM = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%layer_slice (p0: f32[12,256], p1: s32[]) -> f32[1,256] {
  %p0 = f32[12,256]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,256]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,256}
}

%nested (q0: f32[12,256], q1: s32[]) -> f32[256] {
  %q0 = f32[12,256]{1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %within = f32[1,256]{1,0} fusion(%q0, %q1), kind=kLoop, calls=%layer_slice
  ROOT %flat = f32[256]{0} bitcast(%within)
}

%more (state: (s32[], f32[12,256])) -> pred[] {
  %state = (s32[], f32[12,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %n = s32[]{:T(128)} constant(12)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%body (state.1: (s32[], f32[12,256])) -> (s32[], f32[12,256]) {
  %state.1 = (s32[], f32[12,256]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %all = f32[12,256]{1,0} get-tuple-element(%state.1), index=1
  %one = f32[1,256]{1,0} fusion(%all, %i.1), kind=kLoop, calls=%layer_slice
  %two = f32[256]{0} fusion(%all, %i.1), kind=kOutput, calls=%nested
  %gathered = f32[4,256]{1,0} all-gather(%one), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %kernel = f32[4,256]{1,0:S(1)} custom-call(%gathered), custom_call_target="tpu_custom_call"
  ROOT %out = (s32[], f32[12,256]{1,0}) tuple(%i.1, %all)
}

ENTRY %main (w: f32[12,256]) -> f32[12,256] {
  %w = f32[12,256]{1,0} parameter(0)
  %start = s32[] constant(0)
  %init = (s32[], f32[12,256]{1,0}) tuple(%start, %w)
  %loop = (s32[], f32[12,256]{1,0}) while(%init), condition=%more, body=%body
  %reduced = (f32[256]{0}, f32[256]{0}) all-reduce-start(%w, %w), channel_id=2, replica_groups=mesh['a'=2,'b'=4] {'a'}, to_apply=%add
  %begun = f32[8]{0} all-gather(%w), channel_id=3, replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %ended = f32[8]{0} all-gather(%w), channel_id=3, replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %after = token[] after-all()
  %away = (f32[64]{0:T(128)}, u32[], token[]) send(%w, %after), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  %come = (f32[64]{0:T(128)}, u32[], token[]) recv(%after), channel_id=5, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %result = f32[12,256]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_loops_groups_and_slices_are_counted():
    found = program.read(PROGRAM, slice_of=[0, 0, 0, 0, 1, 1, 1, 1])
    gather, reduce, overlapped, between = found.collectives
    # once in each of 12 turns, among neighbours; three quarters of the result come from others
    assert (gather.kind, gather.times, gather.group, gather.crosses) == ("all-gather", 12, 4, False)
    assert gather.moved == 0.75 * 4 * 256 * 4
    # partitions 0 and 4 are a group along axis "a": in different slices
    assert (reduce.kind, reduce.times, reduce.group, reduce.crosses) == ("all-reduce", 1, 2, True)
    assert reduce.moved == 2 * 0.5 * 2 * 256 * 4
    assert (overlapped.times, overlapped.group) == (1, 2)  # its beginning and its end are one collective
    # between slices the runtime of their network reduces what each chip hands over: 64 numbers come back
    assert (between.kind, between.times, between.group, between.crosses) == ("all-reduce", 1, 2, True)
    assert between.moved == 64 * 4
    assert found.kernels == 12
    row = 256 * 4  # a turn reads and writes one row of the table, not the table; the kernel's result stays on the chip
    turn = 2 * (row + row + 4) + (row + 4 * row) + 4 * row  # a slice within a fusion's fusion is one, too
    rest = (2 * row + 2 * 12 * row) + 2 * (32 + 12 * row) + 2 * 256
    assert found.hbm_bytes == 12 * turn + rest


def test_gathers_that_were_joined_are_counted_together():
    text = """HloModule step

ENTRY %main (a: f32[4]) -> f32[16] {
  %a = f32[4]{0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %begun = ((f32[4]{0}, f32[8]{0}), (f32[16]{0}, f32[32]{0})) all-gather-start(%a, %b), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %alone = (f32[4]{0}, f32[16]{0}) all-gather-start(%a), channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}
  %sent = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%b), channel_id=3, source_target_pairs={{0,1},{1,0}}
}
"""  # noqa: E501
    assert [c.moved for c in program.read(text, [0] * 4).collectives] == [0.75 * (64 + 128), 0.75 * 64, 32]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology=v5e:3x3"], "16x16"),
        (["--topology=v9:2x2"], "GENERATION:SHAPE"),
        (["--topology=v4:2x2x1"], "whose speeds are known: v5e, v5p, v6e"),
        (["--topology=v5e:2x2", "--slices=0"], "--slices"),
        (["--topology=v5e:2x2", "--config.mesh.fsdp=3"], "config.mesh"),
        (["--topology=v5e:2x2", "--config.data.rows=6"], "config.data.rows: found 6; expected a multiple of 4"),
        (["--topology=v5e:2x2", "--slices=2", "--config.data.rows=16"], "config.mesh.replica"),
        (["--topology=v5e:4x4", "--config.data.rows=16", "--config.mesh.tensor=8"], "heads"),
    ],
)
@needs_compiler
def test_what_cannot_be_planned_is_refused_by_name(words, message, capsys):
    assert cli.main(["plan", "--config=csfm_nano", *words]) == 2
    assert message in capsys.readouterr().err


@needs_compiler
@pytest.mark.parametrize(
    ("name", "slices"), [("v5e:4x4", 1), ("v5e:16x16", 1), ("v5p:4x4x4", 1), ("v6e:8x8", 1), ("v5e:16x16", 2)]
)
def test_every_mesh_of_a_sweep_is_laid_out_and_replicas_are_slices(name, slices):
    topology = Topology(name, slices)
    devices = topology.devices()
    meshes = [*plan._meshes(topology), MeshConfig(replica=2 * slices, fsdp=4, tensor=2)]
    for config in meshes:
        mesh = sharding.make_mesh(config, devices)
        assert mesh.devices.size == topology.chips == len({device.id for device in mesh.devices.flat})
        of_slice = [{device.slice_index for device in replica.flat} for replica in mesh.devices] if slices > 1 else []
        assert all(len(one) == 1 for one in of_slice)


@pytest.mark.parametrize(
    "words, split, slices",
    [((), False, 1), (("--config.mesh.fsdp=4",), True, 1), (("--slices=2", "--config.mesh.replica=2"), False, 2)],
)
def test_a_plan_compiles_under_the_flags_of_its_job(words, split, slices, monkeypatch, capsys):
    under = []
    monkeypatch.setattr(compiled, "compile_step", lambda *_: under.append(dict(os.environ)) or DoesNotFit(2.0, 1.0))
    words = ["plan", "--config=csfm_base", "--topology=v5e:4x4", "--config.data.rows=64", *words]
    assert cli.main(words) == 0, capsys.readouterr().err
    expected = platform_flags.environment("tpu", split=split, slices=slices)
    assert expected.items() <= under[0].items()
    monkeypatch.setitem(os.environ, "LIBTPU_INIT_ARGS", "")  # one's own count
    assert cli.main(words) == 0 and under[1]["LIBTPU_INIT_ARGS"] == ""


def test_the_largest_batch_is_a_multiple_of_what_a_step_takes_apart(monkeypatch, capsys):
    """Of a compiler that finds room for 100 rows on sixteen chips, two by two of which hold the same rows."""
    asked = []

    def compile_step(config, topology):
        asked.append(config.data.rows)
        size = topology.chip.hbm * config.data.rows / 100
        fits = types.SimpleNamespace(peak=size)
        return fits if config.data.rows <= 100 else DoesNotFit(size, topology.chip.hbm)

    monkeypatch.setattr(compiled, "compile_step", compile_step)
    for begin in (24 * 17, 24):  # halved until it fits; extrapolated from what does
        config = with_("csfm_base", begin, tensor=2)
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, accumulate=3))
        plan._print_largest(config, Topology("v5e:4x4"))
        assert "largest batch found: 96 rows" in capsys.readouterr().out
    assert all(rows % (3 * 8) == 0 for rows in asked)


def with_(name: str, rows: int, **mesh):
    config = configs.load(name)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, rows=rows),
        mesh=dataclasses.replace(config.mesh, **mesh),
    )


def counted(step) -> dict[str, int]:
    """Collectives in the program, by kind."""
    kinds = [c.kind for c in step.program.collectives]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


@needs_compiler
def test_nano_on_four_chips(capsys):
    assert cli.main(["plan", "--config=csfm_nano", "--topology=v5e:2x2", "--config.data.rows=16"]) == 0
    said = capsys.readouterr().out
    assert "parameters: 1,555,891" in said and "all-reduce                          5" in said
    assert "4 chips, 1 hosts" in said and "binds" in said


@needs_compiler
def test_a_batch_that_is_too_large_is_an_answer(capsys):
    words = ["plan", "--config=csfm_nano", "--topology=v5e:2x2", "--config.data.rows=160000"]
    assert cli.main(words) == 0
    assert "does not fit: " in (said := capsys.readouterr().out) and "15.75 GiB available a chip" in said


@needs_compiler
def test_base_does_on_256_chips_what_it_does_on_16():
    """The compiler may silently change its strategy with the number of chips: the work of a chip must not grow."""
    steps = {}
    for shape in ("4x4", "16x16"):
        topology = Topology(f"v5e:{shape}")
        config = with_("csfm_base", 2 * topology.chips)
        # Shorter rows, for smaller blocks of the attention's kernels, on which the compiler spends half of its time.
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, row_tokens=1024, row_visible=256))
        step = compile_step(config, topology)
        assert not isinstance(step, DoesNotFit)
        steps[shape] = step
        assert step.parameters > 1e8 and step.peak < topology.chip.hbm
        assert step.program.kernels > 0  # splash attention
        # whole copies of the parameters: gradients and sums, nothing else (8 at full effort, docs/scaling.md)
        assert counted(step) == {"all-reduce": 9}
        best = roofline(config, step, topology)
        assert best.network == 0 and best.compute > 0 and best.serial >= best.overlapped
    few, many = steps["4x4"], steps["16x16"]
    # two rows a chip on both: sixteen times the chips, a sixteenth of the work of the same batch
    assert many.flops == pytest.approx(few.flops, rel=0.01)
    assert many.program.kernels == few.program.kernels


def test_topologies():
    assert (Topology("v5e:16x16").chips, Topology("v5e:16x16").hosts) == (256, 64)
    assert (Topology("v5p:4x4x4", 2).chips, Topology("v5p:4x4x4", 2).hosts) == (128, 32)
    with pytest.raises(BadInput, match="8x16, 16x16"):
        Topology("v6e:7x7")
