"""Classical features of one recording: heart-rate variability, intervals and amplitudes of beats, pulse, breathing.

Peaks, delineation and variability are neurokit2's (Makowski et al. 2021). Every feature has a fixed name and is NaN
where its sensor is absent, its stretch is invalid, or the algorithm fails: trees read NaN as it is. Beats are found in
one lead and amplitudes are read in the median beat of every lead, as electrocardiographs do.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_pipelines.filters import bridge
from data_pipelines.signals import CHANNELS, MODALITIES, modality_of

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
VARIABILITY = ("MeanNN", "SDNN", "RMSSD", "CVNN", "pNN50", "MadNN")
INTERVALS = ("p", "pr", "qrs", "qt", "qtc")
WAVES = ("p", "r", "s", "st", "t")
FEATURES = (
    "ecg/rate", "ecg/slowest", "ecg/fastest", *(f"ecg/{name}" for name in VARIABILITY),
    *(f"ecg/{name}_ms" for name in INTERVALS), "ecg/axis",
    *(f"{lead}/{wave}" for lead in LEADS for wave in WAVES),
    "ppg/rate", *(f"ppg/{name}" for name in VARIABILITY), "ppg/amplitude", "ppg/amplitude_variation", "ppg/rise_ms",
    "ppg/arrival_ms",
    "resp/rate", "resp/rate_variation", "resp/depth", "resp/depth_variation",
    "spo2/mean", "spo2/lowest", "abp/mean", "abp/low", "abp/high",
)  # fmt: skip

_BEFORE, _AFTER = 0.30, 0.50  # seconds of a beat about its R peak
_DELINEATED_SECONDS = 30.0  # of a long recording: delineation takes most of the time
_FEWEST_BEATS, _FEWEST_BREATHS = 3, 2


@dataclass(frozen=True)
class Sensor:
    """One channel: samples [n] float64 in its modality's unit, NaN where invalid; rate in Hz."""

    samples: np.ndarray
    rate: int

    @property
    def there(self) -> np.ndarray:
        return ~np.isnan(self.samples)

    def bridged(self) -> np.ndarray:
        """Invalid spans as straight lines, only so that algorithms run; what they find there is thrown away."""
        x = self.samples[None].copy()
        bridge(x, np.isnan(x))
        return x[0]


@dataclass(frozen=True)
class Measured:
    """Features, in the order of `FEATURES`, and the groups of them whose algorithm raised."""

    values: np.ndarray
    failed: tuple[str, ...]


def measure(sensors: Mapping[str, Sensor]) -> Measured:
    """All features of one recording.

    Args:
        sensors: standard channel name -> its samples; all start together.

    Returns:
        float64 [len(FEATURES)], NaN where there is none: rates 1/min, times ms, ECG amplitudes mV, others in the
        modality's unit; and which groups failed ("ecg/beats" ...) - an absent sensor is no failure.
    """
    found: dict[str, float] = {}
    failed = []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # too few peaks for this or that: the value is NaN, and says so
        lead = _first(sensors, "ecg", ("II", "I", "V5"))
        beats = _attempt("ecg/beats", failed, lambda: _beats(lead)) if lead else None
        if beats is not None and len(beats):
            for group, values in _ECG.items():
                found |= _attempt(group, failed, lambda v=values: v(sensors, lead, beats)) or {}
        for group, (modality, values) in _OTHERS.items():
            if sensor := _first(sensors, modality):
                found |= _attempt(group, failed, lambda v=values, s=sensor: v(s, lead, beats)) or {}
    return Measured(np.array([found.get(name, np.nan) for name in FEATURES], np.float64), tuple(failed))


def heart_rate(sensor: Sensor, modality: str) -> float:
    """Beats per minute of an ECG or a pulse wave, by the median interval; NaN where fewer than three beats are found.

    Args:
        modality: "ecg", "ppg" or "abp".
    """

    def found() -> float:
        if modality == "ecg":
            peaks = _beats(sensor)
        else:
            pulses = _neurokit().ppg_findpeaks(sensor.bridged(), sampling_rate=sensor.rate)["PPG_Peaks"]
            peaks = np.asarray(pulses, np.int64)
            peaks = peaks[sensor.there[peaks]]
        length, _ = _intervals(sensor, peaks)
        return 60000 / float(np.median(length)) if len(length) >= _FEWEST_BEATS - 1 else np.nan

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        rate = _attempt(modality, [], found)
    return np.nan if rate is None else rate


def _attempt(group: str, failed: list[str], work: Callable):
    """An algorithm written for clean signals may raise anything on others; what it found is then nothing."""
    try:
        return work()
    except Exception:
        failed.append(group)
        return None


@lru_cache(maxsize=1)
def _neurokit():
    import neurokit2  # seconds to import, and drags in plotting: not before it is needed

    return neurokit2


def _first(sensors: Mapping[str, Sensor], modality: str, preferred: tuple[str, ...] = ()) -> Sensor | None:
    """The first preferred channel that is mostly valid, or else the one of that modality with most valid samples."""
    there = {n: s for n, s in sensors.items() if modality_of(n) is MODALITIES[modality] and s.there.any()}
    for name in preferred:
        if name in there and there[name].there.mean() >= 0.5:
            return there[name]
    # equal shares: the order of the vocabulary
    order = [c.name for c in CHANNELS if c.name in there]
    return max((there[n] for n in order), key=lambda s: s.there.mean(), default=None)


def _beats(lead: Sensor) -> np.ndarray:
    """Samples of the R peaks that lie in valid stretches."""
    _, info = _neurokit().ecg_peaks(lead.bridged(), sampling_rate=lead.rate)
    peaks = np.asarray(info["ECG_R_Peaks"], np.int64)
    return peaks[lead.there[peaks]]


def _intervals(sensor: Sensor, peaks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intervals in ms that hold no invalid sample and could be a heart's (20 to 250 per minute); their ends in s."""
    invalid = np.concatenate([[0], np.cumsum(~sensor.there)])
    length = np.diff(peaks) / sensor.rate * 1000
    good = (invalid[peaks[1:]] == invalid[peaks[:-1]]) & (length >= 240) & (length <= 3000)
    return length[good], (peaks[1:] / sensor.rate)[good]


def _variability(kind: str, sensor: Sensor, peaks: np.ndarray) -> dict[str, float]:
    length, end = _intervals(sensor, peaks)
    if len(length) < _FEWEST_BEATS - 1:
        return {}
    table = _neurokit().hrv_time({"RRI": length, "RRI_Time": end}, sampling_rate=sensor.rate)
    return {f"{kind}/rate": 60000 / np.median(length)} | {
        f"{kind}/{name}": float(table[f"HRV_{name}"].iloc[0]) for name in VARIABILITY
    }


def _rhythm(sensors, lead: Sensor, beats: np.ndarray) -> dict[str, float]:
    found = _variability("ecg", lead, beats)
    if found:
        length, _ = _intervals(lead, beats)
        found |= {"ecg/slowest": 60000 / length.max(), "ecg/fastest": 60000 / length.min()}
    return found


def _conduction(sensors, lead: Sensor, beats: np.ndarray) -> dict[str, float]:
    beats = beats[beats < _DELINEATED_SECONDS * lead.rate]
    if len(beats) < _FEWEST_BEATS:
        return {}
    last = min(len(lead.samples), int(beats[-1] + lead.rate))
    _, waves = _neurokit().ecg_delineate(lead.bridged()[:last], beats, sampling_rate=lead.rate, method="dwt")
    at = {name: np.asarray(waves[f"ECG_{name}"], np.float64) for name in ("P_Onsets", "P_Offsets", "T_Offsets")}
    at |= {name: np.asarray(waves[f"ECG_{name}"], np.float64) for name in ("R_Onsets", "R_Offsets")}
    spans = {
        "p": at["P_Offsets"] - at["P_Onsets"],
        "pr": at["R_Onsets"] - at["P_Onsets"],
        "qrs": at["R_Offsets"] - at["R_Onsets"],
        "qt": at["T_Offsets"] - at["R_Onsets"],
    }
    found = {f"ecg/{name}_ms": float(np.nanmedian(s)) / lead.rate * 1000 for name, s in spans.items()}
    length, _ = _intervals(lead, beats)
    found["ecg/qtc_ms"] = found["ecg/qt_ms"] / np.cbrt(np.median(length) / 1000)  # Fridericia
    return found


def _morphology(sensors, lead: Sensor, beats: np.ndarray) -> dict[str, float]:
    found, area = {}, {}
    for name in LEADS:
        if name not in sensors or sensors[name].rate != lead.rate:
            continue
        beat = _median_beat(sensors[name], beats)
        if beat is None:
            continue

        def part(begin, end, beat=beat, rate=lead.rate):
            return beat[round((_BEFORE + begin) * rate) : round((_BEFORE + end) * rate)]

        beat -= np.median(part(-0.09, -0.06))  # the isoelectric line between P and Q
        qrs = part(-0.06, 0.08)
        area[name] = qrs.sum()
        values = (_extreme(part(-0.26, -0.09)), qrs.max(), qrs.min(), np.median(part(0.09, 0.11)))
        found |= dict(zip((f"{name}/{wave}" for wave in WAVES), (*values, _extreme(part(0.14, 0.44))), strict=True))
    if "I" in area and "aVF" in area:
        found["ecg/axis"] = float(np.degrees(np.arctan2(area["aVF"], area["I"])))
    return found


def _median_beat(sensor: Sensor, beats: np.ndarray) -> np.ndarray | None:
    """The sample-wise median of the beats that lie whole in the recording and in valid samples."""
    before, after = round(_BEFORE * sensor.rate), round(_AFTER * sensor.rate)
    inside = beats[(beats >= before) & (beats + after <= len(sensor.samples))]
    if not len(inside):
        return None
    table = sensor.samples[inside[:, None] + np.arange(-before, after)]
    table = table[~np.isnan(table).any(axis=1)]
    return np.median(table, axis=0) if len(table) else None


def _extreme(x: np.ndarray) -> float:
    """The value furthest from zero, with its sign: an inverted T wave is below."""
    return float(x[np.argmax(np.abs(x))])


def _pulse(sensor: Sensor, lead: Sensor | None, beats: np.ndarray | None) -> dict[str, float]:
    x = sensor.bridged()
    peaks = np.asarray(_neurokit().ppg_findpeaks(x, sampling_rate=sensor.rate)["PPG_Peaks"], np.int64)
    peaks = peaks[sensor.there[peaks]]
    found = _variability("ppg", sensor, peaks)
    feet = _troughs(x, peaks)
    good = _valid_between(sensor, feet, peaks[1:])
    if good.sum() >= _FEWEST_BEATS - 1:
        height = (x[peaks[1:]] - x[feet])[good]
        found["ppg/amplitude"] = float(np.median(height))
        found["ppg/amplitude_variation"] = float(height.std() / height.mean())
        found["ppg/rise_ms"] = float(np.median((peaks[1:] - feet)[good]) / sensor.rate * 1000)
    if lead is not None and beats is not None and len(beats) and good.any():
        # from each foot back to the R peak before it, where there is one within a second
        foot, r = feet[good] / sensor.rate, beats / lead.rate
        before = np.searchsorted(r, foot) - 1
        delay = np.where(before >= 0, foot - r[np.maximum(before, 0)], np.nan)
        found["ppg/arrival_ms"] = float(np.nanmedian(np.where(delay < 1, delay, np.nan)) * 1000)
    return found


def _breathing(sensor: Sensor, lead, beats) -> dict[str, float]:
    nk, x = _neurokit(), sensor.bridged()
    info = nk.rsp_findpeaks(nk.rsp_clean(x, sampling_rate=sensor.rate), sampling_rate=sensor.rate)
    peaks = np.asarray(info["RSP_Peaks"], np.int64)
    peaks = peaks[sensor.there[peaks]]
    if len(peaks) < _FEWEST_BREATHS:
        return {}
    feet = _troughs(x, peaks)
    good = _valid_between(sensor, peaks[:-1], peaks[1:])
    length, depth = (np.diff(peaks) / sensor.rate)[good], (x[peaks[1:]] - x[feet])[good]
    if not len(length):
        return {}
    found = {"resp/rate": 60 / np.median(length), "resp/depth": np.median(depth)}
    if len(length) > 1:
        found["resp/rate_variation"], found["resp/depth_variation"] = (v.std() / v.mean() for v in (length, depth))
    return {name: float(value) for name, value in found.items()}


def _troughs(x: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """The lowest sample between each peak and the next."""
    return np.array([a + np.argmin(x[a:b]) for a, b in zip(peaks[:-1], peaks[1:])], np.int64)


def _valid_between(sensor: Sensor, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    invalid = np.concatenate([[0], np.cumsum(~sensor.there)])
    return invalid[end] == invalid[begin]


def _saturation(sensor: Sensor, lead, beats) -> dict[str, float]:
    return {"spo2/mean": float(np.nanmean(sensor.samples)), "spo2/lowest": float(np.nanmin(sensor.samples))}


def _pressure(sensor: Sensor, lead, beats) -> dict[str, float]:
    low, high = np.nanpercentile(sensor.samples, (5, 95))  # of all samples: diastolic and systolic, nearly
    return {"abp/mean": float(np.nanmean(sensor.samples)), "abp/low": float(low), "abp/high": float(high)}


_ECG = {"ecg/rhythm": _rhythm, "ecg/conduction": _conduction, "ecg/morphology": _morphology}
_OTHERS = {
    "ppg": ("ppg", _pulse),
    "resp": ("resp", _breathing),
    "spo2": ("spo2", _saturation),
    "abp": ("abp", _pressure),
}
