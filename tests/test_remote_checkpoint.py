"""Checkpoints in object stores: sent whole or not at all, tried again, verified on their way back."""

import dataclasses
import errno
import functools
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from object_stores import Fault, fake_gcs, fake_s3, s3_bucket
from test_checkpoint import RUN, abstract, arrays

from csfm_jax.training import checkpoint, loop, remote, together
from csfm_jax.training.manifest import finished_steps, read_manifest, verify_step
from csfm_jax.training.remote import RemoteCheckpoints, Workdir
from csfm_jax.training.together import anywhere, barrier, check_equal, of_first
from data_pipelines import storage, storage_errors
from data_pipelines.errors import BadInput

for _package in ("s3fs", "moto", "flask", "flask_cors"):
    pytest.importorskip(_package, reason=f"no {_package}: object stores are not tested")

HOME = "s3://bucket/runs/one/checkpoints"


@pytest.fixture(scope="module")
def server():
    with fake_s3() as url:
        yield url


@pytest.fixture
def s3(server, monkeypatch, tmp_path):
    with s3_bucket(server, monkeypatch, tmp_path) as made:
        yield made


def opened(tmp_path, place=HOME, **options):
    return RemoteCheckpoints(place, tmp_path / "here", **{"keep": 2, **options})


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, arrays(step), {"moments": arrays(-step)}, {**RUN, "step": step})
        checkpoints.wait()


def saved(tmp_path, *steps, place=HOME):
    checkpoints = opened(tmp_path, place)
    save(checkpoints, *steps)
    checkpoints.close()


@pytest.fixture(params=["s3", "gs"])
def place(request, tmp_path, monkeypatch):
    if request.param == "s3":
        request.getfixturevalue("s3")
        yield HOME
        return
    for package in ("gcsfs", "gcp_storage_emulator"):
        pytest.importorskip(package, reason=f"no {package}: gs:// is not tested")
    import fsspec

    with fake_gcs() as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        monkeypatch.setattr(storage_errors, "pause", lambda seconds: None)
        yield HOME.replace("s3://", "gs://")
    fsspec.get_filesystem_class("gs").clear_instance_cache()


def test_a_step_comes_back_whole_and_old_steps_go(place, tmp_path):
    saved(tmp_path, 5, 10, 15, place=place)
    assert finished_steps(place) == [10, 15]
    names = {storage.name_of(p) for p in storage.list_folder(place)}
    assert names == {"10", "10.manifest.json", "15", "15.manifest.json"}
    shutil.rmtree(tmp_path / "here")  # the host is gone
    checkpoints = opened(tmp_path, place)
    assert checkpoints.latest() == 15 and checkpoints.read_run() == {**RUN, "step": 15}
    found = checkpoints.restore(15, abstract(arrays(1)), abstract({"moments": arrays(1)}))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, found["params"], arrays(15))
    jax.tree.map(np.testing.assert_array_equal, found["optimizer"], {"moments": arrays(-15)})
    assert checkpoint.read_run(storage.parent(place))["step"] == 15


def test_what_lies_there_is_what_a_local_run_leaves(s3, tmp_path):
    saved(tmp_path, 3)
    local = checkpoint.Checkpoints(tmp_path / "local", keep=2)
    save(local, 3)
    local.close()
    there, here = storage.file_sizes(f"{HOME}/3"), storage.file_sizes(tmp_path / "local" / "3")

    def kinds(names):  # OCDBT's data files have random names
        return sorted(name.rpartition("/")[0] + "/*" if "/d/" in name else name for name in names)

    assert kinds(there) == kinds(here) and set(read_manifest(f"{HOME}/3")) == set(there)
    # copied down it is a checkpoint
    for name in storage.file_sizes(HOME):
        storage.download(f"{HOME}/{name}", tmp_path / "copy" / name)
    verify_step(tmp_path / "copy" / "3")
    np.testing.assert_array_equal(checkpoint.restore_params(tmp_path / "copy")[1]["cls"], 3 * np.ones(8))


def test_parameters_are_read_without_the_optimizer_and_leave_nothing_here(s3, tmp_path):
    saved(tmp_path, 1, 2)
    s3.requests.clear()
    for where, step in (("", 2), ("/checkpoints", 2), ("/checkpoints/1/", 1)):
        _, params, run = checkpoint.restore_params(f"s3://bucket/runs/one{where}")
        np.testing.assert_array_equal(params["cls"], step * np.ones(8))
        assert run["step"] == step and list(params["layers"]) == [0]
    assert s3.count("GET", "/params/") and not s3.count("GET", "/optimizer/")
    assert not list((tmp_path / "tmp").iterdir())


def test_lost_connections_are_tried_again(s3, tmp_path):
    s3.faults += [Fault("PUT /bucket/runs/one/checkpoints/1/params/", 2, cut=0), Fault("PUT", 2, 503)]
    saved(tmp_path, 1)
    assert not any(fault.times for fault in s3.faults)
    s3.faults += [Fault("GET /bucket/runs/one/checkpoints/1/params/", 2, cut=50), Fault("GET", 1, 500)]
    checkpoints = opened(tmp_path)
    found = checkpoints.restore(1, abstract(arrays(1)), abstract({"moments": arrays(1)}))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, found["params"], arrays(1))
    assert not any(fault.times for fault in s3.faults)


def test_a_send_that_fails_is_an_error_at_the_next_step_and_no_step(s3, tmp_path):
    checkpoints = opened(tmp_path)
    save(checkpoints, 1)
    s3.faults.append(Fault("PUT /bucket/runs/one/checkpoints/2/optimizer", 1000, 403))
    checkpoints.save(2, arrays(2), {"moments": arrays(-2)}, RUN)
    checkpoints._sealing.exception(timeout=60)
    with pytest.raises(BadInput, match="checkpoints/2/optimizer.*: found access refused"):
        checkpoints.check()
    assert checkpoints.latest() == 1
    checkpoints.close()
    assert finished_steps(HOME) == [1] and storage.exists(f"{HOME}/2")
    s3.faults.clear()
    saved(tmp_path, 2)  # the same command again
    assert (
        finished_steps(HOME) == [1, 2] and read_manifest(f"{HOME}/2").keys() == storage.file_sizes(f"{HOME}/2").keys()
    )


def test_killed_between_files_and_manifest_the_step_before_counts(s3, tmp_path, monkeypatch):
    saved(tmp_path, 1)
    with monkeypatch.context() as patched:
        patched.setattr(remote, "manifest_text", lambda *_: 1 / 0)  # all files are there by now
        checkpoints = opened(tmp_path)
        with pytest.raises(ZeroDivisionError):
            save(checkpoints, 2)
        checkpoints.close()
    assert finished_steps(HOME) == [1] and storage.exists(f"{HOME}/2/_CHECKPOINT_METADATA")
    storage.write_bytes(f"{HOME}/2.part-1.json", b"{}")  # as one of several processes leaves it
    assert checkpoint.find_step(HOME) == f"{HOME}/1"
    checkpoints = opened(tmp_path)
    assert checkpoints.latest() == 1 and not storage.exists(f"{HOME}/2")
    assert {storage.name_of(p) for p in storage.list_folder(HOME)} == {"1", "1.manifest.json"}
    checkpoints.close()


def test_a_damaged_step_is_set_aside_and_the_last_one_is_refused(s3, tmp_path, capsys):
    saved(tmp_path, 1, 2)
    for step, damage in ((2, "flip"), (1, "remove")):
        (name,) = [n for n in storage.file_sizes(f"{HOME}/{step}") if n.startswith("optimizer/ocdbt.process_0/d/")]
        data = bytearray(storage.read_bytes(victim := f"{HOME}/{step}/{name}"))
        data[len(data) // 2] ^= 4
        if damage == "flip":
            storage.write_bytes(victim, data)
            checkpoint.restore_params(f"{HOME}/{step}")  # parameters alone are intact
            checkpoints = opened(tmp_path)
            said = capsys.readouterr().err
            assert victim in said and "set aside as damaged-2, and the run goes on from step 1" in said
            assert checkpoints.latest() == 1 and checkpoints.read_run()["step"] == 1
            checkpoints.close()
            assert {"damaged-2", "damaged-2.manifest.json"} <= {storage.name_of(p) for p in storage.list_folder(HOME)}
            assert storage.read_bytes(f"{HOME}/damaged-2/{name}") == data
        else:
            storage.delete_tree(victim)
            with pytest.raises(BadInput, match="no such object.*there is no other step") as error:
                opened(tmp_path)
            assert error.value.where == victim


def test_a_step_that_only_another_process_finds_damaged_can_be_saved_again(s3, tmp_path, monkeypatch):
    saved(tmp_path, 1, 2)
    answers = iter([True])  # of the other process; here step 2 came back whole
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "anywhere", lambda what, flag, limit: next(answers, flag))
        checkpoints = opened(tmp_path)
    assert checkpoints.latest() == 1 and checkpoints.read_run()["step"] == 1
    save(checkpoints, 2)
    checkpoints.close()
    assert finished_steps(HOME) == [1, 2]


def test_an_outage_is_no_damage(s3, tmp_path, monkeypatch):
    monkeypatch.setitem(storage_errors.TRIES, "s3", 1)
    checkpoints = opened(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, arrays(step), {"moments": arrays(-step)}, RUN, arrays(0.5 * step))
        checkpoints.wait()
    checkpoints.close()
    fault = Fault("GET /bucket/runs/one/checkpoints/2.manifest.json", 3, 503)  # as many as one attempt makes
    for read in (opened, lambda _: checkpoint.restore_params(HOME), lambda _: checkpoint.restore_params(f"{HOME}/2")):
        s3.faults[:] = [dataclasses.replace(fault)]
        with pytest.raises(BadInput, match=r"2.manifest.json: found HTTP 503, 1 times in a row"):
            read(tmp_path)
    assert finished_steps(HOME) == [1, 2]
    np.testing.assert_array_equal(checkpoint.restore_params(HOME)[1]["cls"], np.ones(8))  # the average


@pytest.mark.parametrize("damage", ["params", "manifest"])
def test_damaged_parameters_are_refused_by_name(s3, tmp_path, damage):
    saved(tmp_path, 1, 2)
    victim = f"{HOME}/2.manifest.json"
    if damage == "params":
        (name,) = [n for n in storage.file_sizes(f"{HOME}/2") if n.startswith("params/ocdbt.process_0/d/")]
        victim = f"{HOME}/2/{name}"
    data = bytearray(storage.read_bytes(victim))
    data[len(data) // (2 if damage == "params" else 100)] ^= 4
    storage.write_bytes(victim, data)
    with pytest.raises(BadInput, match="take another step: 1"):
        checkpoint.restore_params(HOME)


def test_an_address_without_checkpoint_is_bad_input(s3):
    storage.write_bytes("s3://bucket/a/file", b"")
    for where, found in (("s3://bucket/a", "no finished checkpoint"), ("s3://bucket/b", "found nothing")):
        with pytest.raises(BadInput, match=found):
            checkpoint.restore_params(where)
    with pytest.raises(BadInput, match="keep_checkpoints"):
        RemoteCheckpoints(HOME, "x", keep=1)


def test_a_run_that_has_lost_its_place_leaves_its_successors_checkpoint_as_it_is(s3, tmp_path):
    lost = []

    def confirm():
        if lost:
            raise BadInput(HOME, "another run", "none", "end it")

    first = opened(tmp_path / "first", confirm=confirm)
    save(first, 1)
    second = opened(tmp_path / "second")  # the first has no network for a while, and another one goes on from step 1
    save(second, 2)
    before = {name: storage.read_bytes(f"{HOME}/2/{name}") for name in storage.file_sizes(f"{HOME}/2")}
    lost.append(True)
    with pytest.raises(BadInput, match="another run"):
        first.save(2, arrays(7), {"moments": arrays(7)}, {**RUN, "step": 2})
        first.wait()
    assert {name: storage.read_bytes(f"{HOME}/2/{name}") for name in storage.file_sizes(f"{HOME}/2")} == before
    second.close()


# ---- several processes, which see nothing of each other's disks


def split_arrays(scale: float) -> dict:
    """Over the two devices of two processes: one array is split, the others are copied."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def put(array, *axes):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    whole = (scale * np.arange(8192)).astype(np.float32).reshape(64, 128)
    return {"split": put(whole, "x"), "copied": put(whole, None, None), "layers": {0: put(whole[0])}}


def _make_folders_late() -> None:
    """On this disk they take longer than on the other process's."""
    mkdir = os.mkdir

    def late(path, *args, **kwargs):
        if "orbax-checkpoint-tmp" in os.fspath(path):
            time.sleep(0.2)
        mkdir(path, *args, **kwargs)

    os.mkdir = late


def one_of_two(folder: Path) -> None:
    """What each process does: save two steps, and bring back the one before the latest, which was damaged."""
    if jax.process_index() == 0:
        _make_folders_late()
    checkpoints = opened(folder)
    for step in (1, 2):
        checkpoints.save(step, split_arrays(step), {"moments": split_arrays(-step)}, {**RUN, "step": step})
        checkpoints.wait()
    checkpoints.close()
    if jax.process_index() == 1:
        (name, _) = sorted(n for n in storage.file_sizes(f"{HOME}/2") if n.startswith("params/ocdbt.process_1/"))
        storage.write_bytes(f"{HOME}/2/{name}", bytes(storage.file_size(f"{HOME}/2/{name}")))
    barrier("damaged")
    checkpoints = opened(folder)
    assert checkpoints.read_run()["step"] == checkpoints.latest() == 1
    wanted = abstract(split_arrays(1)), abstract({"moments": split_arrays(1)})
    found = checkpoints.restore(1, *wanted)
    for name, expected in (("params", split_arrays(1)), ("optimizer", {"moments": split_arrays(-1)})):
        for mine, other in zip(jax.tree.leaves(found[name]), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(mine.addressable_data(0), other.addressable_data(0))
    checkpoints.close()
    with pytest.raises(BadInput, match="^--config: found processes 1 differ from process 0; expected one everywhere"):
        check_equal("--config", str(jax.process_index()), "one everywhere", "start all with the same")
    # texts of other lengths, and parts that only one has
    held = {"a": "1", "b": "x" * (1 + jax.process_index()), **({"c": "0"} if jax.process_index() else {})}
    with pytest.raises(BadInput, match="^it: found processes 1 differ from process 0 in b, c; expected one"):
        check_equal("it", held, "one everywhere", "start all with the same")
    assert anywhere("one", jax.process_index() == 1) and not anywhere("none", False)
    third = of_first("a third", [1 / 3, 7.0][jax.process_index()])
    assert third == 1 / 3 and math.isnan(of_first("nothing", math.nan))
    with Workdir(folder / "shared"):
        pass
    with pytest.raises(BadInput, match="^--workdir: found processes 1 differ .*; choose one on a disk that all"):
        Workdir(folder / f"own-{jax.process_index()}").__enter__()
    if jax.process_index() == 0:
        with pytest.raises(BadInput, match="'alone': found processes 1 not here; expected all 2"):
            barrier("alone", 0.5)
        with pytest.raises(BadInput, match="'late': found processes 1 not here; expected all 2"):
            anywhere("late", True, 0.5)
        soon = mock.patch.object(together, "barrier", functools.partial(barrier, limit=0.5))
        with soon, pytest.raises(BadInput, match="'file compared': found processes 1 not here; expected all 2"):
            check_equal("file", "", "one everywhere", "wait")
    barrier("both")


@pytest.fixture
def sent_by_two(s3, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    paths = os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parent)))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": paths}
    words = [sys.executable, __file__, str(tmp_path), address]
    started = [
        subprocess.Popen([*words, str(number)], env=environment, stderr=subprocess.PIPE, text=True) for number in (0, 1)
    ]
    try:
        ended = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], ended
    return ended


def test_each_process_sends_its_part_and_one_reads_them_all(s3, sent_by_two, tmp_path):
    assert sum("damaged-2, and the run goes on from step 1" in said for said in sent_by_two) == 2
    names = {storage.name_of(p) for p in storage.list_folder(HOME)}
    assert names == {"1", "1.manifest.json", "damaged-2", "damaged-2.manifest.json"}
    files = read_manifest(f"{HOME}/1")
    assert {name: entry["size"] for name, entry in files.items()} == storage.file_sizes(f"{HOME}/1")
    parts = [sum(e["size"] for n, e in files.items() if n.startswith(f"params/ocdbt.process_{i}/")) for i in (0, 1)]
    assert 0.5 < parts[0] / parts[1] < 2  # what both hold is sent once, half by each
    for name in storage.file_sizes(HOME):
        storage.download(f"{HOME}/{name}", tmp_path / "copy" / name)
    expected = np.arange(8192, dtype=np.float32).reshape(64, 128)
    for where in (HOME, tmp_path / "copy"):
        _, params, run = checkpoint.restore_params(where)
        np.testing.assert_array_equal(params["split"], expected)
        np.testing.assert_array_equal(params["copied"], expected)
        np.testing.assert_array_equal(params["layers"][0], expected[0])
        assert run["step"] == 1
    checkpoints = opened(tmp_path)  # one process goes on where two stopped
    found = checkpoints.restore(1, *(abstract(t) for t in one_device_trees()))
    np.testing.assert_array_equal(found["optimizer"]["moments"]["split"], -expected)
    save(checkpoints, 2)
    checkpoints.close()
    assert finished_steps(HOME) == [1, 2]


def one_device_trees():
    tree = {"split": jnp.zeros((64, 128)), "copied": jnp.zeros((64, 128)), "layers": {0: jnp.zeros(128)}}
    return tree, {"moments": tree}


# ---- the rest of a work directory


def test_lines_are_sent_and_come_back_to_another_host(s3, tmp_path, monkeypatch):
    for host, content in (("a", b'{"step": 1}\n'), ("b", b'{"step": 2}\n')):
        monkeypatch.setenv("CSFM_RUNS", str(tmp_path / host))
        with Workdir("s3://bucket/runs/one") as home:
            assert home.folder.parent == tmp_path / host and (home.folder / "metrics.jsonl").exists() == (host == "b")
            (home.folder / "config.json").write_text("{}")
            (home.folder / "plans").mkdir()
            with open(home.folder / "metrics.jsonl", "ab") as file:
                file.write(content)
            home.send()
            s3.requests.clear()
            home.send()
            assert not s3.requests  # nothing has changed
        assert storage.file_sizes("s3://bucket/runs/one") == {
            "config.json": 2,
            "metrics.jsonl": 12 * "ab".find(host) + 12,
        }
    monkeypatch.setenv("CSFM_RUNS", str(tmp_path / "a"))
    storage.delete_tree("s3://bucket/runs/one")
    with Workdir("s3://bucket/runs/one") as home:  # begun anew: what an earlier run left on this host is not its
        assert not (home.folder / "metrics.jsonl").exists()


def test_the_error_that_ended_a_run_is_not_hidden_by_lines_that_cannot_be_sent(s3, tmp_path, capsys):
    with pytest.raises(ZeroDivisionError), Workdir("s3://bucket/runs/one") as home:
        (home.folder / "metrics.jsonl").write_text("{}")
        s3.faults.append(Fault("PUT", 1000, 403))
        raise ZeroDivisionError
    assert "the last lines were not sent: s3://bucket/runs/one/metrics.jsonl" in capsys.readouterr().err
    with pytest.raises(BadInput, match="access refused"), Workdir("s3://bucket/runs/one") as home:
        (home.folder / "metrics.jsonl").write_text("{}")


def test_a_run_in_whose_place_another_went_on_seals_no_more_steps(s3, tmp_path):
    with pytest.raises(BadInput, match=r"that another run is writing \(process 7 on b\)"):
        with Workdir("s3://bucket/runs/one") as home:
            checkpoints = home.checkpoints(2)
            save(checkpoints, 1)
            storage.write_bytes("s3://bucket/runs/one/claim.json", b'{"host": "b", "process": 7, "run": "other"}')
            try:
                save(checkpoints, 2)
            finally:
                checkpoints._sealing = None
                checkpoints.close()
    assert finished_steps(HOME) == [1] and storage.exists("s3://bucket/runs/one/claim.json")  # the other's


@pytest.fixture
def no_cache():
    """JAX without a compilation cache, as in a process whose environment names none."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], None)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_programs_that_were_compiled_lie_where_every_host_finds_them(s3, no_cache):
    loop._cache_compilations(Workdir("s3://bucket/runs/one"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    three = jax.jit(lambda x: 3.25 * x)(np.ones(7, np.float32))
    assert any("jit__lambda" in name for name in storage.file_sizes("s3://bucket/runs/one/compilation_cache"))
    s3.faults.append(Fault("compilation_cache", 1000, 403))
    with pytest.warns(UserWarning, match="persistent compilation cache"):  # and compiles as ever
        assert (jax.jit(lambda x: 1.25 * x)(np.ones(7, np.float32)) < three).all()


@pytest.mark.parametrize(
    "filled, named", [(("run",), "run"), (("memory",), "memory"), (("run", "memory"), "run"), ((), "run")]
)
def test_a_disk_that_fills_up_under_an_open_file_is_named(tmp_path, monkeypatch, filled, named):
    """The work directory's, or the shared memory where workers put batches."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda disk: usage._replace(free=0 if disk.name in filled else 1 << 30))
    monkeypatch.setattr(remote, "_SHARED_MEMORY", tmp_path / "memory")
    (tmp_path / "memory").mkdir()
    tmp_path /= "run"
    with pytest.raises(OSError) as full, Workdir(tmp_path), open("/dev/full", "w", buffering=1) as lines:
        lines.write("a line\n")
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(tmp_path.parent / named))


def test_a_local_work_directory_is_its_own_folder(tmp_path):
    with Workdir(tmp_path / "run") as home:
        assert home.folder == tmp_path / "run" and type(home.checkpoints(2)) is checkpoint.Checkpoints


if __name__ == "__main__":
    jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
    one_of_two(Path(sys.argv[1]))
