"""One run at a time in a work directory: by a lock in a folder, by a claim in an object store."""

import errno
import os
import subprocess
import sys
import time

import pytest
from object_stores import Fault, fake_s3, s3_bucket

from csfm_jax.training import claim
from csfm_jax.training.claim import Claim, locked
from csfm_jax.training.remote import Workdir
from data_pipelines import storage
from data_pipelines.config import DataConfig, TokenConfig
from data_pipelines.errors import BadInput
from data_pipelines.loader import make_loader
from data_pipelines.store import open_stores

THERE = "s3://bucket/runs/one"


def test_a_second_run_in_a_folder_is_refused_and_the_first_one_named(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "PATIENCE", 0.0)
    with Workdir(tmp_path):
        with pytest.raises(BadInput, match=rf"another run is writing \(process {os.getpid()} on ") as error:
            Workdir(tmp_path).__enter__()
        assert error.value.where == str(tmp_path)
    with Workdir(tmp_path), Workdir(tmp_path / "another"):
        pass


def test_a_lock_ends_with_its_process(tmp_path):
    held = "import pathlib, sys; from csfm_jax.training.claim import locked\n"
    held += "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", held, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        process.kill()
        with locked(tmp_path):  # waits a little for a process that is being killed
            pass


def test_a_disk_without_locks_is_told_once_and_the_run_goes_on(tiny_stores, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claim.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks")))
    with locked(tmp_path):  # and its plans, on the same disk, are made
        stores = open_stores(str(tiny_stores), "size")
        tokens = TokenConfig(modalities=("ecg", "ppg"), text_length=0)
        data = DataConfig(rows=2, row_tokens=1408, row_windows=8)
        made = make_loader(stores, tokens, data, plans_dir=tmp_path / "plans")
        assert (next(made).channel > 0).any() and list((tmp_path / "plans").glob("epoch-0-*"))
        made.close()
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path}: found a disk that gives no lock (no locks)") and said.count("\n") == 1


@pytest.fixture
def s3(monkeypatch, tmp_path):
    for package in ("s3fs", "moto", "flask", "flask_cors"):
        pytest.importorskip(package, reason=f"no {package}: object stores are not tested")
    monkeypatch.setattr(claim, "BEAT", 0.2)
    with fake_s3() as server, s3_bucket(server, monkeypatch, tmp_path) as made:
        yield made


def as_on(host: str, monkeypatch) -> None:
    monkeypatch.setattr(claim, "_self", lambda: {"host": host, "process": 1})


def test_a_run_that_lives_keeps_its_claim_and_one_that_was_killed_loses_it(s3, monkeypatch):
    as_on("a", monkeypatch)
    with Claim(THERE) as one:
        s3.faults.append(Fault("GET /bucket/runs/one/claim.json", 1, 403))  # a failure costs a renewal, not the claim
        as_on("b", monkeypatch)
        while any(fault.times for fault in s3.faults):
            time.sleep(0.02)
        with pytest.raises(BadInput, match=r"another run is writing \(process 1 on a\)"):
            Claim(THERE).__enter__()
        one.confirm()
        one._ended.set()  # as if it was killed
        one._renewing.join()
        with Claim(THERE) as two:
            two.confirm()
            with pytest.raises(BadInput, match=r"\(process 1 on b\)"):
                one.confirm()
    assert not storage.exists(THERE)


def test_after_a_process_of_this_host_that_is_gone_nobody_waits(s3, monkeypatch):
    monkeypatch.setattr(claim.time, "sleep", lambda _: 1 / 0)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = claim._self()
    for left in (here | {"process": ended.pid}, here):  # the second: of an earlier container with the same numbers
        storage.write_bytes(f"{THERE}/claim.json", claim.json.dumps(left).encode())
        with Claim(THERE):
            pass
    storage.write_bytes(f"{THERE}/claim.json", claim.json.dumps(here | {"process": os.getppid()}).encode())
    with pytest.raises(ZeroDivisionError):  # it lives: this run waits
        Claim(THERE).__enter__()
