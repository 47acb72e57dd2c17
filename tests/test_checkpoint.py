"""Checkpoints: sealed, verified before use, restartable after a kill, and honest about a full disk."""

import asyncio
import errno
import os
import shutil
import sys
import threading
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from csfm_jax import config as config_lib
from csfm_jax.training import checkpoint, companions
from csfm_jax.training.checkpoint import Checkpoints, finished_steps, restore_params, verify_step
from data_pipelines.errors import BadInput

RUN = {"config": config_lib.Config().to_dict(), "note": "plain values"}


def arrays(scale: float) -> dict:
    return {"layers": {0: {"kernel": scale * jnp.arange(4096.0).reshape(64, 64)}}, "cls": scale * jnp.ones(8)}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def save_steps(folder, *steps, keep=3):
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(step, arrays(step), {"moments": arrays(-step)}, {**RUN, "step": step})
    checkpoints.close()


def test_a_step_comes_back_whole_and_old_steps_go(tmp_path):
    save_steps(tmp_path, 5, 10, 15, keep=2)
    assert finished_steps(tmp_path) == [10, 15]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "10.manifest.json", "15", "15.manifest.json"]
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.read_run() == {**RUN, "step": 15}
    found = checkpoints.restore(15, abstract(arrays(1)), abstract({"moments": arrays(1)}))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, found["params"], arrays(15))
    jax.tree.map(np.testing.assert_array_equal, found["optimizer"], {"moments": arrays(-15)})
    assert found["average"] is None


def test_where_parameters_are_averaged_the_average_is_what_is_loaded(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, arrays(1), {"moments": arrays(-1)}, RUN, arrays(0.5))
    checkpoints.wait()
    found = checkpoints.restore(1, *map(abstract, (arrays(1), {"moments": arrays(1)}, arrays(1))))
    checkpoints.close()
    np.testing.assert_array_equal(found["params"]["cls"], np.ones(8))  # what training goes on from
    np.testing.assert_array_equal(found["average"]["cls"], 0.5 * np.ones(8))
    np.testing.assert_array_equal(restore_params(tmp_path)[1]["cls"], 0.5 * np.ones(8))


def test_what_is_saved_is_the_state_at_that_moment_although_its_buffers_are_donated(tmp_path):
    forward = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    params = {"kernel": jnp.zeros((512, 1024))}
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(3):
        checkpoints.save(step, params, {"count": jnp.zeros(())}, RUN)
        for _ in range(10):
            params = forward(params)
    checkpoints.close()
    assert (restore_params(tmp_path / "2")[1]["kernel"] == 20).all()


@pytest.mark.parametrize("where", ["workdir", "checkpoints", "step"])
def test_parameters_alone_need_no_mesh(tmp_path, where):
    folder = tmp_path / "checkpoints"
    save_steps(folder, 1, 2)
    path = {"workdir": tmp_path, "checkpoints": folder, "step": folder / "1"}[where]
    config, params, run = restore_params(path)
    assert config == config_lib.Config() and run["step"] == (1 if where == "step" else 2)
    assert isinstance(params["cls"], np.ndarray) and list(params["layers"]) == [0]
    np.testing.assert_array_equal(params["cls"], run["step"] * np.ones(8))


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    save_steps(folder, 1, 2)
    return folder


FILES = ("params", "optimizer", "run/data.json", "_CHECKPOINT_METADATA")


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("part", FILES)
def test_damage_is_refused_by_name_before_use(two_steps, tmp_path, damage, part):
    folder = shutil.copytree(two_steps, tmp_path / "copy")
    victim = folder / "2" / part
    if victim.is_dir():
        victim = max((p for p in victim.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
        victim.write_bytes(content)
    elif damage == "truncate":
        victim.write_bytes(content[:-1])
    else:
        victim.unlink()
    with pytest.raises(BadInput) as caught:
        restore_params(folder)
    assert caught.value.where == str(victim)
    assert f"delete the folder {folder / '2'} to go on from step 1 (intact)" in str(caught.value)
    shutil.rmtree(folder / "2")  # what the message tells us to do
    assert restore_params(folder)[2]["step"] == 1


def test_every_file_of_a_step_is_in_its_manifest(two_steps):
    for path in (two_steps / "2").rglob("*"):
        if path.is_file():
            assert path.relative_to(two_steps / "2").as_posix() in (two_steps / "2.manifest.json").read_text()


def test_a_flipped_bit_anywhere_in_the_manifest_is_refused(two_steps, tmp_path):
    folder = shutil.copytree(two_steps, tmp_path / "copy")
    manifest = folder / "2.manifest.json"
    whole = manifest.read_bytes()
    for at in range(0, len(whole), 7):
        manifest.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(BadInput):
            verify_step(folder / "2")
    manifest.write_bytes(whole)
    verify_step(folder / "2")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_disk_that_gives_no_answer_is_no_damage(two_steps, tmp_path, monkeypatch, number):
    folder = shutil.copytree(two_steps, tmp_path / "copy")
    manifest, read = folder / f"{finished_steps(folder)[-1]}.manifest.json", Path.read_bytes

    def read_bytes(path):
        if path == manifest:
            raise OSError(number, os.strerror(number), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    for use in (lambda: Checkpoints(folder, keep=2), lambda: restore_params(folder)):
        with pytest.raises(OSError) as error:
            use()
        assert error.value.errno == number
    assert finished_steps(folder) == finished_steps(two_steps)


def test_with_no_intact_step_left_the_message_says_so(two_steps, tmp_path):
    folder = shutil.copytree(two_steps, tmp_path / "copy")
    for step in ("1", "2"):
        (folder / step / "run" / "data.json").unlink()
    with pytest.raises(BadInput, match="no older step here is intact"):
        restore_params(folder)


def test_an_unfinished_step_is_not_used_and_can_be_saved_again(two_steps, tmp_path):
    folder = shutil.copytree(two_steps, tmp_path / "copy")
    (folder / "2.manifest.json").unlink()  # killed between commit and seal
    (folder / "3.orbax-checkpoint-tmp").mkdir()  # killed while writing
    (folder / "9.manifest.tmp").write_text("{")  # killed while sealing
    assert finished_steps(folder) == [1]
    checkpoints = Checkpoints(folder, keep=3)
    assert checkpoints.latest() == 1
    assert sorted(p.name for p in folder.iterdir()) == ["1", "1.manifest.json"]
    checkpoints.save(2, arrays(7), {"moments": arrays(0)}, RUN)
    checkpoints.close()
    np.testing.assert_array_equal(restore_params(folder)[1]["cls"], 7 * np.ones(8))


def test_a_run_goes_on_from_the_last_intact_step(two_steps, tmp_path, capsys):
    folder = shutil.copytree(two_steps, tmp_path / "copy")
    (folder / "2" / "run" / "data.json").unlink()
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.latest() == 1 and checkpoints.read_run()["step"] == 1
    checkpoints.close()
    assert "data.json" in (said := capsys.readouterr().err) and "goes on from step 1" in said
    assert (folder / "damaged-2").is_dir()
    (folder / "1" / "run" / "data.json").unlink()
    with pytest.raises(BadInput, match="no older step here is intact"):
        Checkpoints(folder, keep=2)


def test_a_path_without_checkpoint_is_bad_input(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BadInput, match="finished checkpoint|found nothing"):
            restore_params(path)


def test_one_checkpoint_alone_is_refused(tmp_path):
    with pytest.raises(BadInput, match="keep_checkpoints"):
        Checkpoints(tmp_path, keep=1)


def test_a_failed_background_save_is_an_error_at_the_next_step(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2)

    def no_room(step_folder):
        raise ValueError(f"Error writing: {os.strerror(errno.ENOSPC)}")  # as TensorStore words it

    checkpoints.save(1, arrays(1), {"moments": arrays(0)}, RUN)
    checkpoints.wait()
    monkeypatch.setattr(checkpoint, "write_manifest", no_room)
    checkpoints.save(2, arrays(2), {"moments": arrays(0)}, RUN)
    checkpoints._sealing.exception(timeout=60)
    with pytest.raises(OSError) as caught:
        checkpoints.check()
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path)
    checkpoints.close()
    assert restore_params(tmp_path)[2] == RUN and finished_steps(tmp_path) == [1]


def test_what_ends_one_of_several_processes_does_not_wait_for_a_save_that_cannot_end(tmp_path, monkeypatch):
    checkpoints, goes_on = Checkpoints(tmp_path, keep=2), threading.Event()
    found_here = BadInput("a step", "no number", "one", "look")
    monkeypatch.setattr(checkpoint, "write_manifest", lambda step_folder: goes_on.wait(30))
    checkpoints.save(1, arrays(1), {"moments": arrays(0)}, RUN)
    with monkeypatch.context() as several:
        several.setattr(checkpoint, "jax", types.SimpleNamespace(process_count=lambda: 2))
        checkpoints.ended(OSError, OSError(), None)  # at once
        several.setattr(checkpoint, "LAST_SAVE", 0.1)
        checkpoints.ended(BadInput, found_here, None)
        assert not checkpoints._sealing.done()
        several.setattr(checkpoint, "LAST_SAVE", 30)
        threading.Timer(0.1, goes_on.set).start()
        checkpoints.ended(BadInput, found_here, None)  # what can be saved is
        assert checkpoints._sealing.done()
    checkpoints.ended(None, None, None)


def test_a_process_that_another_one_ends_seals_a_committed_step_and_waits_for_no_commit(tmp_path, monkeypatch):
    checkpoints, goes_on, hashing = Checkpoints(tmp_path, keep=2), threading.Event(), threading.Event()
    write = checkpoint.write_manifest
    monkeypatch.setattr(checkpoint, "write_manifest", lambda step: hashing.set() or goes_on.wait(30) and write(step))
    monkeypatch.setattr(companions, "before_end", companions.before_end)
    checkpoints.save(1, arrays(1), {"moments": arrays(0)}, RUN)
    assert hashing.wait(30)
    threading.Timer(0.1, goes_on.set).start()
    companions.before_end()
    assert finished_steps(tmp_path) == [1]
    monkeypatch.setattr(checkpoint.futures, "wait", lambda *_: pytest.fail("it waits for a commit"))
    checkpoints._let_seal(2, None)  # not there
    checkpoints.close()


def test_arrays_that_fail_when_orbax_waits_no_more_are_no_tracebacks(monkeypatch):
    """A full disk fails several arrays. TensorStore tells of each in a thread of its own, where nobody can catch."""
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: shown.append(str(raised.exc_value)))
    checkpoint._quiet_late_writes.__wrapped__()
    closed = asyncio.new_event_loop()
    closed.close()
    told = threading.Event()

    def breaks(future):
        told.set()
        raise RuntimeError("something else")

    for tell in (lambda future: closed.call_soon_threadsafe(print), breaks):
        promise, future = tensorstore.Promise.new()
        future.add_done_callback(tell)
        threading.Thread(target=promise.set_exception, args=[OSError(errno.ENOSPC, "full")]).start()
    assert told.wait(10)
    for _ in range(100):
        if shown:
            break
        time.sleep(0.05)
    assert shown == ["something else"]
