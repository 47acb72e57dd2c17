"""Signal quality: what is wrong is measured where it is, kept in the store, and filters or weighs windows."""

import numpy as np
import pytest
from test_prepare import Cohort

from data_pipelines import preprocess
from data_pipelines.config import DataConfig, TokenConfig, WindowConfig
from data_pipelines.datasets import open_sources
from data_pipelines.errors import BadInput
from data_pipelines.prepare import prepare
from data_pipelines.quality import MEASURES, measure, segment_count, window_quality
from data_pipelines.recording import Channel, Recording
from data_pipelines.store import Store
from data_pipelines.windows import epoch_windows

RATE = 250
TOKENS = TokenConfig(modalities=("ecg", "ppg"), text_length=0)


@pytest.fixture(scope="module")
def clean():
    """Thirty seconds of one simulated person's lead II and PPG, with little noise."""
    (source,) = open_sources("simulated:subjects=60,seed=5")
    for entry in source.entries():
        recording = source.read(entry)
        if len(recording.channels) == 3 and recording.labels["noise"] == 0:
            return {"PPG" if c.name == "PLETH" else c.name: c for c in recording.channels}


def measured(*channels, mains=50.0):
    given = [(c.name, c.rate, c.unit, c.start, c.signal) for c in channels]
    prepared = preprocess.prepare(given, spec=preprocess.SPECS["csfm-jax"], mains=mains)
    found = measure(given, prepared, mains)
    return {name: found.table[..., i] / 255 for i, name in enumerate(MEASURES)}


def changed(channel, change):
    signal = channel.signal.astype(np.float64)
    middle = slice(int(10 * channel.rate), int(20 * channel.rate))
    signal[middle] = change(signal[middle], np.arange(middle.stop - middle.start) / channel.rate)
    return Channel(channel.name, channel.rate, channel.unit, signal.astype(np.float32), channel.start)


def test_a_clean_signal_is_good(clean):
    for name in ("II", "PPG"):
        found = measured(clean[name])
        assert found["quality"].shape == (1, 3) and (found["quality"] > 0.7).all()
        for wrong in ("missing", "flat", "clipped", "implausible"):
            assert (found[wrong] < 0.02).all()


DAMAGE = {
    "missing": lambda x, t: np.where(t < 5, np.nan, x),
    "flat": lambda x, t: np.where(t < 5, x[0], x),
    "clipped": lambda x, t: np.clip(x + 1.5 * np.sin(9 * t), -0.5, 0.5),
    "powerline": lambda x, t: x + 2 * np.sin(2 * np.pi * 50 * t),
    "baseline": lambda x, t: x + 20 * np.sin(2 * np.pi * 0.2 * t),
    "implausible": lambda x, t: np.where((t > 2) & (t < 6), x + 9 * np.sign(np.sin(20 * t)), x),
    "index": lambda x, t: np.random.default_rng(0).normal(0, x.std(), len(x)),
}


@pytest.mark.parametrize("wrong", DAMAGE)
def test_damage_is_measured_in_its_segment_and_channel(clean, wrong):
    bad = changed(clean["II"], DAMAGE[wrong])
    if wrong == "clipped":  # the extremes of the channel are those of the clipped stretch
        bad = Channel("II", bad.rate, bad.unit, np.clip(bad.signal, -0.5, 0.5))
    found = measured(bad, clean["PPG"])
    sizes = {"missing": 0.45, "flat": 0.45, "clipped": 0.2, "powerline": 0.5, "baseline": 0.5, "implausible": 0.2}
    if wrong == "index":
        assert found["index"][0, 1] < 0.3 < found["index"][0, [0, 2]].min()
    else:
        assert found[wrong][0, 1] > sizes[wrong]
        assert found[wrong][0, [0, 2]].max() < found[wrong][0, 1] / 2
    assert found["quality"][0, 1] < found["quality"][0, [0, 2]].min() or wrong == "powerline"
    np.testing.assert_allclose(found["quality"][1], measured(clean["PPG"])["quality"][0], atol=0.01)


@pytest.mark.filterwarnings("error::RuntimeWarning:data_pipelines")
def test_numbers_beyond_all_bounds_have_no_quality(clean):
    signal = clean["II"].signal.copy()
    signal[int(20 * clean["II"].rate) :] = 3e38  # their sum is none
    found = measured(clean["II"]._replace(signal=signal))
    assert found["implausible"][0, 2] > 0.9 and found["quality"][0, 2] == 0 < found["quality"][0, 0]


def test_a_late_channel_is_missing_before_it_begins(clean):
    late = Channel("PPG", 250, "NU", clean["PPG"].signal[: 250 * 15], start=12.0)
    found = measured(clean["II"], late)
    assert found["missing"][1, 0] == 1 and 0.1 < found["missing"][1, 1] < 0.3 and found["missing"][0].max() < 0.02


def noisy_store(path, clean):
    """Recordings of 30 s; of every second one, the last 20 s are noise."""
    source = Cohort(subjects=20)
    bad = changed(clean["II"], DAMAGE["index"])
    worse = np.concatenate([bad.signal[: 250 * 10], np.tile(bad.signal[250 * 10 : 250 * 20], 2)])
    channels = (Channel("II", 500, "mV", clean["II"].signal), Channel("II", bad.rate, "mV", worse))
    clean_one = Channel("II", clean["II"].rate, "mV", clean["II"].signal)
    source.read = lambda entry: Recording(
        (clean_one if int(entry.study[-3:]) % 2 else channels[1],), entry.subject, entry.study, source.name
    )
    prepare(source, path, shards=3)
    return Store.open(path)


def test_windows_are_filtered_and_weighed(tmp_path, clean):
    store = noisy_store(tmp_path / "s", clean)
    table = store.quality()
    assert len(table["quality"]) == sum(map(segment_count, store.index.milliseconds))
    window = WindowConfig(seconds=10.0, random_start=False)

    def windows(split="train", epoch=0, **data):
        return epoch_windows([store], TOKENS, DataConfig(window=window, row_tokens=512, **data), split, epoch)

    everything = windows()
    filtered = windows(quality_minimum=0.4)
    score = window_quality(table["recording"], table["segment"], table["quality"], store.index.milliseconds,
                           everything.recording, everything.start, everything.seconds)  # fmt: skip
    assert len(filtered) == np.count_nonzero(score >= 0.4) < len(everything)
    assert filtered.skipped["windows of too little quality"] == len(everything) - len(filtered)
    weighed = [windows(quality_weight=True, epoch=epoch) for epoch in range(6)]
    share = np.mean([len(w) for w in weighed]) / len(everything)
    assert share == pytest.approx(score.mean(), abs=0.06) and len({len(w) for w in weighed}) > 1
    assert len(windows(quality_weight=True, epoch=3)) == len(weighed[3])
    assert len(windows("test", quality_minimum=0.9)) == len(windows("test"))  # evaluation leaves nothing out
    with pytest.raises(BadInput, match="quality_minimum"):
        windows(quality_minimum=1.0)
    with pytest.raises(BadInput, match="too little quality"):
        windows(quality_minimum=0.999)


def test_window_quality_is_the_mean_of_the_segments_it_touches():
    recording, segment = np.array([0, 0, 0, 1]), np.array([0, 1, 2, 0])
    quality = np.array([255, 0, 51, 102], np.uint8)
    args = (recording, segment, quality, np.array([25000, 8000, 5000]))
    found = window_quality(
        *args, np.array([0, 0, 0, 1, 2]), np.array([0, 5, 10, 0, 0.0]), np.array([10, 10, 15, 8, 5.0])
    )
    np.testing.assert_allclose(found, [1, 0.5, 0.1, 0.4, 1], atol=1e-6)
