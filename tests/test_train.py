"""`csfm train` as people use it: killed, stopped, resumed, refused. Runs are processes that share compilations."""

import gzip
import hashlib
import itertools
import json
import math
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
from commands import Command
from object_stores import Fault, fake_s3, s3_bucket
from tiny import STEPS

from csfm_jax import cli, encoding
from csfm_jax.training import checkpoint, initial, loop, record, remote, together, watching
from csfm_jax.training.state import TrainState
from csfm_jax.training.stopping import StopRequest
from data_pipelines import storage, store
from data_pipelines.errors import BadInput

OFTEN = {"log_every": 1, "save_every": 12, "eval_every": 20, "eval_batches": 1, "bad_steps": 4}


@pytest.fixture(scope="module")
def bench(tmp_path_factory, tiny_stores):
    """A function that makes the command of a run, and the environment it runs in."""
    return Bench(tmp_path_factory.mktemp("train"), tiny_stores)


class Bench:
    def __init__(self, folder: Path, stores: Path):
        self.folder, self.stores = folder, stores

    def words(self, workdir: Path, *more: str) -> list[str]:
        often = (f"--config.training.{name}={number}" for name, number in OFTEN.items())
        words = ["train", f"--config={tiny.__file__}", f"--workdir={workdir}", f"--config.data.stores={self.stores}"]
        return [*words, *often, *more]

    def start(self, workdir: Path, *more: str) -> Command:
        return Command(self.words(workdir, *more), self.folder)

    def run(self, workdir: Path, *more: str) -> tuple[int, str, str]:
        return self.start(workdir, *more).ended()

    def interrupt_at(self, step: int, number: signal.Signals, workdir: Path, *more: str) -> int:
        """Starts a run and sends it a signal as soon as a step's line is written; returns the exit code."""
        command = self.start(workdir, *more)
        while command.running and last_step(workdir) < step:
            time.sleep(0.005)
        command.send_signal(number)
        return command.ended()[0]


def lines(workdir: Path, name: str = "metrics") -> list[dict]:
    text = (workdir / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def last_step(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return json.loads(whole[-1])["step"] if whole else 0


TIMED = ("tokens_per_second", "windows_per_second", "seconds_waiting", "mfu", "goodput", "lost_seconds")


def learned(workdir: Path) -> list[dict]:
    """All that a run says but how long it took; floats compare bit by bit."""
    return [{k: v for k, v in line.items() if not k.startswith(TIMED)} for line in lines(workdir)]


@pytest.fixture(scope="module")
def finished(bench):
    """A run that was never stopped."""
    workdir = bench.folder / "whole"
    code, out, err = bench.run(workdir)
    assert (code, err) == (0, "")
    return workdir, out


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def test_a_run_leaves_lines_checkpoints_and_its_record(finished, bench, tiny_stores):
    workdir, out = finished
    written = lines(workdir)
    assert [line["step"] for line in written] == list(range(1, STEPS + 1))
    assert len({tuple(line) for line in written}) == 1  # keys are stable
    assert written[-1]["loss"] < written[0]["loss"] and written[-1]["mfu"] is None and written[-1]["skipped"] == 0
    assert abs(sum(written[-1]["sensors"].values()) - 1) < 1e-9
    assert 0 < written[0]["fill/tokens"] <= 1 and written[0]["missing"] < 0.2
    held_out = lines(workdir, "validation")
    assert [line["step"] for line in held_out] == [20, 40]
    for kind in ("random", "channel", "time", "modality"):
        assert held_out[-1][f"validation/{kind}/mae/ecg"] > 0 and held_out[-1][f"validation/{kind}/rmse/ppg"] > 0
    assert checkpoint.finished_steps(workdir / "checkpoints") == [36, 40]
    assert out.startswith("devices: 1 x cpu\n") and "parameters: " in out and "decoder's share" in out
    assert "attention: reference among a row's 60 visible tokens, reference among all 160\n" in out
    subjects = gzip.decompress((workdir / "subjects-trained.txt.gz").read_bytes()).decode().split()
    run = checkpoint.restore_params(workdir)[2]
    digest = hashlib.sha256("\n".join(subjects).encode()).hexdigest()
    assert run["subjects"] == {"count": len(subjects), "sha256": digest} and len(subjects) > 10
    assert run["preprocessing"] == json.loads((workdir / "preprocessing.json").read_text())
    assert run["config"] == json.loads((workdir / "config.json").read_text())
    assert f"--workdir={workdir}" in (workdir / "command.txt").read_text()
    assert {"jax", "flax", "orbax-checkpoint"} <= json.loads((workdir / "versions.json").read_text()).keys()
    assert any((workdir / "tensorboard").iterdir())


@pytest.mark.parametrize("moment", [3, 20])  # before the first checkpoint, and between two
def test_killed_and_started_again_it_is_the_run_that_was_never_stopped(bench, finished, tmp_path, moment):
    assert bench.interrupt_at(moment, signal.SIGKILL, tmp_path / "run") == -signal.SIGKILL
    assert moment <= last_step(tmp_path / "run") < STEPS  # it was killed in the middle
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 4')  # and this is what a kill within a write leaves
    code, _, err = bench.run(tmp_path / "run")
    assert (code, err) == (0, "")
    assert learned(tmp_path / "run") == learned(finished[0])
    assert lines(tmp_path / "run", "validation") == lines(finished[0], "validation")


@pytest.mark.parametrize("number, code, words", [(signal.SIGTERM, 75, ["--stopped-code=75"]), (signal.SIGINT, 0, [])])
def test_a_signal_saves_and_ends_well_and_the_same_command_goes_on(bench, finished, tmp_path, number, code, words):
    assert bench.interrupt_at(9, number, tmp_path / "run", *words) == code
    stopped_at = last_step(tmp_path / "run")
    assert checkpoint.finished_steps(tmp_path / "run" / "checkpoints")[-1] == stopped_at < STEPS
    code, out, _ = bench.run(tmp_path / "run", *words)
    assert code == 0 and f"steps: {stopped_at} done of {STEPS}" in out
    assert learned(tmp_path / "run") == learned(finished[0])


def stopped_at(question: int | None, bench, workdir: Path, monkeypatch, *more: str) -> int:
    """A run here, of eight steps with a validation after each fourth, told to stop when it asks for the n-th time: once
    after a step, before each of the four batches of a validation, and before and after it; returns the exit code."""
    asked = itertools.count(1)
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "asked", lambda stop: next(asked) >= (question or math.inf))
        words = ("--config.training.steps=8", "--config.training.eval_every=4", "--config.optimizer.warmup_steps=2")
        return cli.main(bench.words(workdir, *words, "--stopped-code=75", *more))


def test_a_stop_is_saved_before_validation_and_the_run_that_goes_on_writes_the_line(bench, tmp_path, monkeypatch):
    assert stopped_at(None, bench, tmp_path / "whole", monkeypatch) == 0
    workdir = tmp_path / "run"
    # within the validation of step 4; within the same one, which is owed; before that of step 8, the last; not at all
    for question, code, reached, validated in ((6, 75, 4, []), (1, 75, 4, []), (8, 0, 8, [4, 8]), (None, 0, 8, [4, 8])):
        assert stopped_at(question, bench, workdir, monkeypatch) == code
        assert checkpoint.finished_steps(workdir / "checkpoints")[-1] == reached
        assert [line["step"] for line in lines(workdir, "validation")] == validated
    assert lines(workdir, "validation") == lines(tmp_path / "whole", "validation")
    assert learned(workdir) == learned(tmp_path / "whole")


def test_the_watch_begins_before_a_store_is_opened_and_ends_when_checkpoints_are_closed(bench, tmp_path, monkeypatch):
    said, close = [], checkpoint.Checkpoints.close
    handler = {"dump_traceback_later": lambda limit, file: said.append(limit)}
    handler["cancel_dump_traceback_later"] = lambda: said.append("ended")
    monkeypatch.setattr(watching, "faulthandler", SimpleNamespace(**handler))
    monkeypatch.setattr(loop, "open_stores", lambda *args: said.append("opened") or store.open_stores(*args))
    monkeypatch.setattr(checkpoint.Checkpoints, "close", lambda self: said.append(close(self) or "closed"))
    monkeypatch.setattr(loop, "Workdir", lambda place: said.append("entered") or remote.Workdir(place))
    words = ("--config.training.steps=2", "--config.optimizer.warmup_steps=1", "--config.training.hang_seconds=100000")
    assert cli.main(bench.words(tmp_path / "run", *words)) == 0
    assert said == [1e5, "opened", 1.05e5, "entered", "closed", "ended"]  # the steps were over before a 20th of it was


def test_processes_agree_on_all_but_their_own_paths_and_wait_until_each_has_read_its_stores(
    bench, tmp_path, monkeypatch
):
    said = []
    monkeypatch.setattr(together, "check_equal", lambda what, held, *_: said.append(held))
    monkeypatch.setattr(loop, "open_stores", lambda *_: said.append("opened"))
    monkeypatch.setattr(together, "barrier", lambda name, limit=0: said.append(limit) or 1 / 0)

    def agreed(*more: str) -> str:
        said.clear()
        with pytest.raises(ZeroDivisionError):
            cli.main(bench.words(tmp_path / "run", *more))
        held, *then = said
        assert then == ["opened", together.LONG]
        return held

    alone = agreed()
    for same in ("data.workers=3", "data.verify=size", "data.tokenizer=x.json"):
        assert agreed(f"--config.{same}") == alone
    t = ("accumulate=2", "eval_every=9", "eval_batches=3", "save_every=9", "keep_checkpoints=9")
    for other in (*(f"training.{name}" for name in t), "encoder.remat=full", "encoder.attention=dense", "mesh.data=1"):
        assert agreed(f"--config.{other}") != alone, other


def test_muon_and_the_average_of_parameters_go_on_bit_for_bit(bench, tmp_path):
    more = ("--config.optimizer.name=muon", "--config.training.ema=0.9", "--config.training.steps=12",
            "--config.training.save_every=6")  # fmt: skip
    workdir = tmp_path / "run"
    code, _, err = bench.run(workdir, *more, "--config.training.eval_every=12")
    assert (code, err) == (0, "")

    def kept():
        folder = workdir / "checkpoints" / "12"
        return {p.relative_to(folder).parts[0] for p in folder.iterdir()}, checkpoint.restore_params(workdir)[1]

    (items, average), said, held_out = kept(), learned(workdir), lines(workdir, "validation")
    assert {"params", "optimizer", "average", "run"} <= items
    shutil.rmtree(workdir / "checkpoints" / "12")
    (workdir / "checkpoints" / "12.manifest.json").unlink()
    code, out, err = bench.run(workdir, *more, "--config.training.eval_every=12")
    assert (code, err) == (0, "") and "steps: 6 done of 12" in out
    jax.tree.map(np.testing.assert_array_equal, kept()[1], average)
    assert learned(workdir) == said and lines(workdir, "validation") == held_out


def test_lines_that_average_over_an_interval_survive_a_stop_within_it(bench, finished, tmp_path):
    # a line every 7 steps, saved every 12: the sums of a started interval travel in the checkpoint
    code, _, _ = bench.run(tmp_path / "run", "--config.training.log_every=7")
    assert code == 0
    whole = learned(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "40")
    assert bench.run(tmp_path / "run", "--config.training.log_every=7")[0] == 0
    assert learned(tmp_path / "run") == whole and [line["step"] for line in whole] == [7, 14, 21, 28, 35]
    assert whole[0]["loss"] == pytest.approx(sum(line["loss"] for line in learned(finished[0])[:7]) / 7)


def test_a_finished_run_started_again_does_nothing(bench, copy):
    before = (copy / "metrics.jsonl").read_bytes()
    code, out, _ = bench.run(copy, "--stopped-code=75")
    assert code == 0 and f"{STEPS} done of {STEPS}" in out and (copy / "metrics.jsonl").read_bytes() == before


def refused(bench, workdir, capsys, *more) -> str:
    assert cli.main(bench.words(workdir, *more)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_other_settings_are_refused_by_name(bench, copy, capsys):
    more = ("--config.encoder.width=16", "--config.data.seed=3", "--config.training.log_every=9")
    message = refused(bench, copy, capsys, *more)
    assert "config.encoder.width = 16 (was 8)" in message and "config.data.seed = 3 (was 0)" in message
    assert "log_every" not in message


def test_a_changed_checkpoint_is_set_aside_and_the_one_before_goes_on(bench, finished, copy):
    victim = max((copy / "checkpoints" / "40" / "optimizer").rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 3] ^= 1
    victim.write_bytes(content)
    code, out, err = bench.run(copy)
    assert code == 0 and str(victim) in err and "the run goes on from step 36" in err
    assert "steps: 36 done of 40" in out and learned(copy) == learned(finished[0])
    assert (copy / "checkpoints" / "damaged-40").is_dir()


def test_a_run_begins_with_the_encoder_of_another(bench, finished, tmp_path, capsys):
    still = ("--config.optimizer.learning_rate=0.0", "--config.training.steps=6")
    init, workdir = f"--init={finished[0]}", tmp_path / "run"
    code, _, err = bench.run(workdir, init, *still)
    assert (code, err) == (0, "")
    (_, before, _), (_, after, run) = (checkpoint.restore_params(w) for w in (finished[0], workdir))
    jax.tree.map(np.testing.assert_array_equal, before["encoder"], after["encoder"])
    assert np.abs(before["decoder"]["mask"] - after["decoder"]["mask"]).max() > 1e-3
    subjects = checkpoint.restore_params(finished[0])[2]["subjects"]
    assert run["initial"]["step"] == STEPS and run["initial"]["subjects"] == subjects
    known = record.trained_on(encoding.load(workdir).provenance)
    assert known.complete and len(known.subjects) == subjects["count"]
    assert run["initial"]["hashes"] == sorted(map(list, known.hashes)) and len(known.hashes) == 1
    (workdir / record.SUBJECTS_BEFORE).unlink()
    assert not record.trained_on(encoding.load(workdir).provenance).complete

    initial.check_resumed(str(finished[0]), run, str(workdir))  # the same command goes on
    with pytest.raises(BadInput, match="that began from .*expected one that began from a random initialisation"):
        initial.check_resumed(initial.RANDOM, run, str(workdir))
    initial.check_resumed(initial.RANDOM, {"initial": None}, str(workdir))
    message = refused(bench, workdir, capsys, f"--init={tmp_path}", *still)
    assert f"began from {finished[0]}" in message and "another --workdir" in message


def test_initial_weights_begin_the_average_too():
    whole = {"encoder": {"cls": jax.numpy.zeros(3)}, "decoder": {"mask": jax.numpy.ones(2)}}
    state = TrainState(whole, (), *(jax.numpy.zeros(()),) * 4, jax.tree.map(jax.numpy.copy, whole))
    begun = initial.put(state, {"cls": np.full(3, 2.0)})
    for tree in (begun.params, begun.average):
        assert (tree["encoder"]["cls"] == 2).all() and (tree["decoder"]["mask"] == 1).all()
    buffers = [tree["encoder"]["cls"].unsafe_buffer_pointer() for tree in (begun.params, begun.average)]
    assert len(set(buffers)) == 2  # the step donates both


@pytest.mark.parametrize(
    "field, value", [("encoder.mlp", 24), ("tokens.patch.ppg", 50), ("encoder.position_steps", 90)]
)
def test_initial_weights_of_another_model_are_refused_by_field(bench, finished, tmp_path, capsys, field, value):
    more = (f"--init={finished[0]}", f"--config.{field}={value}", "--config.data.row_tokens=400")
    message = refused(bench, tmp_path / "run", capsys, *more)
    assert f"config.{field}: found {value}; expected" in message and str(finished[0]) in message


def test_what_cannot_be_trained_is_refused_before_anything_is_compiled(bench, tmp_path, capsys):
    assert "config.training.save_every" in refused(bench, tmp_path, capsys, "--config.training.save_every=0")
    assert "config.optimizer.warmup_steps" in refused(bench, tmp_path, capsys, "--config.optimizer.warmup_steps=40")
    assert "config.optimizer.name" in refused(bench, tmp_path, capsys, "--config.optimizer.name=mion")
    assert "config.training.ema" in refused(bench, tmp_path, capsys, "--config.training.ema=1.0")
    assert "config.mesh" in refused(bench, tmp_path, capsys, "--config.mesh.fsdp=3")
    assert "config.encoder.attention" in refused(bench, tmp_path, capsys, "--config.encoder.attention=triton")
    missing = "--config.data.stores=" + str(tmp_path / "absent")
    assert "absent" in refused(bench, tmp_path, capsys, missing)


def test_too_many_bad_steps_stop_the_run_and_name_the_step(bench, tmp_path):
    code, _, err = bench.run(tmp_path / "run", "--config.optimizer.learning_rate=1e38")
    assert code == 2 and err.count("\n") == 1
    assert "4 steps in a row whose loss or gradient is not finite" in err and "training step" in err
    assert lines(tmp_path / "run")[-1]["skipped"] == 4


# ---- a work directory in an object store

THERE = "s3://bucket/runs/tiny"


@pytest.fixture
def s3(monkeypatch, tmp_path):
    for package in ("s3fs", "moto", "flask", "flask_cors"):
        pytest.importorskip(package, reason=f"no {package}: object stores are not tested")
    with fake_s3() as server, s3_bucket(server, monkeypatch, tmp_path) as made:
        yield made


def killed_when_there(command: Command, address: str) -> int:
    """Kills a run as soon as something is there; returns its exit code."""
    while command.running and not storage.exists(address):
        time.sleep(0.02)
    command.send_signal(signal.SIGKILL)
    return command.ended()[0]


def test_killed_and_gone_on_on_another_host_a_remote_run_is_the_local_one(bench, finished, s3, tmp_path, monkeypatch):
    assert killed_when_there(bench.start(THERE), f"{THERE}/checkpoints/12.manifest.json") == -signal.SIGKILL
    reached = checkpoint.finished_steps(f"{THERE}/checkpoints")[-1]
    assert reached < STEPS  # it was killed in the middle
    kept = storage.read_bytes(f"{THERE}/metrics.jsonl")
    assert kept.count(b"\n") >= reached  # the lines up to a checkpoint are there before it is
    storage.write_bytes(f"{THERE}/metrics.jsonl", kept + b'{"step": 99, "loss"')
    monkeypatch.setenv("CSFM_RUNS", str(tmp_path / "another-host"))
    s3.faults += [Fault("PUT /bucket/runs/tiny/checkpoints/36/optimizer", cut=0), Fault("GET /bucket/runs/", cut=9)]
    code, out, err = bench.run(f"{THERE}/")
    assert (code, err) == (0, "") and not any(fault.times for fault in s3.faults)
    assert f"steps: {reached} done of {STEPS}" in out and str(tmp_path / "another-host" / "tiny-") in out

    for name in storage.file_sizes(THERE):
        storage.download(f"{THERE}/{name}", tmp_path / "fetched" / name)
    assert learned(tmp_path / "fetched") == learned(finished[0])
    assert lines(tmp_path / "fetched", "validation") == lines(finished[0], "validation")
    local = {p.name for p in finished[0].iterdir()} - {"plans", "tensorboard", ".lock"}
    assert {p.name for p in (tmp_path / "fetched").iterdir()} == local
    mine, other = (arrays_of(where / "checkpoints" / str(STEPS)) for where in (tmp_path / "fetched", finished[0]))
    jax.tree.map(np.testing.assert_array_equal, mine, other)

    loaded = encoding.load(THERE)
    assert loaded.provenance["path"] == f"{THERE}/checkpoints/{STEPS}"
    trained = record.trained_on(loaded.provenance)
    assert trained.complete and len(trained.subjects) == loaded.provenance["subjects"]["count"] > 10
    begun = initial.read(f"{THERE}/", loaded.config, [], None)
    assert (
        begun.about["path"] == THERE and begun.about["step"] == STEPS and len(begun.subjects) == len(trained.subjects)
    )
    initial.check_resumed(f"{THERE}/", {"initial": begun.about}, "here")


def arrays_of(step: Path):
    from orbax.checkpoint import v1 as ocp

    with checkpoint.orbax_context():
        described = ocp.checkpointables_metadata(step).metadata
        wanted = {
            item: jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), described[item])
            for item in ("params", "optimizer")
        }
        return ocp.load_checkpointables(step, wanted)
