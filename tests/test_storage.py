"""Files in object stores: verbs, failures, the cache of this host, and stores read from and prepared to them."""

import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from object_stores import Fault, fake_gcs, fake_s3, s3_bucket
from small_stores import mixed_store
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
    with s3_bucket(server, monkeypatch, tmp_path) as made:
        yield made


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
    assert storage.parent("s3://b/x/y") == "s3://b/x" and storage.parent("a/b") == Path("a")
    assert storage.name_of("s3://b/x/y") == "y" and storage.name_of(Path("a/b")) == "b"
    assert storage.absolute("s3://b/x/") == "s3://b/x" and storage.absolute("x") == Path("x").absolute()
    assert storage.is_remote("gs://b/x") and not storage.is_remote("b/x") and not storage.is_remote(Path("gs://b"))
    for wrong in ("gcs://b/x", "http://b/x", "s3:///x", "s3://b/../x", "s3:/b/x", Path("s3://b/x")):
        with pytest.raises(BadInput, match="s3://|gs://|address"):
            storage.place(wrong)


def test_every_verb_does_the_same_everywhere(root, tmp_path):
    a, b = storage.join(root, "a.json"), storage.join(root, "deep/er/b[1].bin")
    assert not storage.exists(root) and storage.file_sizes(root) == {} and storage.list_folder(root) == []
    beside = storage.place(f"{root}2/x")
    storage.write_bytes(beside, b"not below")
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
    storage.move(storage.join(root, "deep"), storage.join(root, "deeper"))
    storage.move(storage.join(root, "large"), storage.join(root, "larger"))
    assert storage.file_sizes(root) == {"a.json": 6, "deeper/er/b[1].bin": 0, "larger": 300_000, "new": 1}
    storage.delete_tree(storage.join(root, "deeper"))
    assert set(storage.file_sizes(root)) == {"a.json", "larger", "new"}
    storage.delete_tree(a)
    storage.delete_tree(root)
    storage.delete_tree(root)
    assert not storage.exists(root) and storage.read_bytes(beside) == b"not below"


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n", b"\n\n", b"\n--", b" ", b"\0"])
def test_a_file_of_any_bytes_comes_back(root, tmp_path, end):
    (tmp_path / "a").write_bytes(data := b"\r\n\n--\r" + bytes(range(256)) + end)
    storage.upload(tmp_path / "a", storage.join(root, "a"), "f" * 64)
    storage.write_bytes(storage.join(root, "b"), data)
    assert storage.read_bytes(storage.join(root, "a")) == data == storage.read_bytes(storage.join(root, "b"))


@pytest.mark.parametrize("root", ["folder", "s3"], indirect=True)  # the emulator of GCS knows no preconditions
def test_only_one_creates(root):
    storage.create_bytes(storage.join(root, "new"), b"1")
    with pytest.raises(BadInput, match="another file"):
        storage.create_bytes(storage.join(root, "new"), b"2")
    assert storage.read_bytes(storage.join(root, "new")) == b"1"


# ---- what goes wrong on the way


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.setattr(storage, "PART", 100_000)


def test_a_dropped_connection_goes_on_with_the_part_it_was_in(s3, parts, tmp_path):
    (tmp_path / "a").write_bytes(data := np.random.default_rng(0).bytes(450_000))
    storage.upload(tmp_path / "a", "s3://bucket/a")
    s3.faults += [Fault("bytes=200000-", cut=30_000), Fault("bytes=400000-", times=2, cut=0)]
    storage.download("s3://bucket/a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == data
    gets = [int(line.split("bytes=")[1].split("-")[0]) for line in s3.requests if "bytes=" in line]
    assert sorted(gets) == [0, 100_000, 200_000, 200_000, 300_000, 400_000, 400_000, 400_000]


def test_a_large_file_goes_in_parts(s3, tmp_path):
    (tmp_path / "a").write_bytes(data := np.random.default_rng(0).bytes(36_000_000))
    s3.faults += [Fault("partNumber=2", 1, 503), Fault("bytes=16777216-", cut=10_000_000)]
    storage.upload(tmp_path / "a", "s3://bucket/a", "f" * 64)
    assert s3.count("PUT", "partNumber") == 4 and storage.recorded_sha256("s3://bucket/a") == "f" * 64
    storage.download("s3://bucket/a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == data and s3.count("GET", "bytes=") == 4


@pytest.mark.parametrize("error", [RuntimeError("Connection closed."), ConnectionResetError(), TimeoutError()])
def test_a_connection_that_ends_between_two_reads(s3, error):
    left = [error]
    assert storage_errors.attempt("s3://bucket/a", lambda: _raise(left.pop()) if left else 7) == 7
    with pytest.raises(BadInput, match="s3://bucket/a: found RuntimeError; expected an answer"):
        storage_errors.attempt("s3://bucket/a", lambda: _raise(RuntimeError("another reason")))


def _raise(error):
    raise error


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_service_is_asked_again(s3, monkeypatch, status):
    pauses = []
    monkeypatch.setattr(storage_errors, "pause", pauses.append)
    s3.faults += [Fault("PUT /bucket/a", 3, status), Fault("GET /bucket/a", 3, status)]
    storage.write_bytes("s3://bucket/a", b"data")
    assert storage.read_bytes("s3://bucket/a") == b"data" and s3.count("PUT /bucket/a") == 4


def test_a_service_that_stays_away_is_given_up(s3, monkeypatch):
    pauses = []
    monkeypatch.setattr(storage_errors, "pause", pauses.append)
    s3.faults.append(Fault("/bucket", 1000, 503))
    with pytest.raises(BadInput, match=r"s3://bucket/a: found HTTP 503, 5 times in a row.*the same command again"):
        storage.read_bytes("s3://bucket/a")
    assert len(pauses) == 4 and all(0.25 * 2**i <= p <= 0.5 * 2**i for i, p in enumerate(pauses))


def test_a_service_that_is_not_there(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(BadInput, match=r"s3://bucket/a: found .*Conn.*5 times in a row"):
        storage.read_bytes("s3://bucket/a")


@pytest.mark.parametrize("status, found", [(404, "no such object"), (403, "access refused"), (401, "access refused")])
def test_a_definite_answer_is_not_asked_for_again(s3, status, found):
    storage.write_bytes("s3://bucket/a", b"data")
    s3.faults.append(Fault("/bucket/a", 1000, status))
    s3.requests.clear()
    with pytest.raises(BadInput, match=f"s3://bucket/a: found {found}.*expected") as error:
        storage.read_bytes("s3://bucket/a")
    assert s3.count("/bucket/a") == 1 and isinstance(error.value, storage.Missing) == (status == 404)
    assert ("AWS_ACCESS_KEY_ID" in str(error.value)) == (status != 404)


def test_wrong_and_missing_credentials(s3, monkeypatch):
    import fsspec

    with monkeypatch.context() as patched:
        patched.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)  # from now on it knows nobody
        with pytest.raises(BadInput, match=r"s3://bucket/a: found access refused \(HTTP 403\).*AWS_ACCESS_KEY_ID"):
            storage.write_bytes("s3://bucket/a", b"x")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(BadInput, match=r"s3://bucket/a: found no usable credentials; expected .*AWS_PROFILE"):
        storage.read_bytes("s3://bucket/a")


@pytest.mark.parametrize("scheme, package, extra", [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")])
def test_a_missing_package_is_named(monkeypatch, scheme, package, extra):
    from fsspec import get_filesystem_class

    known = sys.modules[get_filesystem_class.__module__]._registry
    for name in list(known):
        monkeypatch.delitem(known, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadInput, match=rf"{scheme}://b/x: found no package {package}.*'csfm_jax\[{extra}\]'"):
        storage.read_bytes(f"{scheme}://b/x")


def test_the_error_of_a_local_file_stays_one(s3, tmp_path):
    with pytest.raises(storage.Missing, match="none"):
        storage.upload(tmp_path / "none", "s3://bucket/a")
    storage.write_bytes("s3://bucket/a", b"x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError):
        storage.download("s3://bucket/a", tmp_path / "file" / "b")


@pytest.mark.parametrize("name", ["sweep[1]", "run*", "r?n"])
def test_a_name_is_never_a_pattern(root, name):
    others = [storage.join(root, other, "b*.bin") for other in ("sweep1", "run", "running")]
    for other in others:
        storage.write_bytes(other, b"of another run")
    for victim in ("b*.bin", "deep/b[1].bin"):
        storage.write_bytes(storage.join(root, name, victim), b"")
    storage.delete_tree(storage.join(root, name, "b*.bin"))
    assert storage.file_sizes(storage.join(root, name)) == {"deep/b[1].bin": 0}
    storage.move(storage.join(root, name), storage.join(root, f"{name}x"))
    assert list(storage.file_sizes(storage.join(root, f"{name}x"))) == ["deep/b[1].bin"]
    storage.delete_tree(storage.join(root, f"{name}x"))
    assert sorted(storage.file_sizes(root)) == ["run/b*.bin", "running/b*.bin", "sweep1/b*.bin"]


def test_a_lost_connection_is_no_empty_folder(s3, monkeypatch, tmp_path):
    async def lost(*_, **__):
        raise ConnectionResetError

    storage.write_bytes("s3://bucket/root/a/b", b"")
    assert storage.list_folder("s3://bucket/none") == storage.glob("s3://bucket/none", "*/b") == []
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "_ls", lost)
    for listed in (lambda: storage.list_folder("s3://bucket/root"), lambda: storage.glob("s3://bucket/root", "*/b")):
        with pytest.raises(BadInput, match="ConnectionResetError, 5 times in a row"):
            listed()
    monkeypatch.setattr(Path, "iterdir", lambda folder: os.stat(folder / "away" / "x"))
    (tmp_path / "away").symlink_to("away")  # one error of many that say nothing of what is in a folder
    with pytest.raises(OSError):
        storage.list_folder(tmp_path)


def test_writing_leaves_the_mask_of_new_files_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: 1 / 0)  # of the process: other threads write files meanwhile
    storage.write_bytes(tmp_path / "new", b"")
    (tmp_path / "as usual").write_bytes(b"")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "as usual").stat().st_mode


def test_a_bucket_is_never_removed(s3):
    with pytest.raises(BadInput, match="whole bucket"):
        storage.delete_tree("s3://bucket/")


# ---- stores read from there

LOCAL_TOKENS = TokenConfig(modalities=("ecg", "ppg", "resp"))
DATA = DataConfig(rows=4, row_tokens=1408, row_visible=0, row_windows=12, mask=MaskConfig())


def tokenizer(texts, subjects):
    return text.train_tokenizer(texts, subjects, minimum_subjects=2).to_str()


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two stores in folders."""
    folder = tmp_path_factory.mktemp("stores")
    return [
        mixed_store(folder / "a", 30, "a", ("train", "validation"), report_every=2, tokenizer=tokenizer, seed=1),
        mixed_store(folder / "b", 25, "b", gaps=4, seed=2),
    ]


def test_a_store_there_is_the_store_here(stores, root):
    for store in stores:
        send(store, storage.join(root, store.name))
    found = open_stores(str(root))
    assert [(s.name, s.path) for s in found] == [(n, storage.join(root, n)) for n in "ab"]
    assert open_stores(f"{root}/b, {stores[0].path}")[0].digest == stores[1].digest
    for here, there in zip(stores, found):
        assert there.reports() == here.reports() and there.read_file("tokenizer.json") == here.read_file(
            "tokenizer.json"
        )
        for table in ("labels", "events", "quality"):
            mine, other = getattr(here, table)(), getattr(there, table)()
            assert mine.keys() == other.keys() and all(np.array_equal(mine[k], other[k], True) for k in mine)
        for i in range(len(here.index)):
            for a, b in zip(here.read_blocks(i, 0.5, 2), pickle.loads(pickle.dumps(there)).read_blocks(i, 0.5, 2)):
                np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_remote_store_are_those_of_the_local_one(stores, s3, tmp_path, workers):
    there = [send(store, f"s3://bucket/all/{store.name}") for store in stores]
    data = DataConfig(**{**DATA.__dict__, "workers": workers})
    one = loader.make_loader(stores, LOCAL_TOKENS, DATA, plans_dir=tmp_path / "plans")
    two = loader.make_loader(open_stores("s3://bucket/all"), LOCAL_TOKENS, data, plans_dir=tmp_path / "other")
    try:
        for _ in range(6):
            a, b = next(one), next(two)
            for name, x, y in zip(a._fields, a, b):
                np.testing.assert_array_equal(x, y, err_msg=name)
    finally:
        one.close()
        two.close()
    assert s3.count("GET", "array_record") == len(there)  # each shard came once, whoever read it


@pytest.fixture
def remote(stores, s3):
    """The first store at s3://, and the name of its shard."""
    address = send(stores[0], "s3://bucket/stores/a")
    return address, "shards/shard-00000-of-00001.array_record"


def cached(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache").iterdir() if p.name != ".lock")


def test_a_flipped_byte_is_refused_and_not_kept(stores, remote, tmp_path):
    address, name = remote
    entry = stores[0].manifest["files"][name]
    data = bytearray((stores[0].path / name).read_bytes())
    data[len(data) // 2] ^= 4
    storage.write_bytes(f"{address}/{name}", data)
    store = Store.open(address)  # nothing is downloaded only to be checked
    for _ in range(2):
        with pytest.raises(
            BadInput, match=rf"s3://.*{name}: found content of SHA-256 [0-9a-f]{{64}}.*{entry['sha256']}"
        ):
            store.read_blocks(0, 0, 1)
    assert not [n for n in cached(tmp_path) if "array_record" in n]
    storage.upload(stores[0].path / name, f"{address}/{name}")
    assert store.read_blocks(0, 0, 1)


def test_sizes_are_compared_when_a_store_is_opened(stores, remote):
    address, name = remote
    data = (stores[0].path / name).read_bytes()
    storage.write_bytes(f"{address}/{name}", data[:-1])
    for verify in ("full", "size"):
        with pytest.raises(BadInput, match=f"{name}: found {len(data) - 1} bytes; expected {len(data)} bytes"):
            Store.open(address, verify)
    storage.delete_tree(f"{address}/{name}")
    with pytest.raises(BadInput, match=f"{name}: found no such object"):
        Store.open(address)
    storage.write_bytes(f"{address}/manifest.json", b"{}")
    with pytest.raises(BadInput, match="s3://bucket/stores/a/manifest.json: found changed bytes"):
        Store.open(address)
    storage.delete_tree(f"{address}/manifest.json")
    with pytest.raises(BadInput, match="s3://bucket/stores/a: found no manifest.json"):
        Store.open(address)
    with pytest.raises(BadInput, match="s3://bucket/none: found no such folder"):
        open_stores("s3://bucket/none")


def test_a_store_replaced_under_a_run_is_noticed(remote, stores):
    pickled = pickle.dumps(Store.open(remote[0]))
    send(stores[1], remote[0])
    with pytest.raises(BadInput, match="another store than when the run began"):
        pickle.loads(pickled)


def test_what_a_killed_download_left_is_not_trusted(stores, remote, tmp_path):
    address, name = remote
    entry = stores[0].manifest["files"][name]
    (tmp_path / "cache").mkdir()
    path = tmp_path / "cache" / f"{entry['sha256']}.array_record"
    Path(f"{path}.part").write_bytes(bytes(entry["size"]))
    path.write_bytes(b"cut short by hand")
    Store.open(address).read_blocks(0, 0, 1)
    assert path.read_bytes() == (stores[0].path / name).read_bytes() and not Path(f"{path}.part").exists()


def _read(address, barrier, queue):
    store = Store.open(address, "size")
    barrier.wait()
    queue.put(int(store.read_blocks(0, 0, 1)[0][1].astype(np.int64).sum()))


def test_processes_that_want_a_file_at_once_download_it_once(stores, remote, s3, parts):
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_read, args=(remote[0], barrier, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    expected = int(stores[0].read_blocks(0, 0, 1)[0][1].astype(np.int64).sum())
    assert [queue.get(timeout=120) for _ in workers] == [expected] * 3
    for worker in workers:
        worker.join()
    assert s3.count("GET", "array_record") == 1 and s3.count("GET", "index.parquet") == 1


def test_who_waits_for_a_file_does_not_wait_for_those_who_use_it(tmp_path, monkeypatch):
    """Locks belong to open files, so that threads stand for processes. Each keeps its lease until all have one."""

    def slowly(address, file, **_):
        time.sleep(0.02)
        file.write(bytes(10))

    monkeypatch.setenv("CSFM_CACHE", str(tmp_path))
    monkeypatch.setattr(store_cache, "download_into", slowly)
    cache, leases = store_cache.StoreCache(), []

    def take(sha256):
        leases.append(cache.take("s3://b/x", 10, sha256))

    for i in range(25):
        threads = [threading.Thread(target=take, args=(str(i),), daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert len(leases) == 4 * (i + 1), "a thread waits for a lease that another holds"


@pytest.fixture
def forked():
    """A function that forks a process which holds all open files until the test ends."""
    children, (end, begin) = [], os.pipe()

    def fork():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # there are other threads: the child does nothing but wait
            if (child := os.fork()) == 0:
                os.close(begin)
                os.read(end, 1)
                os._exit(0)
        children.append(child)

    yield fork
    os.close(begin)
    for child in children:
        os.waitpid(child, 0)
    os.close(end)


def test_a_process_that_is_forked_takes_no_lock_with_it(tmp_path, monkeypatch, forked):
    def and_forks(address, file, **_):
        forked()
        file.write(bytes(10))

    monkeypatch.setenv("CSFM_CACHE", str(tmp_path))
    monkeypatch.setattr(store_cache, "download_into", and_forks)
    cache, leases = store_cache.StoreCache(), []

    def taken() -> bool:
        thread = threading.Thread(target=lambda: leases.append(cache.take("s3://b/x", 10, "1")), daemon=True)
        thread.start()
        thread.join(timeout=5)
        return bool(leases)

    assert taken(), "the lock of the fetched part lives on in the child"
    forked()
    path = leases[0].path
    assert not store_cache._remove(path)
    leases.clear()
    assert store_cache._remove(path), "the lease lives on in the child"


def test_a_lease_ends_in_its_own_process_only(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    lease = store_cache._leased(tmp_path / "file", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if (child := os.fork()) == 0:
            lease.__del__()
            os._exit(0)
    os.waitpid(child, 0)
    assert not store_cache._remove(lease.path)


def test_room_that_is_promised_is_counted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CSFM_CACHE", str(tmp_path / "cache"))
    disk = shutil.disk_usage(tmp_path)._replace(total=10**9, free=5 * 10**8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    cache = store_cache.StoreCache()
    assert cache.room() == 4 * 10**8
    for i in range(4):
        with open(cache.folder / f"{i}.part", "wb") as part:
            part.truncate(10**8)  # fetched by another process: it has its size, and no block of the disk yet
    assert cache.room() == 4 * 10**8


class Cached:
    """Files of 1000 bytes in a remote place, and a cache of so many bytes."""

    def __init__(self, monkeypatch, limit):
        monkeypatch.setenv("CSFM_CACHE_GB", str(limit / 1e9))
        self.cache, self.names = store_cache.StoreCache(), {}
        for i in range(5):
            storage.write_bytes(f"s3://bucket/{i}", bytes([i]) * 1000)

    def take(self, i, spare=lambda: False):
        import hashlib

        digest = hashlib.sha256(bytes([i]) * 1000).hexdigest()
        self.names[digest] = i
        return self.cache.take(f"s3://bucket/{i}", 1000, digest, spare)

    def held(self):
        return sorted(self.names[p.name] for p in self.cache.folder.iterdir() if p.name != ".lock")


def test_the_least_recently_used_go_first_and_files_in_use_stay(s3, monkeypatch):
    files = Cached(monkeypatch, 3000)
    for i in (0, 1, 2, 0):
        files.take(i)
    (files.cache.folder / ("f" * 64 + ".part")).write_bytes(bytes(500))  # of a killed process
    files.take(3)
    assert files.held() == [0, 2, 3]
    leases = [files.take(i) for i in (0, 2, 3)]
    assert files.take(4).path.read_bytes() == bytes([4]) * 1000
    assert files.held() == [0, 2, 3, 4]  # nothing could go
    lent = [leases.pop(0)]
    files.take(1, spare=lambda: bool(lent) and lent.pop() is not None)
    assert files.held() == [1, 2, 3]  # 4, and then what this process could spare
    assert [lease.path.read_bytes()[0] for lease in leases] == [2, 3]


def test_a_full_disk_is_told_as_one(s3, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    files = Cached(monkeypatch, 3000)
    with monkeypatch.context() as patched:
        patched.setattr(store_cache, "download_into", full)
        with pytest.raises(OSError, match="No space left") as error:
            files.take(0)
    assert error.value.filename == str(files.cache.folder) and files.held() == []
    assert files.take(0).path.read_bytes() == bytes(1000)


def test_a_file_larger_than_the_cache_and_a_limit_that_is_none(s3, monkeypatch, recwarn, stores):
    with pytest.raises(BadInput, match=r"s3://bucket/0: found a file of 1000 bytes.*999 bytes.*CSFM_CACHE_GB"):
        Cached(monkeypatch, 999).take(0)
    with pytest.warns(UserWarning, match="downloaded again and again.*CSFM_CACHE_GB"):
        with pytest.raises(BadInput, match="larger than the cache"):
            Store.open(send(stores[1], "s3://bucket/b"))
    for wrong in ("none", "0", "-3", "nan"):
        monkeypatch.setenv("CSFM_CACHE_GB", wrong)
        with pytest.raises(BadInput, match="CSFM_CACHE_GB"):
            store_cache.StoreCache()


def test_a_store_larger_than_the_cache_is_read_whole(s3, monkeypatch, tmp_path):
    """Four shards, room for two: each read is right, and the process gives up what it has open."""
    here = prepare(Cohort(subjects=40), tmp_path / "s", shards=4)
    address = send(Store.open(here.path), "s3://bucket/s")
    sizes = sorted(p.stat().st_size for p in (tmp_path / "s" / "shards").iterdir())
    room = sizes[-1] + sizes[-2] + 10_000
    monkeypatch.setenv("CSFM_CACHE_GB", str(room / 1e9))
    with pytest.warns(UserWarning, match="again and again"):
        there, local = Store.open(address), Store.open(here.path)
    for i in np.random.default_rng(0).permutation(len(local.index)):
        for a, b in zip(local.read_blocks(i, 0, 5), there.read_blocks(i, 0, 5)):
            np.testing.assert_array_equal(a[1], b[1])
        assert sum(p.stat().st_size for p in (tmp_path / "cache").iterdir()) <= room
    assert s3.count("GET", "array_record") > 4


# ---- stores prepared to there


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("prepare") / "whole"
    prepare(Cohort(), path, shards=3, keep_reports=True)
    return content(path)


def remote_content(address):
    return {name: storage.read_bytes(storage.join(address, name)) for name in storage.file_sizes(address)}


@pytest.mark.parametrize("root", ["s3", "gs"], indirect=True)
def test_prepared_there_it_is_what_is_prepared_here(root, whole, tmp_path):
    staging = tmp_path / "staging"
    for state in ("written", "verified"):
        summary = prepare(Cohort(), root, staging=staging, shards=3, keep_reports=True)
        assert summary.state == state and str(summary).startswith(f"{root}: 24 recordings")
        assert remote_content(root) == whole
    assert len(Store.open(root).index) == 24
    with pytest.raises(BadInput, match=f"{root}: found a store made with another shards"):
        prepare(Cohort(), root, staging=tmp_path / "other", shards=2, keep_reports=True)
    assert remote_content(root) == whole


KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
from test_prepare import Cohort
from data_pipelines import prepare, storage
left, upload, write = [{after}], storage.upload, storage.write_bytes
def dying(action):
    def step(*args):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        action(*args)
    return step
storage.upload, storage.write_bytes = dying(upload), dying(write)
prepare.store_upload._FILES_AT_ONCE = 1
prepare.prepare(Cohort(), "s3://bucket/s", shards=3, keep_reports=True)
"""


def test_killed_while_sending_it_sends_what_is_missing(whole, s3, tmp_path, monkeypatch):
    root = Path(__file__).resolve().parents[1]
    for after in (0, 5):
        code = KILLED.format(paths=[str(root), str(root / "tests")], after=after)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        with pytest.raises(BadInput, match="s3://bucket/s: found an unfinished store"):
            Store.open("s3://bucket/s")
        with pytest.raises(BadInput, match="another shards"):  # what has begun is not mixed with another store
            prepare(Cohort(), "s3://bucket/s", shards=2, keep_reports=True)
    read = []
    monkeypatch.setattr(Cohort, "read", lambda self, entry: read.append(entry))
    summary = prepare(Cohort(), "s3://bucket/s", shards=3, keep_reports=True)
    assert summary.state == "written" and not read and remote_content("s3://bucket/s") == whole
    puts = [line.split()[1].partition("?")[0] for line in s3.requests if line.startswith("PUT /bucket/s/")]
    assert sorted(set(puts)) == sorted(puts) and len(puts) == len(whole) + 1  # every file once, and the plan
    assert puts[0].endswith(".partial/plan.json") and puts[-1].endswith("/manifest.json")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_object_of_the_same_size_but_other_content_is_sent_again(whole, s3, tmp_path):
    name = "index.parquet"
    store_upload.claim("s3://bucket/s", prepare_plan := Store.open(_made(tmp_path)).manifest["plan"])
    storage.write_bytes(f"s3://bucket/s/{name}", bytes(len(whole[name])))
    assert prepare(Cohort(), "s3://bucket/s", shards=3, keep_reports=True).state == "written"
    assert remote_content("s3://bucket/s") == whole and prepare_plan["shards"] == 3
    storage.write_bytes(f"s3://bucket/s/{name}", bytes(len(whole[name])))
    with pytest.raises(BadInput, match=f"s3://bucket/s/{name}: found no such object, or another one"):
        prepare(Cohort(), "s3://bucket/s", shards=3, keep_reports=True)


def _made(tmp_path):
    return prepare(Cohort(), tmp_path / "made", shards=3, keep_reports=True).path


def test_a_store_that_another_job_finishes_meanwhile_is_finished(tmp_path, monkeypatch):
    made = mixed_store(tmp_path / "a", 4, "a")
    seen = {store_upload._PLAN: 1}  # a moment ago
    monkeypatch.setattr(storage, "file_sizes", lambda _: seen)
    assert store_upload.claim(made.path, made.manifest["plan"])["digest"] == made.digest
    with pytest.raises(BadInput, match="no such folder"):
        store_upload.claim(tmp_path / "none", made.manifest["plan"])


def test_files_that_are_no_store_are_left_alone(s3):
    storage.write_bytes("s3://bucket/s/precious.txt", b"x")
    with pytest.raises(BadInput, match="s3://bucket/s: found 1 files that are no store"):
        prepare(Cohort(), "s3://bucket/s")
    assert remote_content("s3://bucket/s") == {"precious.txt": b"x"}


def test_jobs_of_an_array_send_one_store(whole, s3, tmp_path):
    options = {"shards": 3, "keep_reports": True, "runner": "shard"}
    with pytest.raises(BadInput, match="--staging: found nothing.*a folder that all jobs share"):
        prepare(Cohort(), "s3://bucket/s", share=(0, 2), **options)
    states = [prepare(Cohort(), "s3://bucket/s", staging=tmp_path / "x", share=(i, 2), **options) for i in (0, 1, 0)]
    assert [s.state for s in states] == ["partial", "written", "verified"]
    assert remote_content("s3://bucket/s") == whole


def test_the_command(s3, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("data_pipelines.datasets.open_sources", lambda *_: [Cohort(subjects=3)])
    assert cli.main(["prepare", "--source=x", "--output=s3://bucket/s"]) == 0
    assert capsys.readouterr().out.startswith("s3://bucket/s: 6 recordings of 3 subjects")
    assert cli.main(["data", "s3://bucket/s"]) == 0
    assert "cohort  (s3://bucket/s" in capsys.readouterr().out
    assert cli.main(["prepare", "--source=x", "--output=gcs://bucket/s"]) == 2
    assert "kind 'gcs'" in capsys.readouterr().err
    assert cli.main(["prepare", "--source=x", f"--output={tmp_path / 's'}", "--staging=x"]) == 2
    assert "leave it out" in capsys.readouterr().err
