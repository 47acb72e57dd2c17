"""The simulated cohort holds what its labels and reports say."""

import neurokit2
import numpy as np
import pytest

from data_pipelines.datasets import open_sources
from data_pipelines.errors import BadInput
from data_pipelines.signals import standard_name

SEEDS = ("simulated:seed=3", "simulated:seed=4")


@pytest.fixture(scope="module")
def cohort():
    (source,) = open_sources("simulated:subjects=60,seed=3")
    return source, [source.read(entry) for entry in source.entries()]


def test_kinds_labels_and_reports(cohort):
    source, recordings = cohort
    assert source.public and source.entries() == sorted(source.entries(), key=lambda e: e.study)
    assert len({r.subject for r in recordings}) == 60 and len(recordings) == 80
    assert {len(r.channels) for r in recordings} == {12, 3, 1}
    for recording in recordings:
        assert all(standard_name(c.name, c.unit) for c in recording.channels)
        assert all(c.signal.dtype == np.float32 and np.isfinite(c.signal).all() for c in recording.channels)
        assert all(c.seconds == recording.seconds for c in recording.channels)
        assert recording.seconds == (10 if len(recording.channels) == 12 else 30)
        assert f"{round(recording.labels['heart_rate'])} beats per minute" in recording.report
        assert ("irregular" in recording.report) == (recording.labels["rhythm/irregular"] == 1)
        assert ("much noise" in recording.report) == (recording.labels["noise/much"] == 1)
    for label in ("rhythm/irregular", "rate/fast", "noise/much"):
        assert 0.15 < np.mean([r.labels[label] for r in recordings]) < 0.75


def test_a_detector_finds_the_labelled_rate_and_rhythm(cohort):
    regular, irregular = [], []
    for recording in cohort[1]:
        channel = next((c for c in recording.channels if c.name == "II"), None)
        if channel is None or recording.labels["noise"] == 2:
            continue
        rate = int(channel.rate)
        _, found = neurokit2.ecg_peaks(neurokit2.ecg_clean(channel.signal, sampling_rate=rate), sampling_rate=rate)
        intervals = np.diff(found["ECG_R_Peaks"]) / rate
        if not recording.labels["rhythm/irregular"]:
            assert 60 / np.median(intervals) == pytest.approx(recording.labels["heart_rate"], rel=0.05)
        (irregular if recording.labels["rhythm/irregular"] else regular).append(intervals.std() / intervals.mean())
    assert len(regular) > 5 and len(irregular) > 3
    assert np.median(regular) < 0.05 < 0.12 < np.median(irregular)


def test_irregular_beats_have_no_p_wave(cohort):
    heights = {0.0: [], 1.0: []}
    for recording in cohort[1]:
        channel = next((c for c in recording.channels if c.name == "II"), None)
        if channel is None or recording.labels["noise"] or recording.labels["rate/fast"]:
            continue
        rate = int(channel.rate)
        _, found = neurokit2.ecg_peaks(neurokit2.ecg_clean(channel.signal, sampling_rate=rate), sampling_rate=rate)
        before = found["ECG_R_Peaks"][1:, None] + (rate * np.array([-0.19, -0.10])).astype(int)
        peak, flat = channel.signal[before].mean(axis=0)
        heights[recording.labels["rhythm/irregular"]].append(peak - flat)
    assert min(heights[0.0]) > 0.04 > 0.03 > np.median(heights[1.0])


def test_limb_leads_obey_einthoven_up_to_their_noise(cohort):
    quiet = next(r for r in cohort[1] if len(r.channels) == 12 and r.labels["noise"] == 0)
    lead = {c.name: c.signal for c in quiet.channels}
    error = lead["I"] + lead["III"] - lead["II"]
    assert np.abs(error - error.mean()).max() < 0.15 < np.ptp(lead["II"])


def test_the_pulse_follows_the_heart(cohort):
    recording = next(r for r in cohort[1] if len(r.channels) == 3 and r.labels["noise"] == 0)
    pulse = next(c for c in recording.channels if c.name == "PLETH")
    _, found = neurokit2.ppg_peaks(pulse.signal, sampling_rate=125)
    rate = 60 * 125 / np.mean(np.diff(found["PPG_Peaks"]))
    assert rate == pytest.approx(recording.labels["heart_rate"], rel=0.08)


def test_a_subject_depends_on_seed_and_number_only(cohort):
    def signal(text):
        source = open_sources(text)[0]
        return np.concatenate([c.signal for c in source.read(source.entries()[3]).channels])

    np.testing.assert_array_equal(signal("simulated:subjects=5,seed=3"), signal("simulated:subjects=9,seed=3"))
    assert signal("simulated:subjects=5,seed=3").tobytes() != signal("simulated:subjects=5,seed=4").tobytes()
    rates = [source.read(source.entries()[3]).labels["heart_rate"] for (source,) in map(open_sources, SEEDS)]
    assert abs(rates[0] - rates[1]) > 1
    first, second = cohort[1][0], cohort[1][1]  # two recordings of one person: same rhythm, other samples
    assert first.subject == second.subject and first.labels["noise"] == second.labels["noise"]
    assert not np.array_equal(first.channels[0].signal, second.channels[0].signal)


@pytest.mark.parametrize("text", ["simulated:subjects=0", "simulated:people=3", "simulated:seed=-1", "simulated:seed"])
def test_wrong_options_are_refused(text):
    with pytest.raises(BadInput, match="simulated"):
        open_sources(text)
