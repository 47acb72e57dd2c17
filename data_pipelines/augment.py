"""Augmentation of a window's samples: small pure functions of (samples, amounts), and `apply`, which draws amounts.

Samples are float [C, n] at one rate, after `preprocess.normalise`, NaN where absent. What an augmentation takes away is
absent too, and so gives no tokens. Amplitudes are in standard deviations of the channel's present samples, because
normalised samples have no other unit. Nothing is written in place.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines.errors import BadInput

MAINS = (50.0, 60.0)


@dataclass(frozen=True)
class AugmentConfig:
    """How much a window is changed; 0 leaves a step out, and the default changes nothing.

    Attributes:
        crop_seconds: length of a random crop; a window that is not longer stays whole.
        shift_seconds: moved earlier or later by up to this.
        scale: every channel times one factor between 1 / (1 + scale) and 1 + scale.
        noise: white noise with a deviation up to this.
        powerline: amplitude, up to this, of a sine at 50 or 60 Hz.
        wander: amplitude, up to this, of a slow movement of the baseline (three sines of 0.05 to 0.5 Hz).
        drop: chance of each channel to be taken away; of those that share a rate, one that holds samples always stays.
        cutout_seconds: a stretch up to this long is taken away from all channels.
        probability: of each step but the crop, on each window.
    """

    crop_seconds: float = 0.0
    shift_seconds: float = 0.0
    scale: float = 0.0
    noise: float = 0.0
    powerline: float = 0.0
    drop: float = 0.0
    cutout_seconds: float = 0.0
    wander: float = 0.0
    probability: float = 0.5

    @property
    def changes(self) -> bool:
        """Whether any window can come out other than it went in."""
        others = (self.shift_seconds, self.scale, self.noise, self.powerline, self.drop, self.cutout_seconds)
        return self.crop_seconds > 0 or (self.probability > 0 and max(*others, self.wander) > 0)

    def check(self, where: str = "augment") -> None:
        """Raises BadInput, with `where` as the name of this part of a config, for an amount that cannot be."""
        for name in self.__dataclass_fields__:
            value, most = getattr(self, name), 1.0 if name in ("drop", "probability") else np.inf
            if not 0 <= value <= most or not np.isfinite(value):
                expected = "0 to 1" if most == 1 else "0 or more"
                raise BadInput(f"{where}.{name}", str(value), expected, "correct the config")


def apply(
    samples: np.ndarray,
    rate: float,
    config: AugmentConfig,
    rng: np.random.Generator,
    own: np.random.Generator | None = None,
) -> np.ndarray:
    """Augments one window: crop, shift, scale, noise, powerline, wander, channel dropout, cutout, in this order.

    The crop comes first, so that a shift moves what is kept; what takes away comes last, so that nothing is added to
    what is absent. When and how far things move is drawn before anything that depends on channels or rate: sensors of
    one window with generators of one seed are cropped, shifted and cut at the same times.

    Args:
        samples: float [C, n], NaN where absent. rate: Hz. config: amounts.
        rng: what decides which steps are taken, and when. own: of all else (factors, noise, dropped channels), which
            would otherwise be the same in sensors whose generators have one seed; None: `rng`.

    Returns:
        A new [C, m] array of the same type; m < n only after a crop.
    """
    place, moved, at, length = rng.random(4)
    wanted = rng.random(6) < config.probability
    own = rng if own is None else own
    out = crop(samples, rate, place, config.crop_seconds) if config.crop_seconds else samples.copy()
    if config.shift_seconds and wanted[0]:
        out = shift(out, rate, (2 * moved - 1) * config.shift_seconds)
    if config.scale and wanted[1]:
        out = scale(out, (1 + config.scale) ** own.uniform(-1, 1))
    if config.noise and wanted[2]:
        out = noise(out, own.uniform(0, config.noise), own)
    if config.powerline and wanted[3]:
        amplitude, phase = own.uniform(0, config.powerline), own.uniform(0, 2 * np.pi)
        out = powerline(out, rate, float(own.choice(MAINS)), amplitude, phase)
    # drawn only where it is asked for: what a seed gives without it stays what it was
    if config.wander and own.random() < config.probability:
        out = wander(out, rate, own.uniform(0, config.wander), own)
    if config.drop and wanted[4]:
        out = drop_channels(out, _dropped(~np.isnan(out).all(axis=1), config.drop, own))
    if config.cutout_seconds and wanted[5]:
        out = cutout(out, rate, at, length * config.cutout_seconds)
    return out


def crop(samples: np.ndarray, rate: float, place: float, seconds: float) -> np.ndarray:
    """`seconds` of the window; place 0 is its beginning, 1 its end. A window that is not longer stays whole."""
    n = samples.shape[1]
    length = min(n, max(1, round(seconds * rate)))
    first = round(place * (n - length))
    return samples[:, first : first + length].copy()


def shift(samples: np.ndarray, rate: float, seconds: float) -> np.ndarray:
    """Moves samples later (or earlier, below 0); what comes in is absent, what goes out is lost."""
    n = samples.shape[1]
    by = max(-n, min(n, round(seconds * rate)))
    out = np.full_like(samples, np.nan)
    out[:, max(by, 0) : n + min(by, 0)] = samples[:, max(-by, 0) : n - max(by, 0)]
    return out


def scale(samples: np.ndarray, factor: float) -> np.ndarray:
    """All channels times one factor: what they are to one another (axes, ratios of leads) stays."""
    return samples * samples.dtype.type(factor)


def noise(samples: np.ndarray, amplitude: float, rng: np.random.Generator) -> np.ndarray:
    """Adds white noise, independent in every channel, `amplitude` times the channel's deviation."""
    added = rng.standard_normal(samples.shape, np.float32)
    added *= (amplitude * _deviations(samples)).astype(np.float32)
    return samples + added.astype(samples.dtype, copy=False)


def powerline(samples: np.ndarray, rate: float, hertz: float, amplitude: float, phase: float) -> np.ndarray:
    """Adds the mains' sine, of one phase (radians) in all channels; a rate too low to hold it changes nothing."""
    if hertz >= rate / 2:
        return samples.copy()
    wave = np.sin(2 * np.pi * hertz * np.arange(samples.shape[1]) / rate + phase).astype(samples.dtype)
    return samples + (amplitude * _deviations(samples)).astype(samples.dtype) * wave


def wander(samples: np.ndarray, rate: float, amplitude: float, rng: np.random.Generator) -> np.ndarray:
    """Adds a baseline that moves slowly, each channel's own: three sines between 0.05 and 0.5 Hz."""
    time = np.arange(samples.shape[1]) / rate
    hertz, phase = rng.uniform(0.05, 0.5, 3), rng.uniform(0, 2 * np.pi, (len(samples), 3, 1))
    waves = np.sin(2 * np.pi * hertz[:, None] * time + phase).sum(axis=1) / 3
    return samples + (amplitude * _deviations(samples)).astype(samples.dtype) * waves.astype(samples.dtype)


def drop_channels(samples: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """Takes away the channels that `dropped`, bool [C], marks."""
    out = samples.copy()
    out[dropped] = np.nan
    return out


def cutout(samples: np.ndarray, rate: float, place: float, seconds: float) -> np.ndarray:
    """Takes away a stretch of all channels; place 0 is the window's beginning, 1 its end."""
    n = samples.shape[1]
    length = min(n, max(0, round(seconds * rate)))
    first = round(place * (n - length))
    out = samples.copy()
    out[:, first : first + length] = np.nan
    return out


def _dropped(present: np.ndarray, chance: float, rng: np.random.Generator) -> np.ndarray:
    drawn, kept = rng.random(len(present)) < chance, rng.random()
    if present.any() and drawn[present].all():
        there = np.flatnonzero(present)
        drawn[there[int(kept * len(there))]] = False
    return drawn


def _deviations(samples: np.ndarray) -> np.ndarray:
    """[C, 1] standard deviation of what is present; 0 where nothing is."""
    there = ~np.isnan(samples)
    count = np.maximum(there.sum(1, keepdims=True), 1).astype(samples.dtype)
    present = np.where(there, samples, samples.dtype.type(0))
    centred = np.where(there, present - present.sum(1, keepdims=True) / count, samples.dtype.type(0))
    return np.sqrt(np.einsum("cn,cn->c", centred, centred)[:, None] / count)
