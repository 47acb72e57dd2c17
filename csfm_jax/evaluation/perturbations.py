"""What may happen to a recording that changes nothing of its patient: gain, wander, mains, sampling, cut, lost sensors.

All but the last two happen to the physical signal, before preprocessing, as they would at the bedside.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np
from scipy.signal import resample_poly

from data_pipelines import augment
from data_pipelines.batch import MODALITY_OF, MODALITY_ROW
from data_pipelines.preprocess import Spec
from data_pipelines.signals import CHANNEL_ID, CHANNELS, modality_of, standard_name

# (name, Hz, unit, start in s, samples [n] in that unit, NaN where invalid) each, as `preprocess.prepare` takes them
Channels = list[tuple]

GAINS = (0.5, 2.0)
WANDER_HZ, WANDERS = 0.2, (1.0, 3.0)  # of a breath, below ECG's corner; times the channel's deviation
MAINS_HZ, MAINS = (50.0, 60.0), (0.5,)
RATES = (100.0, 125.0, 360.0, 500.0, 1000.0)  # PTB-XL's second copy, Holters, MIT-BIH, electrocardiographs
SHIFTS = (0.1, 0.5, 1.0)
_LIMB, _CHEST = ("I", "II", "III", "aVR", "aVL", "aVF"), ("V1", "V2", "V3", "V4", "V5", "V6")
_SLOWEST_RESAMPLED = 100  # Hz of a modality; slower sensors are recorded as they are


@dataclass(frozen=True)
class Perturbation:
    """One thing that happens to a recording.

    Attributes:
        name: in tables. kind: what others it belongs with.
        change: of physical signals, by a seed; None leaves them. shift: seconds by which the window begins later.
        without: ids of channels that are lost.
    """

    name: str
    kind: str
    change: Callable[[Channels, np.random.Generator], Channels] | None = None
    shift: float = 0.0
    without: frozenset[int] = frozenset()


def of_signals(channels: Channels, spec: Spec) -> list[Perturbation]:
    """Those that happen to physical signals; wander only where there is a channel of which `spec` removes it."""
    found = [Perturbation(f"gain {g:g}", "gain", partial(gain, factor=g)) for g in GAINS]
    if any(_loses_wander(c, spec) for c in channels):
        found += [Perturbation(f"wander {a:g} SD", "wander", partial(wander, spec=spec, amplitude=a)) for a in WANDERS]
    found += [Perturbation(f"mains {hz:g} Hz, {a:g} SD", "mains", partial(sine, hertz=hz, amplitude=a))
              for hz in MAINS_HZ for a in MAINS]  # fmt: skip
    return found + [Perturbation(f"recorded at {hz:g} Hz", "sampling", partial(sampled, hertz=hz)) for hz in RATES]


def of_windows() -> list[Perturbation]:
    """Those of where a recording is cut."""
    return [Perturbation(f"{seconds:g} s later", "shift", shift=seconds) for seconds in SHIFTS]


def losses(channels: Iterable[int]) -> Iterator[Perturbation]:
    """Ways to lose some of the channels that a recording has, but not all: each ECG lead, groups of them, and each
    modality; `channels` are ids."""
    there = frozenset(channels)
    ecg = frozenset(c for c in there if modality_of(c).name == "ecg")
    names = {CHANNELS[c].name for c in ecg}
    groups = [(f"without {name}", (name,)) for name in (*_LIMB, *_CHEST) if name in names]
    groups += [("without limb leads", _LIMB), ("without chest leads", _CHEST)]
    groups += [(f"{' and '.join(kept)} alone", tuple(names - {*kept}))
               for kept in (("I",), ("II",), ("I", "II")) if names >= {*kept}]  # fmt: skip
    for name, lost in groups:
        without = ecg & {CHANNEL_ID[lead] for lead in lost}
        if without and ecg - without:
            yield Perturbation(name, "leads", without=without)
    modalities = sorted({modality_of(c).name for c in there})
    for name in modalities if len(modalities) > 1 else ():
        lost = there & set(np.flatnonzero(MODALITY_OF == MODALITY_ROW[name]).tolist())
        yield Perturbation(f"without {name.upper()}", "sensors", without=lost)


def gain(channels: Channels, rng: np.random.Generator, factor: float) -> Channels:
    """All channels times one factor."""
    return [(*c[:4], np.asarray(c[4]) * factor) for c in channels]


def wander(channels: Channels, rng: np.random.Generator, spec: Spec, amplitude: float) -> Channels:
    """`sine` of a breath on the channels whose high-pass lies an octave or more above it: elsewhere it is signal."""
    return [sine([c], rng, WANDER_HZ, amplitude)[0] if _loses_wander(c, spec) else c for c in channels]


def _loses_wander(channel: tuple, spec: Spec) -> bool:
    standard = standard_name(channel[0], channel[2])
    rule = spec.rule(modality_of(CHANNEL_ID[standard]).name) if standard else None
    return rule is not None and rule.low is not None and rule.low >= 2 * WANDER_HZ


def sine(channels: Channels, rng: np.random.Generator, hertz: float, amplitude: float) -> Channels:
    """Adds a sine of a phase of its own to every channel, `amplitude` times the channel's standard deviation."""
    changed = []
    for name, rate, unit, start, signal in channels:
        x = np.asarray(signal, np.float64)[None]
        x = augment.powerline(x, rate, hertz, amplitude, rng.uniform(0, 2 * np.pi))
        changed.append((name, rate, unit, start, x[0]))
    return changed


def sampled(channels: Channels, rng: np.random.Generator, hertz: float) -> Channels:
    """As if an electrocardiograph or an oximeter had recorded so many samples a second; slow sensors stay."""
    changed = []
    for name, rate, unit, start, signal in channels:
        standard = standard_name(name, unit)
        if standard and modality_of(CHANNEL_ID[standard]).rate >= _SLOWEST_RESAMPLED and rate != hertz:
            signal, rate = _at_rate(np.asarray(signal, np.float64), rate, hertz), hertz
        changed.append((name, rate, unit, start, signal))
    return changed


def _at_rate(x: np.ndarray, rate: float, hertz: float) -> np.ndarray:
    """Anti-aliased; a sample whose nearest one was invalid is invalid."""
    bad = np.isnan(x)
    if bad.all():
        return np.full(int(len(x) * hertz / rate), np.nan)
    filled = np.interp(np.arange(len(x)), np.flatnonzero(~bad), x[~bad])
    ratio = Fraction(hertz / rate).limit_denominator(10_000)
    out = resample_poly(filled, ratio.numerator, ratio.denominator, padtype="line")
    nearest = np.minimum(np.rint(np.arange(len(out)) * rate / hertz).astype(int), len(x) - 1)
    out[bad[nearest]] = np.nan
    return out[: int(len(x) * hertz / rate + 1e-6)]
