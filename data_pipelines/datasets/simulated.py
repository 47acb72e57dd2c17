"""A simulated cohort: ECG, PPG and respiration whose rate, rhythm and noise are known, for demos and tests.

The shapes are neurokit2's: each wave of a beat is ECGSYN's answer (McSharry et al. 2003) to that wave alone, the pulse
and the breathing are `ppg_simulate` and `rsp_simulate`. They are computed once and placed at each subject's own beats,
because integrating ECGSYN for 12 leads of one subject takes three seconds, and placing its waves milliseconds.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.datasets.source import Entry, Source
from data_pipelines.errors import BadInput
from data_pipelines.recording import Channel, Recording

_TEMPLATE_RATE = 500
# P, Q, R, S and T in mV, of an ordinary adult's leads; III and the augmented leads follow from I and II
_WAVES = {
    "I": (0.08, -0.05, 0.70, -0.15, 0.20), "II": (0.12, -0.08, 1.10, -0.20, 0.30),
    "V1": (0.05, 0.00, 0.25, -1.00, -0.05), "V2": (0.06, 0.00, 0.50, -1.60, 0.35),
    "V3": (0.06, -0.02, 0.80, -1.10, 0.40), "V4": (0.07, -0.06, 1.40, -0.70, 0.40),
    "V5": (0.07, -0.08, 1.30, -0.35, 0.32), "V6": (0.07, -0.08, 1.00, -0.15, 0.25),
}  # fmt: skip
_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
_NOISE = ("little noise", "some noise", "much noise")
_NOISE_MV = (0.01, 0.05, 0.15)
_FAST = 90.0  # beats per minute


@dataclass(frozen=True)
class _Person:
    """What does not change between one subject's recordings."""

    kind: str
    heart_rate: float
    irregular: bool
    noise: int
    breaths: float
    waves: np.ndarray  # [leads, 5] mV


class Simulated(Source):
    """Subjects of three kinds: 12-lead ECG (10 s, 500 Hz); lead II with PPG and respiration (30 s); PPG alone (30 s).

    Labels: "heart_rate" (beats a minute), "noise" (0 little, 1 some, 2 much), and, 0 or 1, "rhythm/irregular" (beats as
    in atrial fibrillation, no P waves), "rate/fast" (above 90) and "noise/much". Every third subject has two
    recordings. A subject depends on the seed and its number alone, not on how many there are.
    """

    name = "simulated"
    mains = 50.0
    licence = "none needed: simulated"
    citation = "Makowski D, et al. NeuroKit2. Behav Res Methods 53:1689, 2021."

    def __init__(self, subjects: int = 200, seed: int = 0):
        super().__init__(Path("simulated"))
        self.subjects, self.seed = subjects, seed

    @classmethod
    def from_text(cls, text: str) -> "Simulated":
        """Takes "simulated:subjects=200,seed=0"; BadInput for another option or a value that is no whole number."""
        options = {}
        for part in filter(None, text.partition(":")[2].split(",")):
            key, _, value = part.partition("=")
            if key not in ("subjects", "seed") or not (value.isdecimal() and len(value) < 10):
                raise BadInput("simulated", f"the option {part!r}", "subjects=N or seed=N", "correct it")
            options[key] = int(value)
        if options.get("subjects", 1) == 0:
            raise BadInput("simulated", "subjects=0", "at least one subject", "correct it")
        return cls(**options)

    def entries(self) -> list[Entry]:
        # the seed is part of the name: person 7 of another seed is another person
        people = [(f"sim{self.seed}-{i:09d}", 2 if i % 3 == 0 else 1) for i in range(self.subjects)]
        return [Entry(name, f"{name}-{k}", "", f"{name}-{k}") for name, visits in people for k in range(visits)]

    def read(self, entry: Entry) -> Recording:
        _, number, visit = entry.study.split("-")
        person = _person(np.random.default_rng([self.seed, int(number)]))
        rng = np.random.default_rng([self.seed, int(number), 1 + int(visit)])
        seconds = 10.0 if person.kind == "12-lead" else 30.0
        beats = _beats(person, seconds, rng)
        make = {"12-lead": _twelve_leads, "bedside": _bedside, "wrist": _wrist}[person.kind]
        rate = 60 / float(np.mean(np.diff(beats[(beats > 0) & (beats < seconds)])))
        return Recording(
            make(person, beats, seconds, rng), entry.subject, entry.study, self.name, report=_report(person, rate),
            labels={
                "heart_rate": rate, "noise": float(person.noise), "rhythm/irregular": float(person.irregular),
                "rate/fast": float(rate > _FAST), "noise/much": float(person.noise == 2),
            },
            mains=self.mains,
        )  # fmt: skip


def _person(rng: np.random.Generator) -> _Person:
    kind = str(rng.choice(["12-lead", "bedside", "wrist"], p=[0.5, 0.3, 0.2]))
    leads = np.array(list(_WAVES.values())) * rng.lognormal(0, 0.15, (len(_WAVES), 1))
    waves = leads * rng.lognormal(0, 0.25, 5)
    return _Person(
        kind, heart_rate=float(rng.uniform(50, 130)), irregular=bool(rng.random() < 0.35), noise=int(rng.integers(3)),
        breaths=float(rng.uniform(10, 24)), waves=waves,
    )  # fmt: skip


def _report(person: _Person, rate: float) -> str:
    pulse = "pulse" if person.kind == "wrist" else "rhythm"
    regular = "regular pulse" if person.kind == "wrist" else "sinus rhythm"
    rhythm = f"irregular {pulse}" if person.irregular else regular
    return f"{rhythm}, {round(rate)} beats per minute, {_NOISE[person.noise]}"


def _beats(person: _Person, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Times of R waves in seconds, from at least a second before the recording to as long after it."""
    mean = 60 / person.heart_rate
    count = int((seconds + 10) / mean * 1.6) + 10
    if person.irregular:
        intervals = mean * rng.lognormal(-0.02, 0.2, count)
    else:
        breathing = np.sin(2 * np.pi * person.breaths / 60 * mean * np.arange(count) + rng.uniform(0, 2 * np.pi))
        intervals = mean * (1 + 0.02 * breathing + rng.normal(0, 0.005, count))
    times = np.cumsum(np.clip(intervals, 0.3, 3.0)) - 4 - rng.uniform(0, mean)
    return times[times < seconds + 4]


def _twelve_leads(person: _Person, beats: np.ndarray, seconds: float, rng: np.random.Generator) -> tuple[Channel, ...]:
    clean = dict(zip(_WAVES, _ecg(person, person.waves, beats, seconds, 500)))
    one, two = clean["I"], clean["II"]
    clean |= {"III": two - one, "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}
    return tuple(Channel(n, 500.0, "mV", _noisy(clean[n], 500, _NOISE_MV[person.noise], rng)) for n in _LEADS)


def _bedside(person: _Person, beats: np.ndarray, seconds: float, rng: np.random.Generator) -> tuple[Channel, ...]:
    import neurokit2

    ecg = _ecg(person, person.waves[1:2], beats, seconds, 250)[0]
    breathing = neurokit2.rsp_simulate(
        duration=int(seconds), sampling_rate=50, respiratory_rate=person.breaths, method="sinusoidal", noise=0,
        random_state=int(rng.integers(2**31)),
    )  # fmt: skip
    return (
        Channel("II", 250.0, "mV", _noisy(ecg, 250, _NOISE_MV[person.noise], rng)),
        *_wrist(person, beats, seconds, rng),
        Channel("RESP", 50.0, "NU", _noisy(np.asarray(breathing), 50, _NOISE_MV[person.noise], rng)),
    )


def _wrist(person: _Person, beats: np.ndarray, seconds: float, rng: np.random.Generator) -> tuple[Channel, ...]:
    """The pulse: 0.25 s after the heart beats, stronger after a longer filling."""
    time, shape = np.arange(int(seconds * 125)) / 125, _pulse_shape()
    arrivals, filling = beats + 0.25, np.diff(beats, prepend=2 * beats[0] - beats[1])
    at = np.searchsorted(arrivals, time, side="right") - 1
    phase = (time - arrivals[at]) / (arrivals[at + 1] - arrivals[at])
    pulse = np.interp(phase, np.linspace(0, 1, len(shape)), shape) * np.sqrt(filling[at] / np.mean(filling))
    return (Channel("PLETH", 125.0, "NU", _noisy(pulse, 125, _NOISE_MV[person.noise], rng)),)


def _ecg(person: _Person, waves: np.ndarray, beats: np.ndarray, seconds: float, rate: int) -> np.ndarray:
    """[leads, samples] mV: every wave of every beat; P and T move with the square root of the beat's interval."""
    time, shapes = np.arange(int(seconds * rate)) / rate, _wave_shapes()
    single = np.zeros((5, len(time)))
    grid = (np.arange(shapes.shape[1]) - shapes.shape[1] // 2) / _TEMPLATE_RATE
    intervals = np.diff(beats, append=2 * beats[-1] - beats[-2])
    for beat, interval in zip(beats, intervals):
        for wave in range(1 if person.irregular else 0, 5):
            stretch = np.sqrt(interval) if wave in (0, 4) else 1.0
            first, last = np.searchsorted(time, (beat + grid[0] * stretch, beat + grid[-1] * stretch))
            single[wave, first:last] += np.interp((time[first:last] - beat) / stretch, grid, shapes[wave])
    return waves @ single


def _noisy(clean: np.ndarray, rate: int, level: float, rng: np.random.Generator) -> np.ndarray:
    """Adds sensor noise, baseline wander and mains hum, all in proportion to the noise level."""
    time = np.arange(len(clean)) / rate
    noise = level * rng.standard_normal(len(clean)) * 0.6
    noise += 2 * level * np.sin(2 * np.pi * (rng.uniform(0.1, 0.4) * time + rng.random()))
    if rate > 100:
        noise += level * 0.5 * np.sin(2 * np.pi * (50 * time + rng.random()))
    return (clean + noise).astype(np.float32)


@functools.cache
def _wave_shapes() -> np.ndarray:
    """[5, samples]: P, Q, R, S and T of ECGSYN at 60 beats a minute, height 1, from 0.5 s before R to 0.5 s after."""
    import neurokit2

    shapes = []
    for wave in range(5):
        heights = np.zeros(5)
        heights[wave] = 30.0
        beat = neurokit2.ecg_simulate(
            duration=4, sampling_rate=_TEMPLATE_RATE, heart_rate=60, heart_rate_std=0, noise=0, method="ecgsyn",
            ai=heights, random_state=0,
        )  # fmt: skip
        # ECGSYN starts at an R wave, so beat 2 has its R after exactly 2 s; the first second still settles
        shape = np.asarray(beat[int(1.5 * _TEMPLATE_RATE) : int(2.5 * _TEMPLATE_RATE)], float)
        shape = (shape - np.median(shape)) * np.hanning(len(shape)) ** 0.25
        shapes.append(shape / np.abs(shape).max())
    return np.stack(shapes)


@functools.cache
def _pulse_shape() -> np.ndarray:
    """One undisturbed pulse of `ppg_simulate`, from foot to foot, between 0 and 1."""
    import neurokit2

    pulse = np.asarray(
        neurokit2.ppg_simulate(
            duration=6, sampling_rate=_TEMPLATE_RATE, heart_rate=60, frequency_modulation=0, ibi_randomness=0, drift=0,
            motion_amplitude=0, powerline_amplitude=0, burst_number=0, random_state=0, show=False,
        )
    )  # fmt: skip
    start = 2 * _TEMPLATE_RATE + int(np.argmin(pulse[2 * _TEMPLATE_RATE : 3 * _TEMPLATE_RATE]))
    shape = pulse[start : start + _TEMPLATE_RATE]
    shape = shape - np.linspace(shape[0], shape[-1], len(shape))  # ends where the next pulse begins
    return (shape - shape.min()) / (shape.max() - shape.min())
