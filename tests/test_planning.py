"""The compiled step of TPU slices that are not there: what it holds, and that the reading of its text is right."""

import dataclasses
import importlib.util
import math
import os
import re

import jax
import pytest

from csfm_jax import cli, platform_flags, sharding
from csfm_jax import config as configs
from csfm_jax.commands import plan
from csfm_jax.config import MeshConfig
from csfm_jax.planning import compiled, largest, products, program
from csfm_jax.planning.compiled import DoesNotFit, compile_step
from csfm_jax.planning.roofline import flops_a_step, roofline
from csfm_jax.planning.topology import CHIPS, Topology
from data_pipelines.errors import BadInput
from data_pipelines.store import open_stores
from data_pipelines.windows import epoch_windows

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


@pytest.fixture(autouse=True, scope="module")
def flags_of_meshes_that_split():
    """The compiler reads its flags once, when it is first asked: here, before a plan sets those of whole copies."""
    if importlib.util.find_spec("libtpu"):
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in platform_flags.environment("tpu", split=True, slices=1).items():
                patch.setenv(variable, value)
            Topology("v5e:2x2").devices()
    yield


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
  %q = bf16[2,3,256,64]{3,2,1,0:S(1)} bitcast(%one)
  %k = bf16[2,3,512,64]{3,2,1,0:S(1)} bitcast(%one)
  %splash_mha_dq_segmented_no_residuals.7 = f32[4,256]{1,0:S(1)} custom-call(%gathered, %q, %k), custom_call_target="tpu_custom_call"
  %product = f32[4,4]{1,0:S(1)} convolution(%gathered, %gathered), dim_labels=bf_oi->bf
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
    turn = 2 * (row + row + 4) + (row + 4 * row) + 3 * 4 * row  # a slice within a fusion's fusion is one, too
    rest = (2 * row + 2 * 12 * row) + 2 * (32 + 12 * row) + 2 * 256
    assert found.hbm_bytes == 12 * turn + rest
    # the kernel of the queries' gradient makes three products of all pairs
    assert found.flops == 12 * (3 * 2 * (2 * 3) * 256 * 512 * 64 + 2 * 4 * 4 * 256)


def test_products_are_counted_in_each_way_that_the_compiler_writes_them():
    heads = ["bf16[4,192,128]{2,1,0}", "bf16[128,3,4,32]{3,2,1,0}"]  # to q, k and v of four heads, kept apart
    window = "window={size=1x3x4 pad=0_0x2_2x3_3 rhs_reversal=0x1x1}, dim_labels=0bf12_i12o0->0b12f, metadata={}"
    wide = ["bf16[4,192,128,1,1]{2,1,0,4,3}", "bf16[128,3,4,32,1]{3,2,1,0,4}"]
    assert products.of_product("f32[4,192,3,4,32]", wide, window) == 2 * 4 * 192 * 128 * 3 * 4 * 32
    # the gradient of a kernel: the sum over rows is a window that covers them
    over_rows = ["f32[4,192,384]{2,1,0}", "f32[4,192,96]{2,1,0}"]
    text = "window={size=4}, dim_labels=0fb_0io->bf0"
    assert products.of_product("f32[384,96,1]{0,1,2}", over_rows, text) == 2 * 4 * 192 * 384 * 96
    text = "lhs_batch_dims={}, lhs_contracting_dims={2}, rhs_batch_dims={}, rhs_contracting_dims={0}"
    assert products.of_product("f32[4,192,3,4,32]", heads, text) == 2 * 4 * 192 * 128 * 3 * 4 * 32
    # a true convolution: five values, a window of three that moves by two, padding of one at each end
    text = "window={size=3 stride=2 pad=1_1}, dim_labels=b0f_0io->b0f"
    assert products.of_product("f32[2,3,8]", ["f32[2,5,4]", "f32[3,4,8]"], text) == 2 * 2 * 8 * 4 * (2 + 3 + 2)
    with pytest.raises(ValueError, match="no count of its products"):
        products.of_kernel("something_else.3", heads)


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


def test_groups_along_an_axis_of_two_are_read_whatever_their_order():
    text = """HloModule step

%all-reduce-scatter.1 (input: f32[64]) -> f32[16] {
  %input = f32[64]{0} parameter(0)
  %summed = f32[64]{0} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %own = f32[16]{0} slice(%summed), slice={[0:16]}
}

ENTRY %main (a: f32[4]) -> f32[16] {
  %a = f32[64]{0} parameter(0)
  %one = f32[16]{0} all-gather(%a), channel_id=2, replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=4], device_ids=([4,2]T(1,0)) {'axis_1'}, dimensions={0}
  %other = f32[16]{0} all-gather(%a), channel_id=3, replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=4], device_ids=([4,2]T(1,0)) {'axis_2'}, dimensions={0}
  %own = f32[16]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
  %summed = f32[64]{0} all-reduce(%a), channel_id=1, replica_groups={}, to_apply=%add
  %more = f32[32]{0} all-reduce(%a), channel_id=1, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
}
"""  # noqa: E501
    found = program.read(text, slice_of=[0, 1] * 4)
    # A sum of which each keeps its part is one instruction; others that have its channel are others.
    assert [(c.kind, c.group) for c in found.collectives] == [
        ("reduce-scatter", 4), ("all-gather", 2), ("all-gather", 4), ("all-reduce", 8), ("all-reduce", 2),
    ]  # fmt: skip
    assert [c.moved for c in found.collectives] == [0.75 * 256, 32, 48, 2 * 7 / 8 * 256, 128]
    # Partitions 0 and 1, 2 and 3, ... are pairs: neighbours are in two slices, every other one is in the same.
    assert [c.crosses for c in found.collectives] == [True, True, False, True, False]
    with pytest.raises(ValueError, match="replica_groups=somehow"):
        program.read(text.replace("replica_groups={},", "replica_groups=somehow,"), slice_of=[0] * 8)


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
        (["--topology=v5e:2x2", "--sweep", "--largest"], "--sweep: found --largest; expected one of them"),
        (["--topology=v5e:2x2", "--sweep", "--config.mesh.fsdp=4"], "--sweep: found --config.mesh.fsdp=4"),
        (["--topology=v5e:2x2", "--sweep", "--config.encoder.remat=full"], "--sweep: found --config.encoder.remat"),
        (["--topology=v5e:2x2", "--fill-cache=X", "--sweep", "--stores=Y"], "found --sweep and --stores; expected no"),
        (["--topology=here", "--fill-cache=X", "--slices=2"], "--slices: found 2 with --topology=here"),
        (["--topology=v5e:2x2", "--config.data.rows=16", "--config.data.stores=nowhere"], "nowhere"),
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


@pytest.fixture
def stand_in(monkeypatch):
    """`made(answer)` has a plan ask `answer(config)` in place of the compiler; returns the configs that were asked."""

    def made(answer):
        asked = []

        def compile_step(config, topology):
            asked.append(config)
            return answer(config)

        monkeypatch.setattr(compiled, "compile_step", compile_step)
        return asked

    return made


CHIP = CHIPS["v5e"]


def step_of(*, memory: float = 0.5, compute: float = 0.0, traffic: float = 0.0) -> compiled.Step:
    """A step that takes this share of a v5e's memory, and these seconds of its products and of its memory's traffic."""
    did = program.Program((), traffic * CHIP.hbm_bandwidth, 0, compute * CHIP.peak)
    return compiled.Step(1, int(memory * CHIP.hbm), 0, 0, did)


@pytest.mark.parametrize("begin", [24, 72, 96, 120, 312, 24 * 17])
def test_the_largest_batch_is_a_multiple_of_what_a_step_takes_apart(begin, stand_in, capsys):
    """Of a compiler that finds room for 100 rows on sixteen chips, two by two of which hold the same rows."""

    def answer(config):
        share = config.data.rows / 100
        return step_of(memory=share) if share <= 1 else DoesNotFit(share * CHIP.hbm, CHIP.hbm)

    asked = stand_in(answer)
    words = [f"--config.data.rows={begin}", "--config.mesh.tensor=2", "--config.training.accumulate=3", "--largest"]
    assert cli.main(["plan", "--config=csfm_base", "--topology=v5e:4x4", *words]) == 0
    assert "largest batch: 96 rows, 6 a chip; 120 do not fit" in capsys.readouterr().out
    rows = [config.data.rows for config in asked]
    assert all(n % (3 * 8) == 0 for n in rows) and len(rows) == len(set(rows)) <= 5  # each takes minutes


@pytest.mark.parametrize("says", [True, False])  # the compiler, how much it would have needed
@pytest.mark.parametrize("room", [0.5, 1, 1.9, 7, 60.5, 3000])
@pytest.mark.parametrize("needs", [lambda n: n, lambda n: 2000 + n, lambda n: n + n**2 / 50, lambda n: n + n // 7])
def test_the_largest_size_is_found_from_anywhere(needs, room, says):
    room = room if needs(0) == 0 else room + 2000
    asked = []

    def fit(n):
        asked.append(n)
        share = needs(n) / room
        return largest.Fit(share <= 1, share if share <= 1 or says else math.nan)

    for first in (1, 2, 3, 13, 40, 700, 5000):
        asked.clear()
        found = largest.search(fit, first)
        assert found.too_large in asked and needs(found.too_large) > room
        assert found.fits in asked and needs(found.fits) <= room or found.fits == 0
        assert 0 < found.too_large - found.fits <= max(1, found.fits // largest.FINENESS)
        assert len(asked) == len(set(asked)) <= 24  # from far away along a curve; along a line it is a handful


def swept(stand_in, capsys, answer, *words) -> str:
    asked = stand_in(answer)
    words = ["plan", "--config=csfm_base", "--topology=v5e:4x4", "--config.data.rows=64", "--sweep", *words]
    assert cli.main(words) == 0
    assert len(asked) == 4 * 3  # whole copies, over a host's chips, over all, heads besides; what is computed again
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "steps, expected",
    [
        # memory binds, and recomputing is for nothing
        ({"none": (1.0, 2.0), "dots": (1.1, 2.0), "full": (1.3, 2.0)}, "encoder.remat=none: 2000.0 ms"),
        # recomputing saves traffic, and costs products
        ({"none": (1.0, 2.0), "dots": (1.1, 1.9), "full": (1.3, 1.8)}, "encoder.remat=full: 1800.0 ms"),
        ({"none": (1.5, 1.4), "dots": (1.6, 1.2), "full": (2.0, 1.0)}, "encoder.remat=none: 1500.0 ms"),
        # what does not fit is no choice
        ({"none": None, "dots": (1.0, 2.0), "full": (1.0, 2.0)}, "encoder.remat=dots: 2000.0 ms"),
        ({"none": None, "dots": None, "full": None}, "recommended: none fits"),
    ],
)
def test_a_sweep_recommends_the_least_time_and_then_the_least_computed_again(steps, expected, stand_in, capsys):
    def answer(config):
        if config.mesh.tensor == 2:
            raise BadInput("config.x", "this", "that", "change it")
        times = steps[config.encoder.remat]
        split = 1.0 if config.mesh.fsdp == 4 else 1.5  # this mesh is the fastest
        return step_of(compute=times[0] * split, traffic=times[1] * split) if times else DoesNotFit(2.0**34, CHIP.hbm)

    said = swept(stand_in, capsys, answer)
    assert expected in said.splitlines()[-1] and said.count("refused: config.x: found this") == 3
    assert ("fsdp=4" in said.splitlines()[-1]) == ("none fits" not in expected)
    assert said.count("16.0  does not fit") == 3 * list(steps.values()).count(None)


def test_an_epochs_hours_are_those_of_the_runs_stores(tiny_stores, stand_in, capsys):
    stand_in(lambda config: step_of(compute=3600.0))
    words = ["plan", "--config=csfm_nano", "--topology=v5e:2x2", "--config.data.rows=4"]
    said = []
    for stores in (f"--config.data.stores={tiny_stores}", f"--stores={tiny_stores}"):
        assert cli.main([*words, stores]) == 0
        said.append(capsys.readouterr().out.splitlines()[-1])
    config = configs.load("csfm_nano")
    expected = epoch_windows(open_stores(str(tiny_stores), "size", ""), config.tokens, config.data, "train", 0)
    found = re.fullmatch(
        r"an epoch: (\d+) windows in (\d+) rows, (\d+) steps, (\d+) to (\d+) hours at best; .*", said[0]
    )
    windows, rows, steps, *hours = map(int, found.groups())
    assert windows == len(expected) > 4 and steps == -(-rows // 4) and hours == [steps, steps]
    assert said[1] == said[0]
    swept(stand_in, capsys, lambda config: step_of(compute=1.0))  # without stores, no epoch
    said = swept(stand_in, capsys, lambda config: step_of(compute=1.0), f"--stores={tiny_stores}")
    assert said.splitlines()[-1].startswith("an epoch: ")


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


def moved(step, kind: str) -> float:
    """Bytes a chip in a step."""
    return sum(c.times * c.moved for c in step.program.collectives if c.kind == kind)


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
def test_base_gathers_weights_on_256_chips_as_on_16():
    """Rows and parameters share the axis `fsdp`: the compiler may gather a layer's weights for each chip's rows, as is
    meant, or, silently and at another number of chips, reduce activations, or compute the same rows on several."""
    found = {}
    # The kernels of both stacks of blocks are gathered forward and backward, tables and projections once; one of these,
    # of 0.4 MB, not by the compiler of JAX 0.12.
    gathers = 30 if jax.__version_info__ < (0, 12) else 29
    expected = {
        "4x4": {"all-gather": gathers, "all-reduce": 9},
        "16x16": {"all-gather": gathers, "all-reduce": 15, "reduce-scatter": 5},
    }
    for shape, collectives in expected.items():
        topology = Topology(f"v5e:{shape}")
        config = with_("csfm_base", 2 * topology.chips, data=-1, fsdp=16)
        # Shorter rows, for smaller blocks of the attention's kernels, on which the compiler spends half of its time.
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, row_tokens=1024, row_visible=256))
        step = compile_step(config, topology)
        assert not isinstance(step, DoesNotFit)
        found[shape] = step
        assert step.parameters > 1e8 and step.peak < topology.chip.hbm
        assert step.program.kernels > 0  # splash attention
        assert counted(step) == collectives
        # Two rows a chip, and so the same work, of which a quarter or less is done again (kernels, encoder.remat).
        assert 1 < step.program.flops * topology.chips / flops_a_step(config) < 1.25
        best = roofline(step, topology)
        assert best.network == 0 and best.compute > 0 and best.serial >= best.overlapped
    few, many = found["4x4"], found["16x16"]
    assert many.program.flops == few.program.flops and many.program.kernels == few.program.kernels
    # Weights are as large on any number of chips, and what else is moved is their gradients.
    assert moved(many, "all-gather") == moved(few, "all-gather") > 2 * step.parameters
    assert moved(few, "all-reduce") < 2 * 4 * step.parameters
    assert moved(many, "all-reduce") + moved(many, "reduce-scatter") < moved(few, "all-reduce")


def test_topologies():
    assert (Topology("v5e:16x16").chips, Topology("v5e:16x16").hosts) == (256, 64)
    assert (Topology("v5p:4x4x4", 2).chips, Topology("v5p:4x4x4", 2).hosts) == (128, 32)
    with pytest.raises(BadInput, match="8x16, 16x16"):
        Topology("v6e:7x7")


def test_without_the_compiler_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"found no libtpu; .*csfm_jax\[tpu\]"):
        Topology("v5e:2x2").devices()
