"""Signal quality of every channel in segments of ten seconds: what is wrong with it, and one score from 0 to 1.

Measured as recorded (before any filter): samples that are missing, flat, clipped or beyond what a body can do, and the
power of the mains and of the baseline's wander. The index of ECG follows Clifford et al. 2012 (Physiol Meas 33:1419)
and Zhao & Zhang 2018 (Front Physiol 9:727): kurtosis, the share of QRS power, the share of baseline power; that of PPG
is the skewness of Elgendi 2016 (Bioengineering 3:21). Other sensors have no index of their own.
"""

from dataclasses import dataclass

import numpy as np
import scipy

from data_pipelines.preprocess import INVALID, PreparedRecording, unit_factor
from data_pipelines.signals import CHANNEL_ID, CHANNELS, MODALITIES

SEGMENT_SECONDS = 10
MEASURES = ("missing", "flat", "clipped", "powerline", "baseline", "implausible", "index", "quality")
_FLAT_SECONDS, _CLIPPED_SAMPLES = 0.2, 3
# Beyond these a value is no physiology: range after the mean is taken off (True) or as it is (False), modality's unit.
_PLAUSIBLE = {
    "ecg": (-5.0, 5.0, True),  # mV: the tallest R waves of left ventricular hypertrophy are below 5
    "eeg": (-500.0, 500.0, True),  # uV: slow waves of deep sleep stay below 300
    "eog": (-1000.0, 1000.0, True),
    "emg": (-2000.0, 2000.0, True),
    "abp": (-20.0, 300.0, False),  # mmHg, venous pressures too
    "spo2": (50.0, 100.5, False),
}


@dataclass(frozen=True)
class Quality:
    """One recording's quality.

    Attributes:
        channels: int32 [C], ids of the kept channels, ascending.
        table: uint8 [C, segments, len(MEASURES)], shares and scores from 0 to 1 as 0 to 255.
    """

    channels: np.ndarray
    table: np.ndarray


def segment_count(milliseconds: int) -> int:
    """Segments of a recording; the last may be shorter."""
    return max(1, -(-int(milliseconds) // (SEGMENT_SECONDS * 1000)))


def measure(channels, prepared: PreparedRecording, mains: float | None) -> Quality:
    """Measures the kept channels of one recording.

    Args:
        channels: as given to `preprocess.prepare`: (name, rate in Hz, unit, start in seconds, signal [samples]) each.
        prepared: what it returned. mains: powerline frequency in Hz; None looks at 50 and 60.
    """
    segments = segment_count(prepared.milliseconds)
    kept = {CHANNEL_ID[r["channel"]]: i for i, r in enumerate(prepared.report) if r["status"] == "kept"}
    values = np.zeros((len(prepared.channels), segments, len(MEASURES)), np.float32)
    # channels recorded alike are measured together, which is several times as fast
    groups: dict[tuple, list[int]] = {}
    for row, channel in enumerate(prepared.channels):
        _, rate, unit, start, signal = channels[kept[int(channel)]]
        groups.setdefault((CHANNELS[channel].modality, rate, start, len(signal), unit), []).append(row)
    for (modality, rate, start, _, unit), rows in groups.items():
        raw = np.stack([channels[kept[int(prepared.channels[row])]][4] for row in rows])
        samples = np.stack([prepared.samples[row] for row in rows])
        with np.errstate(over="ignore", invalid="ignore"):  # numbers whose squares are none: the score is 0
            values[rows] = _measures(modality, raw, float(rate), unit, float(start), samples, segments, mains)
    return Quality(prepared.channels, np.rint(255 * np.clip(np.nan_to_num(values), 0, 1)).astype(np.uint8))


def _measures(modality, raw, rate, unit, start, samples, segments, mains) -> np.ndarray:
    """float32 [C, segments, measures] of channels of one modality that were recorded alike."""
    x = _segments(raw.astype(np.float32), rate, start, segments)
    there = np.isfinite(x)
    whole = there.all()
    count = np.maximum(np.count_nonzero(there, axis=2), 1)
    flat, clipped = _runs(x, rate)
    counts = _segments(samples.astype(np.float32), MODALITIES[modality].rate, 0.0, segments)
    valid = np.isfinite(counts) & (counts != INVALID)
    length = np.maximum(np.count_nonzero(np.isfinite(counts), axis=2), 1)
    missing = 1 - np.count_nonzero(valid, axis=2) / length
    filled = x if whole else np.where(there, x, 0)
    centred = filled - (filled.sum(axis=2) / count)[..., None]
    if not whole:
        centred[~there] = 0
    spectrum = scipy.fft.rfft(centred, axis=2)
    power = spectrum.real**2 + spectrum.imag**2
    hertz = np.fft.rfftfreq(x.shape[2], 1 / rate)
    total = _band(power, hertz, 0, min(100.0, rate / 2)) + 1e-20
    powerline = sum(_band(power, hertz, f - 1, f + 1) for f in ([mains] if mains else [50.0, 60.0])) / total
    baseline = _band(power, hertz, 0, 0.5 if modality == "ecg" else 0.05) / total
    implausible = _implausible(modality, filled, centred, there, unit) / count
    index = _index(modality, counts, valid, power, hertz, baseline)
    damage = np.clip(missing + flat / count + clipped / count + implausible, 0, 1)
    return np.stack(
        [missing, flat / count, clipped / count, powerline, baseline, implausible, index, index * (1 - damage)], axis=2
    )


def _segments(x: np.ndarray, rate: float, start: float, segments: int) -> np.ndarray:
    """[C, n] -> [C, segments, samples of one], NaN before the channel's start and after its end."""
    width = max(1, round(SEGMENT_SECONDS * rate))
    lead = max(0, round(start * rate))
    out = np.full((len(x), segments * width), np.nan, np.float32)
    body = x[:, : max(0, segments * width - lead)]
    out[:, lead : lead + body.shape[1]] = body
    return out.reshape(len(x), segments, width)


def _runs(x: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Samples [C, segments] in runs of one value for 0.2 s, and in runs of three at the channel's extremes."""
    c, segments, width = x.shape
    flat_run = max(2, round(_FLAT_SECONDS * rate))
    same = x[..., 1:] == x[..., :-1]
    flat = _in_runs(same, flat_run - 1)
    # fmin and fmax pass over NaN
    low, high = (np.nan_to_num(extreme.reduce(x.reshape(c, -1), axis=1)) for extreme in (np.fmin, np.fmax))
    clipped = _in_runs(same & ((x == low[:, None, None]) | (x == high[:, None, None]))[..., 1:], _CLIPPED_SAMPLES - 1)
    return flat, np.where(flat == width, 0, clipped)  # what is flat throughout is called so once


def _in_runs(same: np.ndarray, least: int) -> np.ndarray:
    """How many samples [..., ] lie in runs of at least `least` true steps along the last axis."""
    out = np.zeros(same.shape[:-1], np.int64)
    steps = np.cumsum(np.pad(same, [(0, 0)] * (same.ndim - 1) + [(1, 0)]), axis=-1, dtype=np.int32)
    if not (steps[..., least:] - steps[..., :-least] == least).any():
        return out  # nearly always
    padded = np.pad(same, [(0, 0)] * (same.ndim - 1) + [(1, 1)])
    change = np.diff(padded.astype(np.int8), axis=-1)
    begin, end = np.nonzero(change == 1), np.nonzero(change == -1)
    length = end[-1] - begin[-1]
    long = length >= least
    np.add.at(out, tuple(axis[long] for axis in begin[:-1]), length[long] + 1)
    return out


def _band(power: np.ndarray, hertz: np.ndarray, low: float, high: float) -> np.ndarray:
    a, b = np.searchsorted(hertz, (low, high))
    return power[..., a:b].sum(axis=-1)


def _implausible(modality, filled, centred, there, unit) -> np.ndarray:
    if modality not in _PLAUSIBLE:
        return np.zeros(filled.shape[:2])
    low, high, about_mean = _PLAUSIBLE[modality]
    scale = unit_factor(unit, modality) or 1.0
    values = centred if about_mean else filled
    return np.count_nonzero(there & ((values < low / scale) | (values > high / scale)), axis=2)


def _index(modality, counts, valid, power, hertz, baseline) -> np.ndarray:
    """The signal-quality index [C, segments], 0 to 1."""
    if modality not in ("ecg", "ppg"):
        return np.ones(counts.shape[:2], np.float32)
    n = np.maximum(np.count_nonzero(valid, axis=2), 1)[..., None]
    x = np.where(valid, counts, 0)
    x = np.where(valid, x - x.sum(axis=2, keepdims=True) / n, 0)
    squares = x * x
    variance = squares.sum(axis=2) / n[..., 0] + 1e-12
    if modality == "ppg":
        skewness = (squares * x).sum(axis=2) / n[..., 0] / variance**1.5
        return np.clip(0.5 + skewness, 0, 1)  # Elgendi: good pulses lean to the right, noise does not lean
    kurtosis = (squares * squares).sum(axis=2) / n[..., 0] / variance**2
    peaked = np.clip((kurtosis - 2) / 3, 0, 1)  # kSQI: noise has 3 and less at the mains, an ECG above 5
    share = _band(power, hertz, 5, 15) / (_band(power, hertz, 5, 40) + 1e-20)
    qrs = np.clip(1 - np.maximum(0.5 - share, share - 0.9) / 0.3, 0, 1)  # pSQI: 0.5 to 0.8, and up to 0.9 when slow
    steady = np.clip(1 - (baseline - 0.5) / 0.45, 0, 1)  # basSQI
    return peaked * qrs * steady


def window_quality(recording, segment, quality, milliseconds, window_recording, start, seconds) -> np.ndarray:
    """Mean quality of windows over their channels and segments.

    Args:
        recording, segment, quality: the rows of a store's quality table, "quality" as 0 to 255.
        milliseconds: int64 [recordings]. window_recording, start, seconds: [n] of the windows.

    Returns:
        float32 [n], 0 to 1; 1 where nothing was measured.
    """
    counts = -(-np.asarray(milliseconds, np.int64) // (SEGMENT_SECONDS * 1000))
    first = np.concatenate([[0], np.cumsum(np.maximum(counts, 1))])
    cell = first[recording] + segment
    number = np.bincount(cell, minlength=first[-1])
    mean = np.bincount(cell, weights=quality, minlength=first[-1]) / np.maximum(number, 1) / 255
    total = np.concatenate([[0], np.cumsum(np.where(number, mean, 1.0))])
    low = first[window_recording] + (np.asarray(start) // SEGMENT_SECONDS).astype(np.int64)
    last = np.ceil((np.asarray(start, np.float64) + seconds) / SEGMENT_SECONDS - 1e-6).astype(np.int64)
    high = np.minimum(np.maximum(first[window_recording] + last, low + 1), first[np.asarray(window_recording) + 1])
    return ((total[high] - total[low]) / np.maximum(high - low, 1)).astype(np.float32)
