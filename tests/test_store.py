"""Stores: what is written is what is read, and nothing changed is read."""

import json
import multiprocessing
import pickle
import shutil
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import store_format, store_writer
from data_pipelines.errors import BadInput
from data_pipelines.preprocess import INVALID, SPECS, PreparedRecording
from data_pipelines.signals import CHANNEL_ID, modality_of
from data_pipelines.store import Store, open_stores
from data_pipelines.store_format import chunk_count, chunk_samples, sample_count
from data_pipelines.store_writer import StoredRecording, StoreWriter

SPEC = SPECS["csfm-jax"]


def prepared(seconds, names=("II", "PPG", "RESP", "SpO2"), seed=0):
    rng, milliseconds = np.random.default_rng(seed), int(seconds * 1000)
    ids = sorted(CHANNEL_ID[n] for n in names)
    samples = [
        rng.integers(-32768, 32767, sample_count(milliseconds, modality_of(i).rate)).astype(np.int16) for i in ids
    ]
    return PreparedRecording(np.array(ids, np.int32), samples, milliseconds / 1000, [])


def write(path, shards=2, name="small"):
    made = [prepared(10.24), prepared(150.5, seed=1), prepared(7.3, ("I", "II", "V1"), seed=2), prepared(60, seed=3)]
    writer = StoreWriter(path, name=name, spec=SPEC, shards=shards)
    for shard in range(shards):
        writer.write_shard(
            shard,
            [
                StoredRecording(
                    f"{i:016x}", f"{100 + i:016x}", ("train", "validation", "test")[i % 3], p,
                    report=f"sinus rhythm, case {i}" if i % 2 else None, labels={"age": 40.0 + i, "sex": float("nan")},
                )
                for i, p in enumerate(made)
                if i % shards == shard
            ],
        )  # fmt: skip
    order = [i for shard in range(shards) for i in range(len(made)) if i % shards == shard]
    quarantine = [{"ordinal": 9, "study": "f" * 16, "reason": "flat"}]
    return writer.finish(quarantine=quarantine, tokenizer=lambda *_: '{"model": 1}'), [made[i] for i in order]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write(tmp_path_factory.mktemp("store") / "small")


def test_round_trip(small):
    store, made = small
    store = Store.open(store.path)
    index = store.index
    assert store.name == "small" and store.spec == SPEC and len(index) == 4
    assert index.subject.dtype == "S16" and index.study[0] == b"0000000000000064"
    assert index.split.tolist() == [0, 2, 1, 0] and index.shard.tolist() == [0, 0, 1, 1]
    assert index.first.tolist() == [0, 1, 0, 3] and index.chunks.tolist() == [1, 1, 3, 1]
    np.testing.assert_allclose(index.seconds, [p.seconds for p in made])
    for recording, p in enumerate(made):
        assert index.channel_sets[index.channel_set[recording]] == tuple(p.channels)
        read = store.read_window(recording, 0, p.seconds)
        assert [c for c, _ in read] == list(p.channels)
        for (_, samples), expected in zip(read, p.samples):
            np.testing.assert_array_equal(samples[: len(expected)], expected)
            assert np.all(samples[len(expected) :] == INVALID) and len(samples) - len(expected) <= 1
    np.testing.assert_array_equal(store.labels()["age"], [40, 42, 41, 43])
    assert "sex" not in store.labels()
    assert store.reports() == [None, None, "sinus rhythm, case 1", "sinus rhythm, case 3"]
    assert index.has_report.tolist() == [False, False, True, True]
    totals = store.manifest["totals"]
    assert totals["recordings"] == totals["subjects"] == 4 and totals["splits"]["train"] == 2
    assert totals["hours"]["ppg"] == pytest.approx((10.24 + 150.5 + 60) / 3600, abs=1e-6)
    assert not (store.path / ".partial").exists()


@given(st.floats(0, 150.4), st.floats(0.05, 150))
@settings(max_examples=100, deadline=None)
def test_any_window(small, start, seconds):
    """Across chunk borders, at any start, for every rate."""
    store, made = small
    seconds = min(seconds, 150.5 - start)
    for (channel, samples), whole in zip(store.read_window(2, start, seconds), made[2].samples):
        rate = modality_of(channel).rate
        first, count = int(start * rate + 0.5), int(seconds * rate + 0.5)
        assert len(samples) == count
        expected = whole[first : first + count]
        np.testing.assert_array_equal(samples[: len(expected)], expected)
        assert count - len(expected) <= 1 and np.all(samples[len(expected) :] == INVALID)


@given(st.integers(1, 10_000_000), st.sampled_from([1, 25, 125, 200, 250, 2000]))
def test_chunks_hold_every_sample_once(milliseconds, rate):
    sizes = [chunk_samples(milliseconds, rate, c) for c in range(chunk_count(milliseconds))]
    assert sum(sizes) == sample_count(milliseconds, rate) and all(s == 60 * rate for s in sizes[:-1])


def test_blocks_are_the_same_samples(small):
    store, _ = small
    blocks = store.read_blocks(2, 30.0, 60.0)
    assert [channels for channels, _ in blocks] == [(2, 13), (CHANNEL_ID["RESP"],), (CHANNEL_ID["SpO2"],)]
    rows = [row for _, block in blocks for row in block]
    for (_, samples), row in zip(store.read_window(2, 30.0, 60.0), rows):
        np.testing.assert_array_equal(samples, row)


@pytest.mark.parametrize("start, seconds", [(-1, 5), (0, 11), (10.2, 1), (0, 0), (float("nan"), 1)])
def test_a_window_outside_is_a_programming_error(small, start, seconds):
    with pytest.raises(ValueError, match="window of"):
        small[0].read_window(0, start, seconds)


def _child(store, queue):
    queue.put([samples.sum() for _, samples in store.read_window(2, 55, 10)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_readable_in_worker_processes(small, method):
    store, _ = small
    expected = [samples.sum() for _, samples in store.read_window(2, 55, 10)]  # the parent's reader is open
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=_child, args=(store, queue))
    worker.start()
    assert queue.get(timeout=60) == expected
    worker.join()
    assert worker.exitcode == 0


def test_readable_from_many_threads(small):
    store = Store.open(small[0].path, verify="size")
    wrong = []

    def read(seed):
        rng = np.random.default_rng(seed)
        for _ in range(40):
            start = float(rng.uniform(0, 140))
            got = store.read_window(2, start, 10)[0][1]
            first = int(start * 250 + 0.5)
            if not np.array_equal(got, small[1][2].samples[0][first : first + 2500]):
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong


FILES = [
    "index.parquet",
    "labels.parquet",
    "quarantine.jsonl",
    "reports.parquet",
    "tokenizer.json",
    "manifest.json",
] + [f"shards/shard-0000{i}-of-00002.array_record" for i in (0, 1)]


@pytest.mark.parametrize("name", FILES)
def test_changed_files_are_refused_by_name(small, tmp_path, name):
    shutil.copytree(small[0].path, tmp_path / "s")
    file = tmp_path / "s" / name
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(whole) * 8, 4):
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        file.write_bytes(flipped)
        with pytest.raises(BadInput, match=name.split("/")[-1]):
            Store.open(tmp_path / "s")
    for length in (0, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        for verify in ("full", "size"):
            with pytest.raises(BadInput, match=name.split("/")[-1]):
                Store.open(tmp_path / "s", verify)
    for other in (b"[5]", b'"a"', b"3", b"null", b"{}"):
        file.write_bytes(other)
        with pytest.raises(BadInput, match=name.split("/")[-1]):
            Store.open(tmp_path / "s")
    file.unlink()
    with pytest.raises(BadInput, match=name.split("/")[-1]):
        Store.open(tmp_path / "s")
    file.write_bytes(whole)
    Store.open(tmp_path / "s")


def test_an_array_record_that_opens_as_empty_is_refused(small, tmp_path, monkeypatch):
    """Even where size and hash agree: the count is compared too."""
    monkeypatch.setattr(store_format, "record_count", lambda path: 0)
    with pytest.raises(BadInput, match=r"shard-00000.*found 0 records; expected 2 records"):
        Store.open(small[0].path)


def change(path, **fields):
    manifest = json.loads((path / "manifest.json").read_bytes()) | fields
    (path / "manifest.json").write_bytes(store_format.manifest_bytes(manifest))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"format": 99}, "store format 99; expected format 2"),
        ({"vocabulary": {"channels": 14, "digest": "0"}}, "vocabulary of 14 channels"),
        ({"vocabulary": {"channels": 10_000, "digest": "0"}}, "vocabulary of 10000 channels"),
        ({"spec": {**SPEC.to_dict(), "version": 7}}, "csfm-jax version 7.*csfm-jax version 1"),
        ({"spec": {**SPEC.to_dict(), "name": "other"}}, "preprocessing 'other'"),
    ],
)
def test_what_does_not_fit_is_refused(small, tmp_path, fields, message):
    shutil.copytree(small[0].path, tmp_path / "s")
    change(tmp_path / "s", **fields)
    with pytest.raises(BadInput, match=message):
        Store.open(tmp_path / "s")


def test_a_vocabulary_that_has_grown_since_is_fine(small, tmp_path):
    shutil.copytree(small[0].path, tmp_path / "s")
    change(tmp_path / "s", vocabulary={"channels": 30, "digest": store_format.vocabulary_digest(30)})
    Store.open(tmp_path / "s")


def test_several_stores(small, tmp_path):
    store, _ = small
    shutil.copytree(store.path, tmp_path / "all" / "a")
    assert [s.path for s in open_stores(str(tmp_path / "all"))] == [tmp_path / "all" / "a"]
    write(tmp_path / "all" / "b", name="second")
    assert [s.name for s in open_stores(str(tmp_path / "all"), "size")] == ["small", "second"]
    assert [s.name for s in open_stores(f"{store.path}, {tmp_path / 'all' / 'b'}")] == ["small", "second"]
    with pytest.raises(BadInput, match="second store named 'small'"):
        open_stores(f"{store.path},{tmp_path / 'all'}")
    for nothing in ("", " , "):
        with pytest.raises(BadInput, match="data.stores"):
            open_stores(nothing)
    with pytest.raises(BadInput, match="no such folder"):
        open_stores(str(tmp_path / "none"))
    with pytest.raises(BadInput, match="verify"):
        Store.open(store.path, "quick")


def test_a_store_replaced_under_a_run_is_noticed(small, tmp_path):
    write(tmp_path / "s")
    pickled = pickle.dumps(Store.open(tmp_path / "s"))
    assert pickle.loads(pickled).read_window(0, 0, 1)
    shutil.rmtree(tmp_path / "s")
    write(tmp_path / "s", name="other")
    with pytest.raises(BadInput, match="another store than when the run began"):
        pickle.loads(pickled)


def test_unfinished_and_mixed_writing(tmp_path):
    writer = StoreWriter(tmp_path / "s", name="s", spec=SPEC, shards=2)
    writer.write_shard(0, [StoredRecording("a" * 16, "b" * 16, "train", prepared(5))])
    assert writer.finished(0) and not writer.finished(1)
    with pytest.raises(BadInput, match="unfinished store"):
        Store.open(tmp_path / "s")
    with pytest.raises(BadInput, match="shard 1 unfinished"):
        writer.finish()
    with pytest.raises(BadInput, match="another shards"):
        StoreWriter(tmp_path / "s", name="s", spec=SPEC, shards=3)
    with writer.locked(), pytest.raises(BadInput, match="another run writing here"):
        with StoreWriter(tmp_path / "s", name="s", spec=SPEC, shards=2).locked():
            pass
    (tmp_path / "s" / "shards" / "shard-00000-of-00002.array_record").write_bytes(b"torn")
    assert not writer.finished(0)


def test_full_disk(tmp_path, monkeypatch):
    """The C++ writer says RuntimeError; what comes out is ENOSPC, and what was finished stays."""
    writer = StoreWriter(tmp_path / "s", name="s", spec=SPEC, shards=2)
    writer.write_shard(0, [StoredRecording("a" * 16, "b" * 16, "train", prepared(5))])

    class Full:
        def __init__(self, *_):
            pass

        def write(self, record):
            raise RuntimeError("write() failed: No space left on device")

    module = sys.modules["array_record.python.array_record_module"]
    with monkeypatch.context() as patched:
        patched.setattr(module, "ArrayRecordWriter", Full)
        with pytest.raises(OSError, match="No space left") as caught:
            writer.write_shard(1, [StoredRecording("c" * 16, "d" * 16, "test", prepared(5))])
    assert caught.value.errno == 28 and caught.value.filename == str(tmp_path / "s")
    assert writer.finished(0) and not writer.finished(1)
    writer.write_shard(1, [StoredRecording("c" * 16, "d" * 16, "test", prepared(5))])

    def no_room(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store_writer.os, "replace", no_room)
        with pytest.raises(OSError, match="No space left"):
            writer.finish()
    assert len(writer.finish().index) == 2
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "index.parquet", "labels.parquet", "manifest.json", "quarantine.jsonl", "shards",
    ]  # fmt: skip
