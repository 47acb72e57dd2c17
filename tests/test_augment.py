"""Every augmentation on its own, and all of them in their order."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import augment
from data_pipelines.augment import AugmentConfig
from data_pipelines.errors import BadInput

EVERYTHING = AugmentConfig(2.0, 0.5, 0.3, 0.2, 0.1, 0.3, 0.5, probability=1.0)


def _window(seed=0, channels=3, n=1000):
    samples = np.random.default_rng(seed).normal(0, 2, (channels, n)).astype(np.float32)
    samples[0, 100:150] = np.nan
    return samples


def test_crop_takes_a_stretch_of_the_given_length():
    x = _window()
    assert np.array_equal(augment.crop(x, 250, 0.0, 2.0), x[:, :500], equal_nan=True)
    assert np.array_equal(augment.crop(x, 250, 1.0, 2.0), x[:, 500:], equal_nan=True)
    assert augment.crop(x, 250, 0.5, 60.0).shape == x.shape


@pytest.mark.parametrize(
    "seconds, kept, lost", [(0.4, slice(100, None), slice(0, 900)), (-0.4, slice(0, 900), slice(100, None))]
)
def test_shift_moves_and_leaves_nothing_behind(seconds, kept, lost):
    x = _window()
    out = augment.shift(x, 250, seconds)
    assert np.array_equal(out[:, kept], x[:, lost], equal_nan=True)
    gone = out[:, :100] if seconds > 0 else out[:, 900:]
    assert np.isnan(gone).all() and np.isnan(augment.shift(x, 250, 99.0)).all()


def test_scale_keeps_what_channels_are_to_one_another():
    x = _window()
    out = augment.scale(x, 1.5)
    assert np.array_equal(out, 1.5 * x, equal_nan=True) and out.dtype == np.float32


def test_noise_is_as_strong_as_said_and_spares_what_is_absent():
    x = _window(n=20_000)
    x[2] = np.nan
    added = augment.noise(x, 0.25, np.random.default_rng(1)) - x
    assert np.nanstd(added[:2], axis=1) == pytest.approx([0.5, 0.5], rel=0.03)  # a quarter of 2
    assert np.array_equal(np.isnan(added), np.isnan(x))
    assert abs(np.corrcoef(added[0, 200:], added[1, 200:])[0, 1]) < 0.03


def test_wander_is_slow_and_each_channels_own():
    x = np.random.default_rng(0).normal(0, 2, (2, 25_000)).astype(np.float32)
    added = augment.wander(x, 250, 0.5, np.random.default_rng(1)) - x
    power = np.abs(np.fft.rfft(added, axis=1)) ** 2
    assert power[:, np.fft.rfftfreq(25_000, 1 / 250) > 0.55].sum() < 0.02 * power.sum() and power.sum() > 0
    assert 0.3 < np.abs(added).max() <= 1.01 and abs(np.corrcoef(added)[0, 1]) < 0.99
    config = AugmentConfig(wander=0.5, probability=1.0)
    assert config.changes and not np.array_equal(augment.apply(x, 250, config, np.random.default_rng(2)), x)


def test_powerline_is_a_sine_at_the_mains():
    x = np.random.default_rng(0).normal(0, 2, (2, 1000))
    added = augment.powerline(x, 250, 50.0, 0.3, 0.4) - x
    power = np.abs(np.fft.rfft(added[0])) ** 2
    assert np.fft.rfftfreq(1000, 1 / 250)[power.argmax()] == 50 and power.max() > 0.999 * power.sum()
    assert np.abs(added).max(axis=1) == pytest.approx(0.3 * x.std(axis=1), rel=0.02)
    assert np.array_equal(augment.powerline(x, 100, 50.0, 0.3, 0.4), x)  # 50 Hz at 100 Hz is nothing


def test_dropped_channels_and_cut_stretches_are_absent():
    x = _window()
    out = augment.drop_channels(x, np.array([False, True, False]))
    assert np.isnan(out[1]).all() and np.array_equal(out[[0, 2]], x[[0, 2]], equal_nan=True)
    out = augment.cutout(x, 250, 0.5, 1.0)
    assert np.isnan(out[:, 375:625]).all()
    rest = np.r_[0:375, 625:1000]
    assert np.array_equal(out[:, rest], x[:, rest], equal_nan=True)


def test_one_channel_always_stays():
    config, x = AugmentConfig(drop=1.0, probability=1.0), _window()
    x[1] = np.nan  # was absent before
    stayed = []
    for seed in range(20):
        there = ~np.isnan(augment.apply(x, 250, config, np.random.default_rng(seed))).all(axis=1)
        assert there.sum() == 1
        stayed.append(int(there.argmax()))
    assert set(stayed) == {0, 2}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3), st.integers(0, 1200), st.sampled_from([25, 250]))
def test_apply_is_a_pure_function_of_its_generator(seed, channels, n, rate):
    x = np.random.default_rng(seed).normal(size=(channels, n)).astype(np.float32)
    before = x.copy()
    one, two = (augment.apply(x, rate, EVERYTHING, np.random.default_rng(seed)) for _ in range(2))
    assert np.array_equal(one, two, equal_nan=True) and one.dtype == np.float32
    assert np.array_equal(x, before) and not np.shares_memory(one, x)
    assert one.shape == (channels, min(n, 2 * rate))


def test_apply_keeps_its_order():
    x = _window(n=1000)
    config = AugmentConfig(crop_seconds=2.0, shift_seconds=0.5, noise=0.2, cutout_seconds=0.5, probability=1.0)
    out = augment.apply(x, 250, config, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    place, moved, at, length = rng.random(4)
    rng.random(6)
    want = augment.shift(augment.crop(x, 250, place, 2.0), 250, (2 * moved - 1) * 0.5)
    want = augment.noise(want, rng.uniform(0, 0.2), rng)
    assert np.array_equal(out, augment.cutout(want, 250, at, length * 0.5), equal_nan=True)


def test_sensors_of_one_window_move_together():
    config = dataclasses.replace(EVERYTHING, noise=0.0, powerline=0.0, drop=0.0)
    fast = np.tile(np.arange(2500.0), (12, 1)) / 250  # samples tell their own time
    slow = np.tile(np.arange(250.0), (1, 1)) / 25
    for seed in range(5):
        a, b = (augment.apply(x, r, config, np.random.default_rng(seed)) for x, r in ((fast, 250), (slow, 25)))
        a, b = a[0, ::10], b[0]
        both = ~np.isnan(a) & ~np.isnan(b)
        assert both.sum() > 20 and (np.isnan(a) != np.isnan(b)).sum() <= 4
        ratio = a[both] / b[both]
        assert np.abs(a[both] / np.median(ratio) - b[both]).max() < 0.15  # within samples of the slower one


def test_the_default_changes_nothing_and_wrong_amounts_are_refused():
    x = _window()
    assert np.array_equal(augment.apply(x, 250, AugmentConfig(), np.random.default_rng(0)), x, equal_nan=True)
    never = dataclasses.replace(EVERYTHING, crop_seconds=0.0, probability=0.0)
    assert np.array_equal(augment.apply(x, 250, never, np.random.default_rng(0)), x, equal_nan=True)
    EVERYTHING.check()
    for field, value in (("drop", 1.5), ("noise", -0.1), ("scale", float("nan"))):
        with pytest.raises(BadInput, match=f"augment.{field}"):
            AugmentConfig(**{field: value}).check()
