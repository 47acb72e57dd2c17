"""Frame tokens hold exactly what channel tokens hold, and say by a flag what is absent."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_stores import LEADS, mixed_store

from data_pipelines import frames, loader, masking, plans, rows, windows
from data_pipelines.batch import MODALITY_OF, MODALITY_ROW
from data_pipelines.config import DataConfig, MaskConfig, TokenConfig
from data_pipelines.errors import BadInput
from data_pipelines.preprocess import INVALID
from data_pipelines.signals import CHANNEL_ID, CLS, MODALITIES, modality_of

CHANNEL = TokenConfig(modalities=("ppg", "ecg", "resp"), text_length=0)
FRAME = replace(CHANNEL, layout="frame")
DATA = DataConfig(rows=2, row_tokens=512, row_visible=0, row_windows=5)


def opened(channel, patch, tokens):
    """A frame -> {channel id: samples} of the channels that it says are there; the others must be zeros."""
    name = modality_of(int(channel)).name
    ids, n = windows.frame_channels(tokens, name), tokens.patch[name]
    values, flags = patch[: n * len(ids)].reshape(n, len(ids)), patch[n * len(ids) : (n + 1) * len(ids)]
    assert channel == ids[0] and set(flags) <= {0.0, 1.0} and flags.any()
    assert not values[:, flags == 0].any() and not patch[(n + 1) * len(ids) :].any()
    return {c: values[:, i] for i, c in enumerate(ids) if flags[i]}


def blocks_of(rng, names, seconds, gaps):
    made = []
    for name in names:
        rate = modality_of(name).rate
        x = rng.integers(-2000, 2000, (1, int(seconds * rate))).astype(np.int16)
        for _ in range(gaps):
            at = int(rng.integers(0, x.shape[1] + 1))
            x[0, at : at + int(rng.integers(1, rate + 1))] = INVALID
        made.append(((CHANNEL_ID[name],), x))
    return made


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    names=st.sets(st.sampled_from([*LEADS, "ECG other", "PPG", "PPG other", "RESP", "SpO2"]), min_size=1),
    seconds=st.floats(0.5, 4.0),
    gaps=st.integers(0, 4),
    bound=st.sampled_from([None, 2.0]),
)
def test_frames_hold_exactly_the_samples_of_channel_tokens(seed, names, seconds, gaps, bound):
    blocks = blocks_of(np.random.default_rng(seed), sorted(names), seconds, gaps)
    expected = {
        (int(c), round(float(t), 4)): x
        for ids, patches, times in rows.signal_tokens(blocks, CHANNEL, bound)
        for c, x, t in zip(ids, patches, times)
    }
    found, order = {}, []
    for ids, patches, times in rows.signal_tokens(blocks, FRAME, bound):
        assert (np.diff(times) > 0).all() and times.dtype == patches.dtype == np.float32
        order.append(modality_of(int(ids[0])).name)
        for channel, patch, time in zip(ids, patches, times):
            for c, x in opened(channel, patch, FRAME).items():
                found[c, round(float(time), 4)] = x
    assert order == [m for m in FRAME.modalities if m in order]
    assert found.keys() == expected.keys()
    for key, x in expected.items():
        np.testing.assert_array_equal(found[key], x)


def test_frames_end_to_end_are_the_window_as_time_by_channels():
    rng = np.random.default_rng(0)
    tokens = TokenConfig(modalities=("ecg",), channels="csfm", layout="frame", text_length=0)
    x = rng.standard_normal((12, 250)).astype(np.float32)
    ((_, patches, _),) = rows.signal_tokens([(tuple(range(1, 13)), x)], tokens)
    assert patches.shape == (10, 12 * 25 + 12)
    whole = patches[:, :300].reshape(250, 12).T
    np.testing.assert_allclose(whole, (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True), atol=1e-5)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return mixed_store(tmp_path_factory.mktemp("frames") / "s", 12, gaps=3)


def by_window(batch):
    """{window: [(channel, time, patch)]} of the signal tokens, in order."""
    found = {}
    for row in range(len(batch.channel)):
        for at in np.flatnonzero((batch.channel[row] > 0) & (batch.channel[row] != CLS)):
            window = int(batch.window[row, batch.segment[row, at] - 1])
            token = int(batch.channel[row, at]), round(float(batch.time[row, at]), 4), batch.patches[row, at]
            found.setdefault(window, []).append(token)
    return found


def all_of(store, tokens, folder):
    data = replace(DATA, row_tokens=4096)
    batches = loader.evaluation_batches([store], tokens, data, "train", plans_dir=folder, hide=False)
    return {k: v for batch in batches for k, v in by_window(batch).items()}


def test_the_loader_gives_both_layouts_of_the_same_windows(store, tmp_path):
    expected, found = (all_of(store, tokens, tmp_path) for tokens in (CHANNEL, FRAME))
    assert found.keys() == expected.keys() and len(found) >= 12
    absent = 0
    for window, tokens in expected.items():
        held = {(c, t): x for first, t, patch in found[window] for c, x in opened(first, patch, FRAME).items()}
        assert held.keys() == {(c, t) for c, t, _ in tokens}
        for c, t, patch in tokens:
            np.testing.assert_array_equal(held[c, t], patch[: len(held[c, t])])
        for first, _, patch in found[window]:
            absent += len(windows.frame_channels(FRAME, modality_of(first).name)) > len(opened(first, patch, FRAME))
    assert absent


def test_the_plan_counts_frames_and_masks_hide_whole_ones(store, tmp_path):
    table = windows.epoch_windows([store], FRAME, DATA, "train", 0)
    index = store.index
    for row in range(len(table)):
        ids = index.channel_sets[index.channel_set[table.recording[row]]]
        kinds = {modality_of(c).name for c in ids} & set(FRAME.modalities)
        each = [int(table.seconds[row] * MODALITIES[m].rate + 0.5) // FRAME.patch[m] for m in kinds]
        assert table.signal_tokens[row] == sum(each)
    batch = next(
        loader.evaluation_batches(
            [store], FRAME, replace(DATA, mask=MaskConfig(keep_signal=0.5)), "train", plans_dir=tmp_path
        )
    )
    signal = (batch.channel > 0) & (batch.channel != CLS)
    assert 0.4 < (batch.target & signal).sum() / signal.sum() < 0.6
    assert batch.patches.shape[-1] == windows.longest_patch(FRAME) == 26 * 16  # the 16 channels called ECG


def test_layouts_have_plans_of_their_own_and_channels_those_of_before(store, tmp_path, monkeypatch):
    def digest(tokens):
        return loader.Rows([store], tokens, DATA, "train", tmp_path).plans.digest

    assert digest(CHANNEL) != digest(FRAME)
    inputs = []
    monkeypatch.setattr(plans.json, "dumps", lambda parts, **_: inputs.append(parts) or "{}")
    for tokens in (CHANNEL, FRAME):
        digest(tokens)
    assert ["layout" in parts["tokens"] for parts in inputs] == [False, True]


def test_an_unknown_layout_is_refused():
    with pytest.raises(BadInput, match="config.tokens.layout"):
        windows.used_channels(replace(CHANNEL, layout="leads"))


def test_the_strategies_fall_to_random_where_a_frame_leaves_nothing_to_choose():
    channel, time = np.full(8, 1), np.arange(8) * 0.1
    config = MaskConfig(keep_signal=0.5)
    assert masking.hide(channel, time, 0, config, np.random.default_rng(0), "channel").strategy == "random"
    assert MODALITY_OF[windows.frame_channels(FRAME, "ppg")[0]] == MODALITY_ROW["ppg"]
    assert list(frames.join([], FRAME)) == []
