"""Preprocessing: time, gain, invalid spans, quantisation, and what it refuses."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_pipelines import filters, preprocess, store
from data_pipelines.errors import BadInput
from data_pipelines.preprocess import INVALID, SPECS, normalise, prepare, prepare_channel, tokens
from data_pipelines.signals import CHANNEL_ID, MODALITIES
from data_pipelines.store_format import check_spec

OURS, PUBLISHED = SPECS["csfm-jax"], SPECS["csfm-published"]


def sine(hertz, rate, seconds, start=0.0):
    return np.sin(2 * np.pi * hertz * (np.arange(int(seconds * rate)) / rate + start))


def gain(hertz, name="II", unit="mV", mains=50.0, seconds=40, rate=500):
    """Amplitude out per amplitude in, away from the edges."""
    made = prepare_channel(sine(hertz, rate, seconds), rate, unit, name, spec=OURS, mains=mains)
    modality = preprocess.CHANNELS[CHANNEL_ID[made.report["channel"]]].modality
    middle = made.samples[len(made.samples) // 4 : 3 * len(made.samples) // 4].astype(float)
    return middle.std() * np.sqrt(2) * MODALITIES[modality].step


@pytest.mark.parametrize("rate", [100, 125, 249.89, 360, 400, 500, 1000])
@pytest.mark.parametrize("start", [0.0, 0.0137])
def test_resampling_keeps_time(rate, start):
    """A 7 Hz sine keeps its phase to 0.1 ms, whatever its rate and wherever its first sample lies."""
    made = prepare_channel(sine(7, rate, 10, start), rate, "mV", "II", start, spec=OURS, mains=50.0)
    t = np.arange(len(made.samples)) / 250
    inside = (t > 2) & (t < 8)
    spectrum = np.sum(made.samples[inside] * np.exp(-2j * np.pi * 7 * t[inside]))
    delay = (-np.pi / 2 - np.angle(spectrum)) / (2 * np.pi * 7)
    assert abs(delay) < 1e-4
    np.testing.assert_allclose(made.samples[inside], 1000 * np.sin(2 * np.pi * 7 * t[inside]), atol=5)
    assert np.all(made.samples[: int(np.ceil(start * 250 - 1e-6))] == INVALID)
    assert np.all(made.samples[4:-4] != INVALID)


@pytest.mark.parametrize("rate", [100, 360, 500, 1000])
def test_impulse_stays_where_it_was(rate):
    x = np.random.default_rng(0).normal(size=int(10 * rate)) * 1e-3  # not flat
    x[int(4 * rate)] += 5.0
    samples = prepare_channel(x, rate, "mV", "V1", spec=OURS, mains=50.0).samples
    assert np.argmax(samples) == 4 * 250


def test_gains():
    """ECG: the baseline and the mains are gone, the band stays; PPG: 0.5-8 Hz."""
    assert gain(0.05) < 0.01
    assert abs(gain(0.5) - 0.5) < 0.02  # -6 dB: passed twice
    assert gain(5) == pytest.approx(1, abs=0.01)
    assert gain(40) == pytest.approx(1, abs=0.02)
    assert gain(50) < 0.02
    assert gain(50, mains=60.0) == pytest.approx(1, abs=0.02)
    assert gain(60, mains=None) < 0.02 and gain(50, mains=None) < 0.02
    assert gain(180) < 0.01  # would alias to 70 Hz
    mixed = sine(1, 500, 40) + 0.2 * sine(30, 500, 40)
    pure = sine(1, 500, 40)
    a, b = (prepare_channel(x, 500, "NU", "PLETH", spec=OURS).samples[2000:-2000].astype(float) for x in (mixed, pure))
    assert np.corrcoef(a, b)[0, 1] > 0.9999
    assert gain(0.01, "ABP", "mmHg", seconds=400) == pytest.approx(1, abs=0.05)  # the mean pressure carries meaning


def test_units():
    x = sine(5, 250, 10)
    millivolt = prepare_channel(x, 250, "mV", "II", spec=OURS).samples
    for unit, factor in (("V", 1e-3), ("uV", 1e3), ("µV", 1e3), ("nV", 1e6)):
        other = prepare_channel(x * factor, 250, unit, "II", spec=OURS).samples
        assert np.abs(other.astype(int) - millivolt).max() <= 1
    refused = prepare_channel(x, 250, "mmHg", "II", spec=OURS)
    assert refused.samples.size == 0 and "not convertible" in refused.report["reason"]
    for unit in ("NU", "adu", "mV", ""):  # no physical scale anyhow
        assert prepare_channel(x, 250, unit, "PLETH", spec=OURS).report["status"] == "kept"


def test_scale_of_unitless_sensors_does_not_matter():
    x = sine(1.2, 125, 20) + 0.3 * sine(2.4, 125, 20)
    a, b = (prepare_channel(x * k + 7, 125, "NU", "PLETH", spec=OURS).samples for k in (1e-4, 1e4))
    assert np.abs(a.astype(int) - b).max() <= 1
    assert 500 < a.std() < 3000  # about a thousand counts a deviation


@pytest.mark.parametrize("gap", [0.1, 0.5, 2.0, 8.0])
def test_gap_is_absent_and_does_not_ring(gap):
    """Tokens that touch a gap are absent; 0.5 s away from it, samples are as without it (0.1 of a deviation)."""
    rng = np.random.default_rng(1)
    beat = np.exp(-((np.arange(500) - 150) ** 2) / 50)
    x = np.tile(beat, 30) + 0.05 * np.cumsum(rng.normal(size=15000)) / 10
    whole = prepare_channel(x, 500, "mV", "II", spec=OURS, mains=50.0).samples
    holed = x.copy()
    holed[5000 : 5000 + int(gap * 500)] = np.nan
    made = prepare_channel(holed, 500, "mV", "II", spec=OURS, mains=50.0).samples
    bad = np.flatnonzero(made == INVALID) / 250
    assert 10 - 0.05 < bad[0] < 10 <= 10 + gap - 0.01 < bad[-1] < 10 + gap + 0.05
    assert len(bad) == round((bad[-1] - bad[0]) * 250) + 1
    t = np.arange(len(made)) / 250
    away = (t < 9.5) | (t > 10.5 + gap)
    difference = np.abs(made.astype(float) - whole)
    assert difference[away].max() < 0.1 * whole.std()
    _, times, valid = tokens(normalise(made), 25, 250)
    absent = times[~valid]
    assert 9.8 < absent.min() and absent.max() < 10.2 + gap and absent.size >= gap / 0.1


def test_flat_stretch_is_invalid_but_spo2_may_be_constant():
    x = np.random.default_rng(2).normal(size=5000)
    x[1000:1499] = x[1000]  # just short of a second
    x[3000:3500] = 0.3
    made = prepare_channel(x, 500, "mV", "II", spec=OURS).samples
    assert not np.any(made[400:800] == INVALID)
    assert np.all(made[1500:1750] == INVALID) and np.mean(made == INVALID) < 0.12
    constant = prepare_channel(np.full(60, 97.0), 1, "%", "SpO2", spec=OURS)
    np.testing.assert_array_equal(constant.samples, 9700)


def test_recording_of_mixed_and_unusable_channels():
    rng = np.random.default_rng(3)
    ecg, ppg, breath = rng.normal(size=5000), rng.normal(size=1250), rng.normal(size=625).cumsum()
    late = rng.normal(size=1000)
    made = prepare(
        [
            ("PLETH", 125, "NU", 0.0, ppg),
            ("MLII", 500, "mV", 0.0, ecg),
            ("II", 500, "mV", 0.0, ecg * 2),
            ("V1", 500, "mV", 0.0, np.full(5000, np.nan)),
            ("V2", 500, "mV", 0.0, np.zeros(5000)),
            ("V3", 500, "mV", 0.0, ecg[:100]),
            ("V4", 500, "mV", 4.0, late),
            ("V5", 5, "mV", 0.0, ecg[:50]),
            ("XYZ", 500, "furlong", 0.0, ecg),
            ("RESP", 62.5, "pm", 0.0, breath),
            ("weird lead", 500, "mV", 0.0, ecg),
        ],
        spec=OURS,
        mains=None,
    )
    names = [preprocess.CHANNELS[c].name for c in made.channels]
    assert names == ["II", "V4", "PPG", "ECG other", "RESP"]
    assert made.seconds == 10.0 and made.channels.dtype == np.int32
    for channel, samples in zip(made.channels, made.samples):
        assert samples.dtype == np.int16 and len(samples) == 10 * store.modality_of(int(channel)).rate
    assert made.report[1]["status"] == "kept" and made.report[1]["rate"] == 500
    reasons = {r["name"]: r.get("reason") for r in made.report}
    assert reasons["II"] == "duplicate of another channel"
    assert reasons["V1"] == reasons["V2"] == "flat or invalid throughout"
    assert (reasons["V3"], reasons["V5"], reasons["XYZ"]) == ("too short", "rate too low", "unknown name")
    v4 = made.samples[1]
    assert np.all(v4[:1000] == INVALID) and np.all(v4[1000:1500] != INVALID) and np.all(v4[1500:] == INVALID)


def test_an_invalid_first_copy_leaves_the_second():
    x = np.random.default_rng(4).normal(size=2500)
    made = prepare([("II", 250, "mmHg", 0, x), ("MLII", 250, "mV", 0, x)], spec=OURS)
    assert made.channels.tolist() == [CHANNEL_ID["II"]]


def test_nothing_usable_is_no_error():
    for channels in ([], [("II", 500, "mV", 0, np.zeros(0))], [("II", 0.0, "mV", 0, np.ones(9))]):
        made = prepare(channels, spec=OURS)
        assert made.channels.size == 0 and made.samples == []
    assert prepare([("SpO2", 1, "%", 0, np.array([97.0]))], spec=OURS).samples[0].tolist() == [9700]


def test_out_of_range_is_invalid_and_ruins_nothing_else():
    x = sine(5, 500, 10)
    spike = x.copy()
    spike[2500] = 1e7
    a, b = (prepare_channel(s, 500, "mV", "II", spec=OURS, mains=50.0).samples for s in (x, spike))
    assert np.any(b[1245:1256] == INVALID)
    elsewhere = np.r_[0:1240, 1260:2500]
    assert np.abs(a[elsewhere].astype(int) - b[elsewhere]).max() < 20
    offset = prepare_channel(x + 300, 500, "mV", "II", spec=OURS, mains=50.0).samples  # electrode offset: filtered away
    assert np.abs(a[200:-200].astype(int) - offset[200:-200]).max() <= 1


def test_no_look_ahead_beyond_the_crop():
    x = np.random.default_rng(5).normal(size=5000)
    cut = prepare_channel(x[:2500], 500, "mV", "II", spec=OURS).samples
    changed = x.copy()
    changed[2500:] = 9
    np.testing.assert_array_equal(prepare_channel(changed[:2500], 500, "mV", "II", spec=OURS).samples, cut)


def test_one_channel_is_the_same_alone_and_among_twelve():
    x = np.random.default_rng(6).normal(size=(12, 5000))
    leads = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    together = prepare([(n, 500, "mV", 0, row) for n, row in zip(leads, x)], spec=OURS)
    alone = prepare_channel(x[7], 500, "mV", "V2", spec=OURS)
    np.testing.assert_array_equal(together.samples[7], alone.samples)


@given(
    hnp.arrays(np.int16, st.tuples(st.integers(1, 4), st.integers(1, 300)), elements=st.integers(-32768, 32767)),
    st.integers(1, 40),
)
@settings(max_examples=80, deadline=None)
def test_normalise_and_tokens(window, patch):
    z = normalise(window)
    bad = window == INVALID
    assert z.dtype == np.float32 and np.array_equal(np.isnan(z), bad)
    for row, wrong in zip(z, bad):
        good = row[~wrong].astype(float)
        if good.size:
            assert abs(good.mean()) < 1e-3 and (good.std() == pytest.approx(1, abs=1e-3) or np.ptp(good) == 0)
    patches, times, valid = tokens(z, patch, 250)
    k = window.shape[1] // patch
    assert patches.shape == (len(window), k, patch) and np.isfinite(patches).all() and patches.dtype == np.float32
    cut = bad[:, : k * patch].reshape(len(window), k, patch)
    np.testing.assert_array_equal(valid, ~cut.any(axis=2))
    np.testing.assert_allclose(times, [(i + 0.5) * patch / 250 for i in range(k)], rtol=1e-6)


@given(st.lists(st.tuples(st.integers(0, 4999), st.integers(1, 900)), max_size=4), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_every_invalid_sample_is_covered(gaps, seed):
    x = np.random.default_rng(seed).normal(size=5000)
    for begin, length in gaps:
        x[begin : begin + length] = np.nan if length % 2 else np.inf
    made = prepare_channel(x, 500, "mV", "II", spec=OURS).samples
    bad = ~np.isfinite(x)
    if (~bad).sum() < 250:
        assert made.size == 0
        return
    assert np.all(made[np.unique(np.flatnonzero(bad) // 2)] == INVALID)
    far = np.convolve(bad, np.ones(61), "same")[::2] == 0  # further than 60 ms from any
    assert np.all(made[far[: len(made)]] != INVALID)


def test_quantisation_is_rounding_to_the_step():
    x = np.random.default_rng(7).normal(size=2000) * 10 + 90
    samples = prepare_channel(x, 1, "%", "SpO2", spec=OURS).samples
    inside = (x >= 1) & (x <= 101)
    keep = samples != INVALID
    assert not np.any(keep & ~inside)
    np.testing.assert_array_equal(samples[keep], np.rint(x[keep] / 0.01))


@pytest.mark.parametrize("rate", [250, 500, 400])
def test_published_equals_neurokit2(rate):
    nk = pytest.importorskip("neurokit2")
    from scipy import signal as dsp

    rng = np.random.default_rng(8)
    x = rng.normal(size=10 * rate).cumsum() * 0.02 + 0.1 * sine(50, rate, 10)
    at_250 = dsp.resample(x, 2500) if rate != 250 else x
    ecg = prepare_channel(x, rate, "mV", "II", spec=PUBLISHED).samples
    np.testing.assert_allclose(ecg, nk.ecg_clean(at_250, sampling_rate=250) / 0.001, atol=0.501)
    ppg = prepare_channel(x, rate, "NU", "PLETH", spec=PUBLISHED).samples
    np.testing.assert_allclose(normalise(ppg), normalise(nk.ppg_clean(at_250, sampling_rate=250)), atol=2e-3)
    exact = filters.published_cleaning(x[None].copy(), rate, PUBLISHED.rule("ecg"))[0]
    np.testing.assert_allclose(exact, nk.ecg_clean(at_250, sampling_rate=250), atol=1e-10)
    assert prepare_channel(x, rate, "uV", "EEG C3", spec=PUBLISHED).report["reason"].startswith("modality unknown")


def test_specs_name_themselves():
    for spec in SPECS.values():
        again = preprocess.Spec.from_dict(spec.to_dict())
        assert again == spec and again.digest() == spec.digest() and len(spec.digest()) == 16
    newer = dataclasses.replace(OURS, version=2, order=3)
    assert newer.digest() != OURS.digest()
    with pytest.raises(BadInput, match=r"store/manifest.json: found .*csfm-jax version 2.*csfm-jax version 1"):
        check_spec(newer, OURS, "store/manifest.json")
    with pytest.raises(BadInput, match="csfm-published version 1.*csfm-jax version 1"):
        check_spec(PUBLISHED.to_dict(), OURS, "checkpoint")
    with pytest.raises(BadInput, match="version 9"):
        check_spec({"name": "csfm-jax", "version": 9, "novelty": 1}, OURS, "checkpoint")
    check_spec(OURS.to_dict(), OURS, "checkpoint")
    with pytest.raises(ValueError, match="csfm-published"):
        preprocess.get_spec("csfm")


def test_runs_beside_an_exported_model(tmp_path):
    """The file works outside the package, with filters.py, signals.py, NumPy and SciPy only."""
    here = Path(preprocess.__file__).parent
    for name in ("preprocess.py", "filters.py", "signals.py"):
        (tmp_path / name).write_bytes((here / name).read_bytes())
    code = (
        "import sys, numpy as np, preprocess as p;"
        "x = np.sin(np.arange(5000) / 16);"
        "print(p.prepare_channel(x, 500, 'mV', 'II', spec=p.get_spec('csfm-jax')).samples[1000]);"
        "assert not {'jax', 'pyarrow', 'data_pipelines', 'wfdb'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    x = np.sin(np.arange(5000) / 16)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == prepare_channel(x, 500, "mV", "II", spec=OURS).samples[1000]


def test_a_channel_that_starts_days_later_is_left_out():
    x = np.random.default_rng(0).normal(size=2500)
    places = (("II", 250, "mV", 0.0), ("V1", 250, "mV", 60000.0), ("V2", 250, "mV", 300.0), ("?", 1, "", 1e9))
    made = prepare([(*place, x) for place in places], spec=OURS)
    assert [row.get("reason") for row in made.report] == [None, "starts too late", None, "unknown name"]
    assert made.seconds == 310
    sparse = prepare([("II", 250, "mV", 0.0, x), ("Temp", 1 / 3600, "C", 0.0, x)], spec=OURS)
    assert sparse.seconds == 10  # one number an hour, left out, makes it no longer
    night = [("II", 250, "mV", 0.0, np.tile(x, 120)), ("V1", 250, "mV", 2400.0, np.tile(x, 120))]
    assert prepare(night, spec=OURS).seconds == 3600  # one after the other
