"""Masks: budgets, structure first, nothing un-hidden, one modality always left, targets independent of hiding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import masking
from data_pipelines.batch import MODALITY_OF
from data_pipelines.config import MaskConfig, TokenConfig
from data_pipelines.errors import BadInput
from data_pipelines.masking import STRATEGIES, hide
from data_pipelines.signals import CHANNEL_ID

NAMES = ("I", "II", "V1", "V6", "PPG", "RESP", "SpO2")


@st.composite
def a_window(draw):
    """Tokens of some channels, of which some are absent, and some text."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    k = draw(st.integers(1, 40))
    channel = np.repeat([CHANNEL_ID[name] for name in names], k)
    time = np.tile((np.arange(k) + 0.5) * draw(st.sampled_from([0.1, 0.2, 1.0])), len(names))
    there = np.random.default_rng(draw(st.integers(0, 99))).random(len(channel)) < draw(st.sampled_from([1.0, 0.6]))
    there[0] = True
    n_text = draw(st.integers(0, 12))
    return channel[there].astype(np.int32), time[there].astype(np.float32), n_text


@st.composite
def a_config(draw):
    return MaskConfig(
        keep_signal=draw(st.floats(0.01, 0.99)),
        keep_text=draw(st.floats(0.01, 0.99)),
        weights={name: draw(st.sampled_from([0.0, 1.0, 3.0])) for name in STRATEGIES} | {"random": 0.5},
        structured=draw(st.floats(0.01, 0.99)),
        block_seconds=draw(st.sampled_from([0.3, 1.0])),
        target=draw(st.sampled_from(["hidden", "all"])),
    )


@settings(max_examples=120, deadline=None)
@given(a_window(), a_config(), st.sampled_from([None, *STRATEGIES]), st.integers(0, 1000))
def test_every_line_of_the_contract(window, config, strategy, seed):
    channel, time, n_text = window
    n = len(channel)
    masked = hide(channel, time, n_text, config, np.random.default_rng(seed), strategy)
    visible = masked.visible
    assert len(visible) == len(masked.target) == n + n_text
    budget = int(max(1, np.rint(config.keep_signal * n)))
    assert 1 <= visible[:n].sum() <= budget  # something is always seen, and never more than was planned
    assert visible[n:].sum() == np.rint(config.keep_text * n_text)
    if masked.strategy == "random":
        assert visible[:n].sum() == budget
    np.testing.assert_array_equal(masked.target, np.ones_like(visible) if config.target == "all" else ~visible)
    if strategy is not None:
        assert masked.strategy in (strategy, "random")
    again = hide(channel, time, n_text, config, np.random.default_rng(seed), strategy)
    np.testing.assert_array_equal(again.visible, visible)


@settings(max_examples=80, deadline=None)
@given(a_window(), st.floats(0.01, 0.99), st.sampled_from(["channel", "time", "modality"]), st.integers(0, 1000))
def test_structure_hides_its_share_whole_and_nothing_else_where_the_budget_is_large(window, share, strategy, seed):
    channel, time, n_text = window
    config = MaskConfig(keep_signal=0.999, structured=share, block_seconds=0.3)
    blocks = np.floor_divide(time, np.float32(0.3))
    kinds = {"channel": channel, "time": blocks, "modality": MODALITY_OF[channel]}[strategy]
    masked = hide(channel, time, n_text, config, np.random.default_rng(seed), strategy)
    number = len(np.unique(kinds))
    if number == 1:
        assert masked.strategy == "random"  # the last one is never hidden
        return
    assert masked.strategy == strategy
    seen = masked.visible[: len(channel)]
    hidden_whole = sum(not seen[kinds == kind].any() for kind in np.unique(kinds))
    expected = min(max(1, round(share * number)), number - 1)
    dropped = int(max(1, np.rint(0.999 * len(channel)))) < len(channel)  # random hiding may take one token more
    assert hidden_whole == expected or (dropped and hidden_whole >= expected)
    if not dropped:
        assert all(seen[kinds == kind].all() or not seen[kinds == kind].any() for kind in np.unique(kinds))


def test_random_hiding_goes_on_below_the_structure():
    channel = np.repeat(np.arange(1, 13, dtype=np.int32), 100)
    arguments = (channel, np.tile(np.arange(100) / 10, 12), 0)
    masked = hide(*arguments, MaskConfig(keep_signal=0.25, structured=0.5), np.random.default_rng(0), "channel")
    assert masked.visible.sum() == 300
    assert len(np.unique(channel[masked.visible])) == 6
    masked = hide(*arguments, MaskConfig(keep_signal=0.25, structured=0.9), np.random.default_rng(0), "channel")
    assert masked.visible.sum() == 100  # eleven of twelve leads went: fewer than the budget, nothing is un-hidden


def test_random_hiding_is_even():
    channel = np.ones(40, np.int32)
    seen = np.zeros(40)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        seen += hide(channel, np.arange(40), 0, MaskConfig(), rng).visible
    assert abs(seen / 2000 - 0.25).max() < 0.05


def test_strategies_are_drawn_by_weight():
    config = MaskConfig(weights={"random": 1.0, "channel": 3.0, "time": 0.0, "modality": 0.0})
    rng = np.random.default_rng(0)
    drawn = [masking.draw_strategy(config, rng) for _ in range(4000)]
    assert set(drawn) == {"random", "channel"}
    assert abs(drawn.count("channel") / 4000 - 0.75) < 0.03
    assert masking.draw_strategy(MaskConfig(weights={"time": 2.0}), rng) == "time"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 3000), st.floats(0.01, 0.99))
def test_budgets_grow_with_what_is_there(a, b, keep):
    config = MaskConfig(keep_signal=keep, keep_text=keep)
    a, b = min(a, b), max(a, b)
    assert masking.signal_budget(a, config) <= masking.signal_budget(b, config)
    assert masking.text_budget(a, config) <= masking.text_budget(b, config)


@pytest.mark.parametrize(
    "field, config",
    [
        ("keep_signal", MaskConfig(keep_signal=0.0)),
        ("keep_signal", MaskConfig(keep_signal=1.0)),
        ("keep_text", MaskConfig(keep_text=1.0)),
        ("keep_text", MaskConfig(keep_text=-0.5)),
        ("structured", MaskConfig(structured=1.5)),
        ("weights.leads", MaskConfig(weights={"leads": 1.0})),
        ("weights.random", MaskConfig(weights={"random": -1.0})),
        ("weights", MaskConfig(weights={"random": 0.0})),
        ("target", MaskConfig(target="seen")),
        ("block_seconds", MaskConfig(block_seconds=0.0)),
    ],
)
def test_masks_that_hide_nothing_or_everything_are_refused(field, config):
    with pytest.raises(BadInput, match=rf"config\.data\.mask\.{field}"):
        masking.check(config, TokenConfig())


def test_the_text_ratio_is_free_where_there_is_no_text():
    masking.check(MaskConfig(keep_text=1.0), TokenConfig(text_length=0))
    masking.check(MaskConfig(), TokenConfig())
