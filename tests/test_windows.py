"""Which windows an epoch takes: counts, starts, mixture weights, splits, and token bounds from the index alone."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from csfm_jax.config import load, shipped_configs
from data_pipelines import masking
from data_pipelines.config import DataConfig, MaskConfig, TokenConfig, WindowConfig
from data_pipelines.errors import BadInput
from data_pipelines.signals import CHANNEL_ID, MODALITIES, modality_of
from data_pipelines.suggest import GOOD_FILL, suggest
from data_pipelines.windows import (
    GRID,
    capacities,
    epoch_windows,
    fixed_starts,
    row_length,
    signal_tokens,
    used_channels,
)

SETS = (tuple(range(1, 13)), (2, CHANNEL_ID["PPG"], CHANNEL_ID["RESP"]), (CHANNEL_ID["PPG"],), (CHANNEL_ID["EEG C4"],))
TOKENS = TokenConfig(modalities=("ecg", "ppg", "resp"))


def fake_store(seconds, channel_set=None, split=None, report=None, name="a"):
    n = len(seconds)
    index = SimpleNamespace(
        milliseconds=np.asarray([round(s * 1000) for s in seconds], np.int64),
        seconds=np.asarray(seconds, np.float32),
        channel_set=np.zeros(n, np.int32) if channel_set is None else np.asarray(channel_set, np.int32),
        channel_sets=SETS,
        split=np.zeros(n, np.int8) if split is None else np.asarray(split, np.int8),
        has_report=np.zeros(n, bool) if report is None else np.asarray(report, bool),
    )
    return SimpleNamespace(name=name, index=index)


def take(stores, *, tokens=TOKENS, split="train", epoch=0, text_counts=None, **data):
    return epoch_windows(stores, tokens, DataConfig(**data), split, epoch, text_counts)


lengths = st.lists(st.integers(200, 80_000), min_size=1, max_size=12).map(lambda ms: [m / 1000 for m in ms])


@settings(max_examples=100, deadline=None)
@given(lengths, st.floats(0.5, 20), st.floats(0.1, 1), st.integers(1, 5), st.booleans(), st.integers(0, 5))
def test_counts_lengths_and_starts(seconds, length, least, most, random_start, epoch):
    window = WindowConfig(length, least * length, most, random_start)
    store = fake_store(seconds)
    try:
        table = take([store], window=window, epoch=epoch)
    except BadInput:
        assert all(s < least * length + 1e-3 or s < 0.1 for s in seconds)
        return
    for i, total in enumerate(np.asarray(seconds, np.float32)):
        mine = table.recording == i
        if total < np.float32(least * length):
            assert not mine.any()
            continue
        assert mine.sum() == min(most, max(1, int(total / length + 1e-6)))
        np.testing.assert_array_equal(table.seconds[mine], min(total, np.float32(length)))
        start, end = table.start[mine].astype(float), (table.start[mine] + table.seconds[mine]).astype(float)
        assert (start >= 0).all() and (end <= total + 1e-3).all()
        np.testing.assert_allclose(start * GRID, np.round(start * GRID), atol=1e-3)
        if not random_start:
            np.testing.assert_allclose(start, np.arange(mine.sum()) * min(length, total), atol=1 / GRID + 1e-4)
    assert table.skipped["recordings shorter than the minimum"] == sum(
        np.float32(s) < np.float32(least * length) for s in seconds
    )


def tenths(first, last):
    return st.integers(first, last).map(lambda n: n / 10)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(tenths(2, 400), min_size=1, max_size=12), tenths(5, 200), st.integers(1, 9), st.integers(1, 20),
    st.sampled_from([0.0, 3.0]),
)  # fmt: skip
@example([10.0], 9.8, 6, 20, 0.0)  # in float32 one window comes twice
def test_crops_lie_evenly_over_a_recording_and_no_two_are_the_same(seconds, length, crops, most, begin):
    window = WindowConfig(length, 0.1, most, False, crops, begin)
    try:
        table = take([fake_store(seconds)], window=window)
    except BadInput:
        assert all(s < begin + 0.1 + 1e-3 for s in seconds)
        return
    for i in np.unique(table.recording):
        mine, usable = table.recording == i, seconds[i] - begin
        start = table.start[mine] - begin
        spare = max(0, usable - length)
        cover = int(np.ceil(usable / length - 1e-6))
        assert mine.sum() == max(1, min(max(crops, cover), int(spare * GRID + 1e-6) + 1, most))
        assert start[0] == 0 and len(np.unique(start)) == len(start)
        if len(start) > 1:
            ideal = np.linspace(0, spare, len(start))
            assert (start <= ideal + 1e-6).all() and (start > ideal - 2 / GRID).all()
        starts, lasts = fixed_starts(window, seconds[i])
        np.testing.assert_array_equal(starts, table.start[mine])
        assert lasts == pytest.approx(table.seconds[mine][0], abs=1e-5)


def test_crops_of_ten_seconds_begin_at_all_parts_of_a_token():
    table = take([fake_store([10.0])], window=WindowConfig(9.0, random_start=False, crops=8))
    parts = np.sort(table.start % 0.5)
    assert len(table) == 8 and np.diff(parts, append=parts[0] + 0.5).max() <= 0.13  # of tokens of half a second
    tiles = take([fake_store([10.0])], window=WindowConfig(2.5, random_start=False, crops=4))
    assert tiles.start.tolist() == [0, 2.48, 5, 7.48]  # four that cover ten seconds, on the grid


def test_starts_change_with_the_epoch_and_cover_the_recording():
    store = fake_store([60.0])
    starts = np.array([take([store], epoch=e).start for e in range(200)])
    assert starts.shape == (200, 6)
    assert starts.min() < 0.5 and starts.max() > 49.5  # ends are reached
    assert (np.diff(starts, axis=1) > 0).all()  # spread over the recording, not heaped
    assert len(np.unique(starts[:, 0])) > 50
    np.testing.assert_array_equal(starts[3], take([store], epoch=3).start)
    assert not np.array_equal(take([store], seed=1).start, starts[0])


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 3.5), st.integers(1, 40), st.integers(0, 3))
def test_mixture_weights(weight, recordings, epoch):
    stores = [fake_store([10.0] * recordings), fake_store([20.0] * 5, name="b")]
    table = take(stores, weights={"a": weight}, epoch=epoch)
    often = np.bincount(table.recording[table.store == 0], minlength=recordings)
    whole, rest = int(weight), round((weight - int(weight)) * recordings)
    assert set(often) <= {whole, whole + 1} and (often > whole).sum() == rest
    assert (table.store == 1).sum() == 10  # two windows of each, at weight 1


def test_the_fraction_is_another_one_each_epoch():
    store = fake_store([10.0] * 100)
    chosen = [set(take([store], weights={"a": 0.5}, epoch=e).recording) for e in range(2)]
    assert len(chosen[0]) == len(chosen[1]) == 50 and chosen[0] != chosen[1]


@pytest.mark.parametrize("split, position", [("train", 0), ("validation", 1), ("test", 2)])
def test_only_the_subjects_of_the_split(split, position):
    store = fake_store([10.0] * 9, split=[0, 1, 2] * 3)
    assert set(take([store], split=split).recording) == {position, position + 3, position + 6}


@settings(max_examples=100, deadline=None)
@given(st.integers(100, 60_000), st.integers(0, 2), st.integers(1, 60))
def test_token_bounds(milliseconds, which, patch):
    seconds = milliseconds / 1000
    tokens = replace(TOKENS, patch={**TOKENS.patch, "ecg": patch})
    count = signal_tokens(fake_store([seconds], [which]).index, np.float32([seconds]), tokens)[0]
    expected = 0
    for channel in SETS[which]:
        modality = modality_of(channel)
        samples = int(float(np.float32(seconds)) * modality.rate + 0.5)  # as many as `Store.read_window` gives
        expected += samples // (patch if modality.name == "ecg" else MODALITIES[modality.name].patch)
    assert count == expected


def test_sizes_with_text():
    store = fake_store([10.0] * 3, [0, 1, 2], report=[True, True, False])
    table = take([store], text_counts=[np.array([7, 200, 0], np.int16)])
    order = np.argsort(table.recording)
    assert list(table.text_tokens[order]) == [7, 64, 0]
    assert list(table.signal_tokens[order]) == [1200, 100 + 100 + 10, 100]
    assert list(table.tokens[order]) == [1208, 275, 101]
    assert list(table.visible[order]) == [1 + 300 + 4, 1 + 52 + 32, 1 + 25]  # halves go to the even number
    assert list(take([store]).text_tokens[order]) == [64, 64, 0]  # unknown counts: room for the longest
    assert not take([store], tokens=replace(TOKENS, text_length=0)).text_tokens.any()


@pytest.mark.parametrize(("longest", "row"), [(1, 32), (32, 32), (33, 64), (217, 224)])
def test_rows_are_hardly_longer_than_the_longest_window(longest, row):
    assert row_length(np.int64(longest)) == row
    assert row_length(longest, row_windows=2) == max(row, 128)


def test_channels_that_the_config_leaves_out():
    store = fake_store([10.0] * 4, [0, 1, 2, 3])
    table = take([store])
    assert set(table.recording) == {0, 1, 2} and table.skipped["recordings without a channel of the config"] == 1
    assert set(take([store], tokens=TokenConfig(modalities=("ppg",))).recording) == {1, 2}
    csfm = used_channels(TokenConfig(modalities=("ecg", "ppg"), channels="csfm"))
    assert list(np.flatnonzero(csfm)) == list(range(1, 14))
    assert used_channels(TOKENS)[CHANNEL_ID["ECG other"]] and not used_channels(TOKENS)[CHANNEL_ID["EEG C4"]]


@settings(max_examples=100, deadline=None)
@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98), st.integers(0, 64), st.integers(64, 4000), st.integers(1, 40))
@example(keep_signal=0.09, keep_text=0.09, text_length=6, T=64, S=7)
def test_v_of_zero_never_binds(keep_signal, keep_text, text_length, T, S):
    mask = MaskConfig(keep_signal=keep_signal, keep_text=keep_text)
    data = DataConfig(mask=mask, row_tokens=T, row_windows=S, row_visible=0)
    _, V, _ = capacities(TokenConfig(text_length=text_length), data)
    windows = min(S, T // 2)
    text = min(text_length, T // windows - 2)  # a row full of windows of equal size
    signal = T // windows - 1 - text
    each = masking.signal_budget(signal, mask) + masking.text_budget(text, mask) + 1
    assert windows * each <= V


@pytest.mark.parametrize(
    "field, change",
    [
        ("tokens.modalities", {"tokens": TokenConfig(modalities=("ecgs",))}),
        ("tokens.patch.ecg", {"tokens": TokenConfig(patch={"ppg": 25})}),
        ("tokens.patch.ecg", {"tokens": replace(TOKENS, patch={**TOKENS.patch, "ecg": 0})}),
        ("tokens.channels", {"tokens": TokenConfig(channels="some")}),
        ("data.window.minimum_seconds", {"window": WindowConfig(1.0, 2.0)}),
        ("data.window.seconds", {"window": WindowConfig(math.inf, 2.0)}),
        ("data.window.most_per_recording", {"window": WindowConfig(most_per_recording=0)}),
        ("tokens.modalities", {"tokens": TokenConfig(modalities=())}),
        ("tokens.modalities", {"tokens": TokenConfig(modalities=("ecg", "ecg"))}),
        ("tokens.text_length", {"tokens": TokenConfig(text_length=-1)}),
        ("data.seed", {"seed": -1}),
        ("data.rows", {"rows": 0}),
        ("data.row_windows", {"row_windows": 0}),
        ("data.weights.a", {"weights": {"a": -1.0}}),
        ("data.weights.z", {"weights": {"z": 1.0}}),
        ("data: found no window of train", {"weights": {"a": 0.0}}),
    ],
)
def test_bad_configs_are_named(field, change):
    with pytest.raises(BadInput, match=rf"config\.{field}"):
        take([fake_store([10.0])], **change)


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_config_fills_the_row_that_is_suggested(name):
    """On recordings of 5 to 30 s: twelve leads, a lead with PPG and respiration, or PPG alone; some with a report."""
    config, rng, n = load(name), np.random.default_rng(0), 2000
    store = fake_store(rng.uniform(5, 30, n), rng.choice(3, n, p=[0.4, 0.4, 0.2]), report=rng.random(n) < 0.3)
    counts = [np.where(store.index.has_report, rng.integers(5, 65, n), 0)]
    found = suggest(epoch_windows([store], config.tokens, config.data, "train", 0, counts).sizes())
    assert found.fill_tokens >= GOOD_FILL


@pytest.mark.parametrize("milliseconds", [199_999_993, 1_209_600_000 - 31])
@pytest.mark.parametrize("random_start", [True, False])
def test_windows_of_days_stay_on_the_grid_and_inside(milliseconds, random_start):
    """float32 would round both recordings up to a length that they do not have, and starts off the grid."""
    store = fake_store([milliseconds / 1000])
    table = take([store], window=WindowConfig(random_start=random_start))
    assert len(table) == milliseconds // 10_000
    grid = table.start * GRID
    assert np.abs(grid - np.round(grid)).max() < 1e-6 and len(np.unique(grid)) == len(table)
    assert table.start.min() >= 0 and ((table.start + table.seconds) * 1000 <= milliseconds).all()


@pytest.mark.parametrize("random_start", [False, True])
def test_windows_lie_between_begin_and_end(random_start):
    """Ten seconds before an alarm at 300 s, whatever was recorded after it."""
    alarm = WindowConfig(seconds=10.0, random_start=random_start, begin=290.0, end=300.0)
    table = take([fake_store([300.0, 330.0, 292.0, 296.0])], window=alarm)
    assert table.recording.tolist() == [0, 1, 2, 3] and (table.start == 290.0).all()
    np.testing.assert_allclose(table.seconds, [10, 10, 2, 6])
    assert take([fake_store([291.0, 300.0])], window=alarm).recording.tolist() == [1]  # one second is below the minimum
    later = take([fake_store([100.0])], window=WindowConfig(seconds=10.0, random_start=random_start, begin=35.0))
    assert len(later) == 6 and later.start.min() >= 35 and (later.start + later.seconds).max() <= 100


def test_recordings_that_are_not_taken_give_no_window():
    store = fake_store([20.0, 20.0, 20.0])
    found = epoch_windows([store], TOKENS, DataConfig(), "train", 0, taken=[np.array([True, False, True])])
    assert set(found.recording.tolist()) == {0, 2} and found.skipped["recordings without a label"] == 1
    assert "recordings without a label" not in take([store]).skipped


@pytest.mark.parametrize("stretch", [{"begin": -1.0}, {"begin": 5.0, "end": 6.0}])
def test_a_stretch_without_room_for_a_window_is_refused(stretch):
    with pytest.raises(BadInput, match="config.data.window.begin"):
        take([fake_store([20.0])], window=WindowConfig(**stretch))
