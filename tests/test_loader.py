"""The loader: batches are a function of (stores, config, row numbers), whatever reads them; and what is in a batch."""

import errno
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from small_stores import LEADS, mixed_store, recording, write_store

from data_pipelines import loader, packing, plans, text
from data_pipelines.config import DataConfig, MaskConfig, TokenConfig, WindowConfig
from data_pipelines.errors import BadInput
from data_pipelines.signals import CLS, TEXT

TOKENS = TokenConfig(modalities=("ecg", "ppg", "resp"))
MIXED = MaskConfig(weights={"random": 1.0, "channel": 1.0, "time": 1.0, "modality": 1.0})
DATA = DataConfig(rows=4, row_tokens=1408, row_visible=0, row_windows=12, mask=MIXED)


def tokenizer(texts, subjects):
    return text.train_tokenizer(texts, subjects, minimum_subjects=2).to_str()


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two stores: one with reports, one with gaps in its signals."""
    folder = tmp_path_factory.mktemp("stores")
    splits = ("train", "train", "train", "validation", "test")
    return [
        mixed_store(folder / "a", 30, "a", splits, report_every=2, tokenizer=tokenizer, seed=1),
        mixed_store(folder / "b", 25, "b", splits, gaps=4, seed=2),
    ]


@pytest.fixture
def make(stores, tmp_path):
    made = []

    def make(data=DATA, **more):
        made.append(loader.make_loader(stores, TOKENS, data, **{"plans_dir": tmp_path / "plans", **more}))
        return made[-1]

    yield make
    for each in made:
        each.close()


def assert_equal(a, b):
    for name, x, y in zip(a._fields, a, b):
        np.testing.assert_array_equal(x, y, err_msg=name)


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def joined(batches):
    return type(batches[0])(*(np.concatenate(arrays) for arrays in zip(*batches)))


def test_workers_change_nothing(make):
    expected = take(make(), 14)
    assert make().state()["row"] == 0
    for workers in (1, 2):
        one = make(replace(DATA, workers=workers))
        for a, b in zip(expected, take(one, 14)):
            assert_equal(a, b)
        one.close()


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_global_batch(make, hosts):
    expected = take(make(), 12)
    parts = [make(host=h, hosts=hosts) for h in range(hosts)]
    for batch in expected:
        assert_equal(batch, joined([next(part) for part in parts]))
    assert len({part.plan_digest for part in parts}) == 1
    assert all(part.state() == parts[0].state() for part in parts)


def test_going_on_from_any_step_also_over_an_epochs_end_and_on_other_hosts(make):
    one = make()
    states, expected = [], []
    while one.state()["epoch"] < 2:
        states.append(one.state())
        expected.append(next(one))
    expected += take(one, 3)
    assert any(s["epoch"] == 1 and s["row"] == 0 for s in states)
    for step in range(0, len(states), 3):
        again = make(state=states[step])
        assert again.state() == states[step]
        for a, b in zip(expected[step:], take(again, 4)):
            assert_equal(a, b)
        again.close()
    parts = [make(state=states[-1], host=h, hosts=2) for h in range(2)]
    for batch in expected[len(states) - 1 :]:
        assert_equal(batch, joined([next(part) for part in parts]))


def test_another_number_of_rows_goes_on_at_the_same_row(make):
    one = make()
    take(one, 2)
    expected = joined(take(one, 2))
    assert_equal(expected, next(make(replace(DATA, rows=8), state={**one.state(), "row": 8})))


@pytest.mark.parametrize("epoch", [0, 1])
def test_every_planned_window_once_and_batches_end_with_the_epoch(make, stores, epoch):
    one = make()
    rows = one.plans.get(epoch).rows
    table = one.plans.windows(epoch)
    seen, batches = [], 0
    while one.state()["epoch"] <= epoch:
        inside = one.state()["epoch"] == epoch
        batch = next(one)
        if inside:
            batches += 1
            seen.append(batch)
    assert batches == -(-rows // DATA.rows)
    whole = joined(seen)
    assert (whole.channel[rows:] == 0).all() and (whole.visible[rows:] == DATA.row_tokens).all()
    assert not whole.target[rows:].any() and (whole.window[rows:] == -1).all()
    windows = whole.window[whole.window >= 0]
    assert len(np.unique(windows)) == len(windows)
    missing = set(range(len(table))) - set(windows)
    for window in missing:  # only those whose every sample is invalid
        blocks = stores[table.store[window]].read_blocks(
            int(table.recording[window]), float(table.start[window]), float(table.seconds[window])
        )
        assert not list(loader.signal_tokens(blocks, TOKENS))
    assert {int(s) for s in table.store} == {0, 1}
    for store, recording_ in zip(table.store, table.recording):
        assert stores[store].index.split[recording_] == 0  # train subjects only


def test_what_a_batch_holds(make):
    """Every field against the table of `TokenBatch`, on windows with gaps, text and all strategies."""
    one = make()
    table = one.plans.windows(0)
    T, V, S = one.plans.capacities
    for batch in take(one, -(-one.plans.get(0).rows // DATA.rows)):
        assert batch.patches.shape == (4, T, 25) and batch.visible.shape == (4, V) and batch.labels.shape == (4, S, 0)
        for row in zip(*batch):
            row = type(batch)(*row)
            there = row.channel > 0
            used = there.sum()
            assert there[:used].all() and not row.patches[used:].any()  # padding at the end only
            np.testing.assert_array_equal(row.segment > 0, there)
            assert (np.diff(row.segment[:used]) >= 0).all()
            visible = row.visible[row.visible < T]
            assert (np.diff(visible) > 0).all() and (row.visible[len(visible) :] == T).all()
            is_cls = row.channel == CLS
            assert set(np.flatnonzero(is_cls)) <= set(visible) and not row.target[is_cls].any()
            seen = np.zeros(T, bool)
            seen[visible] = True
            np.testing.assert_array_equal(row.target, there & ~seen)
            assert (row.text[row.channel != TEXT] == 0).all() and (row.token_labels == -1).all()
            for slot in range(S):
                mine = row.segment == slot + 1
                window = row.window[slot]
                if window < 0:
                    assert not mine.any()
                    continue
                assert row.channel[mine][0] == CLS and is_cls[mine].sum() == 1 and row.time[mine][0] == 0
                is_text = row.channel[mine] == TEXT
                assert is_text.sum() == table.text_tokens[window] and not row.patches[mine][is_text].any()
                np.testing.assert_array_equal(row.time[mine][is_text], np.arange(is_text.sum()))
                signal = mine.sum() - is_text.sum() - 1
                assert 1 <= signal <= table.signal_tokens[window]  # planned sizes are upper bounds
                assert (mine & seen).sum() <= table.visible[window]
                assert (seen & mine & ~is_cls)[row.channel != TEXT].any()
                assert 0 < row.time[mine].max() <= max(table.seconds[window], is_text.sum())


def test_tokens_are_the_stores_samples(make, stores):
    one = make()
    table, batch = one.plans.windows(0), next(one)
    checked = 0
    for row in range(DATA.rows):
        for slot, window in enumerate(batch.window[row]):
            if window < 0 or stores[table.store[window]].name != "a":  # no gaps in this one
                continue
            read = stores[0].read_window(
                int(table.recording[window]), float(table.start[window]), float(table.seconds[window])
            )
            mine = batch.segment[row] == slot + 1
            for channel, x in read:
                x = x.astype(np.float64)
                z = (x - x.mean()) / (x.std() + 1e-8)
                here = mine & (batch.channel[row] == channel)
                k = here.sum()
                assert k == len(x) // 25
                np.testing.assert_allclose(batch.patches[row][here], z[: k * 25].reshape(k, 25), atol=2e-5)
                rate = 25 if channel == 22 or k < 20 else 250
                np.testing.assert_allclose(batch.time[row][here], (np.arange(k) + 0.5) * 25 / rate, rtol=1e-6)
                checked += 1
    assert checked > 10


def test_a_window_without_a_valid_sample_is_padding(tmp_path):
    made = [recording(i, ("II",), 10.0) for i in range(4)]
    made[2].prepared.samples[0][:] = -32768
    store = write_store(tmp_path / "s", made)
    data = replace(DATA, rows=1, row_tokens=450, row_windows=4)
    batch = next(loader.evaluation_batches([store], TOKENS, data, "train", plans_dir=tmp_path / "p"))
    assert sorted(batch.window[0]) == [-1, 0, 1, 3]
    empty = int(np.flatnonzero(batch.window[0] == -1)[0]) + 1
    assert empty not in batch.segment[0] and (batch.channel[0] > 0).sum() == 303


def test_a_state_of_other_data_is_refused(make, stores, tmp_path):
    state = make().state()
    for other in (replace(DATA, seed=1), replace(DATA, row_tokens=1536), replace(DATA, window=WindowConfig(5.0))):
        with pytest.raises(BadInput, match="data state.*restore"):
            make(other, state=state)
    with pytest.raises(BadInput, match="data state"):
        loader.make_loader(stores[:1], TOKENS, DATA, plans_dir=tmp_path / "plans", state=state)
    make(replace(DATA, workers=0, verify="size", stores="elsewhere"), state=state)  # what decides nothing may differ


def test_plans_are_made_ahead_and_removed_behind(make, tmp_path):
    one = make()
    folders = lambda: {p.name.split("-")[1] for p in (tmp_path / "plans").glob("epoch-*")}  # noqa: E731

    def wait_for(epoch):
        deadline = time.monotonic() + 60
        while epoch not in folders() and time.monotonic() < deadline:
            time.sleep(0.05)

    next(one)
    wait_for("1")
    assert folders() == {"0", "1"}
    while one.state()["epoch"] < 2:
        next(one)
    next(one)
    wait_for("3")
    assert folders() == {"1", "2", "3"}
    assert not list((tmp_path / "plans").glob(".planning-*"))


def test_a_host_that_is_ahead_leaves_the_epoch_that_another_one_still_reads(make, stores, tmp_path):
    ahead, behind = make(host=0, hosts=2), make(host=1, hosts=2)
    batches = -(-behind.plans.get(1).rows // DATA.rows)
    while ahead.state()["epoch"] < 2:
        next(ahead)
    (between,) = (tmp_path / "plans").glob("epoch-1-*")
    (between / "kept").touch()
    next(ahead)  # the first of epoch 2
    while behind.state()["epoch"] < 1:
        next(behind)
    expected = take(behind, batches)
    read_late = make(host=1, hosts=2, state={**behind.state(), "epoch": 1, "row": 0})  # no plan is mapped yet
    for a, b in zip(expected, take(read_late, batches)):
        assert_equal(a, b)
    assert (between / "kept").exists()  # it is the same plan, not one that had to be made again


def test_without_locks_those_who_make_the_same_plan_at_once_do_not_disturb_each_other(stores, tmp_path, monkeypatch):
    monkeypatch.setattr(plans.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks")))
    save, begun, others = packing.PackingPlan.save, [], []

    def planned(seed=0):
        return loader.Rows(stores, TOKENS, replace(DATA, seed=seed), "train", tmp_path / "plans").plans.get(0)

    def save_late(plan, folder):
        begun.append(folder)
        if len(begun) == 1:
            others.append(planned())  # another one begins later, and has finished before
        save(plan, folder)

    monkeypatch.setattr(packing.PackingPlan, "save", save_late)
    assert planned().packing.digest == others[0].packing.digest and len(begun) == 2
    assert len(list((tmp_path / "plans").iterdir())) == 3  # the plan, the tokens of texts, and the lock
    (tmp_path / "plans" / f".planning-{socket.gethostname()}-another").mkdir()
    planned(seed=1)
    assert len(list((tmp_path / "plans").glob(".planning-*"))) == 1  # who knows whether its process lives?


@pytest.mark.parametrize("torn", ["plan.json", "row_windows.npy", "start.npy"])
def test_a_torn_plan_is_made_again(make, tmp_path, torn):
    expected = next(make())
    (folder,) = (tmp_path / "plans").glob("epoch-0-*")
    file = folder / torn
    content = file.read_bytes()
    file.unlink()  # another file under the name: the loader above may still read the mapped one
    file.write_bytes(content[: len(content) // 2])
    killed = tmp_path / "plans" / f".planning-{socket.gethostname()}-killed"
    lives = tmp_path / "plans" / ".planning-another-host-lives"
    killed.mkdir()
    lives.mkdir()
    assert_equal(expected, next(make()))  # and later epochs are planned meanwhile
    assert lives.exists() and not killed.exists()


def test_a_worker_keeps_no_removed_plan_open(stores, tmp_path):
    made = loader.Rows(stores, TOKENS, DATA, "train", tmp_path / "plans").plans
    for epoch in range(4):
        assert made.get(epoch) is made.get(epoch)
    assert set(made._open) == {2, 3}


def test_workers_leave_the_accelerator_and_ctrl_c_alone():
    code = (
        "import jax; from data_pipelines.loader import _in_worker; _in_worker(0, 1);"
        "import os, signal; print(jax.devices()[0].platform, os.environ['JAX_PLATFORMS'], end=' ');"
        "print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    )
    env = {**os.environ, "JAX_PLATFORMS": "cuda"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split() == ["cpu", "cpu", "True"]


@pytest.mark.parametrize("strategy", [None, "random", "channel", "time", "modality"])
def test_evaluation_takes_every_window_once_with_fixed_masks(stores, tmp_path, strategy):
    def batches(data=DATA, **more):
        more = {"strategy": strategy, "plans_dir": tmp_path / "plans", **more}
        return list(loader.evaluation_batches(stores, TOKENS, data, "validation", **more))

    first = joined(batches())
    assert_equal(first, joined(batches(replace(DATA, seed=5, weights={"a": 0.5}))))  # of the run, not of evaluation
    windows = np.sort(first.window[first.window >= 0])
    assert list(windows) == list(range(len(windows))) and len(windows) > 5
    if strategy is None:
        halves = [joined(batches(host=h, hosts=2)) for h in range(2)]
        assert halves[0].window.shape[0] == halves[1].window.shape[0]
        assert set(np.concatenate([h.window for h in halves]).ravel()) == set(first.window.ravel())
    if strategy == "channel":
        assert not np.array_equal(first.visible, joined(batches(strategy="random")).visible)


def test_embedding_sees_everything(stores, tmp_path):
    whole = joined(
        list(loader.evaluation_batches(stores, TOKENS, DATA, "test", hide=False, plans_dir=tmp_path / "plans"))
    )
    assert whole.visible.shape[1] == DATA.row_tokens and not whole.target.any()
    for row in range(len(whole.channel)):
        there = np.flatnonzero(whole.channel[row])
        np.testing.assert_array_equal(whole.visible[row][: len(there)], there)


def test_labels_follow_their_windows(stores, make):
    one = make(label_names=("number", "nowhere", "even"))
    table, batch = one.plans.windows(0), next(one)
    real = batch.window >= 0
    expected = np.array([stores[table.store[w]].labels()["number"][table.recording[w]] for w in batch.window[real]])
    np.testing.assert_array_equal(batch.labels[real][:, 0], expected)
    np.testing.assert_array_equal(batch.labels[real][:, 2], expected % 2 == 0)
    assert np.isnan(batch.labels[real][:, 1]).all() and np.isnan(batch.labels[~real]).all()


def test_training_on_labels_leaves_out_recordings_that_have_none(tmp_path):
    told = [recording(i, ("II",), 12.0, labels={"x": 1.0} if i % 3 == 0 else {"y": 0.0}) for i in range(30)]
    store = write_store(tmp_path / "s", told)
    made = loader.make_loader([store], TOKENS, DATA, plans_dir=tmp_path / "plans", label_names=("x",))
    try:
        plan, batch = made.plans.get(0), next(made)
    finally:
        made.close()
    assert len(np.unique(plan.recording)) == 10 and not np.isnan(batch.labels[batch.window >= 0]).any()
    whole = loader.make_loader([store], TOKENS, DATA, plans_dir=tmp_path / "plans")
    assert len(np.unique(whole.plans.get(0).recording)) == 30 and whole.plans.digest != made.plans.digest
    whole.close()


def window_tokens(batch, window):
    """Everything that a batch holds of one window, without its place in the row."""
    row, slot = np.argwhere(batch.window == window)[0]
    mine = batch.segment[row] == slot + 1
    return [getattr(batch, name)[row][mine] for name in ("patches", "channel", "time", "text")]


@pytest.mark.parametrize("kind", ["int16", "float"])
def test_windows_at_hand_give_the_tokens_that_a_store_gives(stores, tmp_path, kind):
    data = replace(DATA, rows=2)
    batches = joined(
        list(loader.evaluation_batches(stores, TOKENS, data, "test", hide=False, plans_dir=tmp_path / "plans"))
    )
    rows = loader.Rows(
        stores, TOKENS, replace(data, window=replace(data.window, random_start=False)), "test", tmp_path / "plans"
    )
    table = rows.plans.windows(0)
    given, texts = [], []
    for w in range(len(table)):
        store, number = int(table.store[w]), int(table.recording[w])
        samples = stores[store].read_window(number, float(table.start[w]), float(table.seconds[w]))
        if kind == "float":
            samples = [(c, np.where(x == -32768, np.nan, x.astype(np.float32))) for c, x in samples]
        given.append(samples)
        texts.append(rows.reports.ids(store, number))
    packed = loader.pack_windows(given, TOKENS, rows=3, row_tokens=1300, row_windows=5, texts=texts)
    assert all(b.patches.shape[:2] == (3, 1300) and not b.target.any() for b in packed)
    packed = joined(packed)
    assert set(packed.window.ravel()) == set(batches.window.ravel())
    for w in set(packed.window.ravel()) - {-1}:
        for ours, theirs in zip(window_tokens(packed, w), window_tokens(batches, w)):
            np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_a_window_larger_than_the_row_is_refused_before_training(make):
    with pytest.raises(BadInput, match="row_tokens.*--suggest"):
        take(make(replace(DATA, row_tokens=600)), 1)
    with pytest.raises(BadInput, match="row_tokens.*--suggest"):
        loader.pack_windows([[(1, np.zeros(2500, np.int16))]], TOKENS, rows=1, row_tokens=50, row_windows=1)


@pytest.mark.parametrize(
    "more, field",
    [
        ({"data": replace(DATA, mask=MaskConfig(keep_signal=1.0))}, "keep_signal"),
        ({"data": replace(DATA, rows=3), "hosts": 2}, "data.rows"),
        ({"split": "training"}, "split"),
    ],
)
def test_bad_input_is_named(make, more, field):
    with pytest.raises(BadInput, match=field):
        make(**more)


def test_the_data_side_loads_neither_jax_nor_grain():
    code = (
        "import sys, data_pipelines.loader, data_pipelines.plans, data_pipelines.suggest;"
        "print([m for m in ('jax', 'flax', 'optax', 'grain') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_twelve_leads_of_ten_seconds_are_csfms_1200_tokens(tmp_path):
    store = write_store(tmp_path / "s", [recording(1, LEADS, 10.0)])
    data = replace(DATA, rows=1, mask=MaskConfig())
    batch = next(loader.evaluation_batches([store], TOKENS, data, "train", plans_dir=tmp_path / "p"))
    assert (batch.channel[0] > 0).sum() == 1201 and (batch.visible[0] < 1408).sum() == 301
    assert batch.target[0].sum() == 900
