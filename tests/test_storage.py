"""Files in object stores: verbs, failures, the cache of this host, and stores read from and prepared to them."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from object_stores import Fault, fake_gcs, fake_s3, proxy
from small_stores import mixed_store, write_store
from small_stores import recording as made_recording
from test_prepare import Cohort, content

from csfm_jax import cli
from data_pipelines import loader, storage, storage_errors, store_cache, store_upload, text
from data_pipelines.config import DataConfig, MaskConfig, TokenConfig
from data_pipelines.errors import BadInput
from data_pipelines.prepare import prepare
from data_pipelines.store import Store, open_stores

for _package in ("s3fs", "moto", "flask", "flask_cors"):
    pytest.importorskip(_package, reason=f"no {_package}: object stores are not tested")


@pytest.fixture(scope="module")
def server():
    with fake_s3() as url:
        yield url


@pytest.fixture
def s3(server, monkeypatch, tmp_path):
    """A proxy in front of an S3 with an empty bucket "bucket", pauses left out, and an empty cache."""
    import boto3
    import fsspec

    environment = {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": str(tmp_path / "no"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no"), "CSFM_CACHE": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path / "tmp"), "AWS_ENDPOINT_URL": server,
    }  # fmt: skip
    (tmp_path / "tmp").mkdir()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(storage_errors, "pause", lambda seconds: None)
    bucket = boto3.resource("s3", endpoint_url=server).Bucket("bucket")
    bucket.create()
    with proxy(server) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        yield made
    bucket.objects.delete()
    bucket.delete()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(params=["folder", "s3", "gs"])
def root(request, tmp_path, monkeypatch):
    """A place of each kind, empty."""
    if request.param == "folder":
        yield tmp_path / "root"
    elif request.param == "s3":
        request.getfixturevalue("s3")
        yield "s3://bucket/root"
    else:
        pytest.importorskip("gcsfs", reason="no gcsfs: gs:// is not tested")
        pytest.importorskip("gcp_storage_emulator", reason="no gcp_storage_emulator: gs:// is not tested")
        import fsspec

        with fake_gcs() as url:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
            monkeypatch.setattr(storage_errors, "pause", lambda seconds: None)
            monkeypatch.setenv("CSFM_CACHE", str(tmp_path / "cache"))
            yield "gs://bucket/root"
        fsspec.get_filesystem_class("gs").clear_instance_cache()


def send(store, address):
    """Copies a store's folder to a remote place."""
    for name in content(store.path):
        storage.upload(store.path / name, storage.join(address, name))
    return address


# ---- the verbs


def test_places():
    assert storage.place("a/b") == Path("a/b") and storage.place(Path("x")) == Path("x")
    assert storage.place("s3://b//x/y/") == "s3://b/x/y" and storage.place("gs://b") == "gs://b"
    assert storage.join("s3://b/x", "y", "z.json") == "s3://b/x/y/z.json" and storage.join("a", "b") == Path("a/b")
    assert storage.is_remote("gs://b/x") and not storage.is_remote("b/x") and not storage.is_remote(Path("gs://b"))
    for wrong in ("gcs://b/x", "http://b/x", "s3:///x", "s3://b/../x", "s3:/b/x", Path("s3://b/x")):
        with pytest.raises(BadInput, match="s3://|gs://|address"):
            storage.place(wrong)


def test_every_verb_does_the_same_everywhere(root, tmp_path):
    a, b = storage.join(root, "a.json"), storage.join(root, "deep/er/b[1].bin")
    assert not storage.exists(root) and storage.file_sizes(root) == {} and storage.list_folder(root) == []
    storage.write_bytes(a, b"first")
    storage.write_bytes(a, b"second")
    storage.write_bytes(b, b"")
    assert storage.read_bytes(a) == b"second" and storage.read_bytes(b) == b""
    assert storage.exists(a) and storage.exists(storage.join(root, "deep")) and not storage.exists(f"{a}x")
    assert storage.file_size(a) == 6 and storage.file_sizes(root) == {"a.json": 6, "deep/er/b[1].bin": 0}
    assert storage.list_folder(root) == [a, storage.join(root, "deep")]
    assert storage.glob(root, "*.json") == [a] and storage.glob(root, "*/*/*.bin") == [b]
    storage.create_bytes(storage.join(root, "new"), b"1")
    storage.create_bytes(storage.join(root, "new"), b"1")  # as after a try whose answer was lost
    for missing in (lambda p: storage.read_bytes(p), lambda p: storage.file_size(p)):
        with pytest.raises(storage.Missing, match="no such.*expected.*correct the path"):
            missing(storage.join(root, "none"))
    large = tmp_path / "large"
    large.write_bytes(np.random.default_rng(0).bytes(300_000))
    storage.upload(large, storage.join(root, "large"))
    digest = storage.download(storage.join(root, "large"), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == large.read_bytes() and len(digest) == 64
    storage.delete_tree(storage.join(root, "deep"))
    assert set(storage.file_sizes(root)) == {"a.json", "large", "new"}
    storage.delete_tree(a)
    storage.delete_tree(root)
    storage.delete_tree(root)
    assert not storage.exists(root)


def test_only_one_creates(root, request):
    if str(root).startswith("gs://"):
        pytest.skip("the emulator does not know preconditions")
    storage.create_bytes(storage.join(root, "new"), b"1")
    with pytest.raises(BadInput, match="another file"):
        storage.create_bytes(storage.join(root, "new"), b"2")
    assert storage.read_bytes(storage.join(root, "new")) == b"1"
