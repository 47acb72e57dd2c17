"""Golden inputs: synthetic raw recordings, 500 Hz, on which JAX and the exported PyTorch model must agree."""

from dataclasses import dataclass

import jax
import numpy as np

from csfm_jax.loaded_encoder import LoadedEncoder
from csfm_jax.models.vocabulary import Vocabulary
from data_pipelines.config import TokenConfig, WindowConfig
from data_pipelines.signals import CHANNEL_ID, CHANNELS, MODALITIES, modality_of

RATE = 500.0
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

# Waves of one beat: share of the RR interval after the R peak, width (s), height (mV), how it turns over the leads.
_WAVES = ((-0.18, 0.025, 0.12, 0.3), (-0.03, 0.010, -0.12, 0.5), (0.0, 0.011, 1.1, 0.4), (0.03, 0.012, -0.25, 0.9))
_WAVES += ((0.30, 0.055, 0.28, 0.35),)


@dataclass(frozen=True)
class Case:
    """One raw input.

    Attributes:
        signal: [channels, samples] float32 at 500 Hz, NaN where invalid. channels: standard names. units: of each.
        text: [tokens] int32 token ids; empty = no text.
    """

    signal: np.ndarray
    channels: tuple[str, ...]
    units: tuple[str, ...]
    text: np.ndarray


def cases(tokens: TokenConfig, window: WindowConfig) -> dict[str, Case]:
    """The inputs that a model's vocabulary allows.

    Args:
        tokens, window: the model's; inputs are one window of 10 s, or of what the model takes; "one_lead" is a second
            longer, so that a task reads crops that overlap.

    Returns:
        "twelve_leads", "one_lead", "ppg_only", "ecg_ppg_text" (with a NaN stretch and a flat lead), and "one_of_each"
        (one channel of every modality) where the model reads more than ECG and PPG.
    """
    seconds = min(max(10.0, window.minimum_seconds), window.seconds)
    known = [CHANNELS[i].name for i in Vocabulary.of(tokens).channels]
    wanted = {
        "twelve_leads": LEADS,
        "one_lead": ("II",),
        "ppg_only": ("PPG",),
        "ecg_ppg_text": ("I", "II", "V2", "PPG"),
    }
    if set(tokens.modalities) - {"ecg", "ppg"}:
        first = {modality_of(name).name: name for name in reversed(known)}
        wanted["one_of_each"] = tuple(first[m] for m in tokens.modalities if m in first)
    made = {}
    for number, (name, channels) in enumerate(wanted.items()):
        channels = tuple(c for c in channels if c in known)
        if not channels:
            continue
        length = {"ppg_only": max(0.8 * seconds, window.minimum_seconds), "one_lead": seconds + 1}.get(name, seconds)
        signal = np.stack([_channel(c, length, np.random.default_rng([number, i])) for i, c in enumerate(channels)])
        text = np.zeros(0, np.int32)
        if name == "ecg_ppg_text":
            signal[channels.index("II") if "II" in channels else 0, int(2.13 * RATE) : int(2.91 * RATE)] = np.nan
            if "V2" in channels:
                signal[channels.index("V2")] = 0.0
            text = 1 + np.arange(min(12, tokens.text_length), dtype=np.int32) * 7 % (tokens.text_vocabulary - 1)
        units = tuple(modality_of(c).unit for c in channels)
        made[name] = Case(signal, channels, units, text.astype(np.int32))
    return made


def _channel(name: str, seconds: float, rng: np.random.Generator) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    modality = modality_of(name).name
    if modality == "ecg":
        signal = _ecg(time, LEADS.index(name) if name in LEADS else 1, rng)
    elif modality in ("ppg", "abp", "pcg"):
        phase = 2 * np.pi * 1.2 * time
        signal = {"ppg": 0.6, "abp": 90.0, "pcg": 0.0}[modality] + np.sin(phase) + 0.4 * np.sin(2 * phase + 0.8)
        signal = signal * (np.sin(2 * np.pi * 80 * time) if modality == "pcg" else 1.0)
    elif modality == "spo2":
        signal = 96.0 + np.sin(2 * np.pi * 0.1 * time)
    elif modality == "resp":
        signal = np.sin(2 * np.pi * 0.25 * time)
    else:
        signal = 20.0 * np.sin(2 * np.pi * 10.0 * time) + 8.0 * np.sin(2 * np.pi * 22.0 * time + 1.0)
    scale = 0.02 * float(np.std(signal)) + 0.1 * MODALITIES[modality].step
    return (signal + scale * rng.standard_normal(len(time))).astype(np.float32)


def _ecg(time: np.ndarray, lead: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian waves at 72 beats a minute, of another height in each lead, with wander, 50 Hz mains and noise."""
    interval = 60.0 / 72.0
    peaks = np.arange(0.2, time[-1] + interval, interval) if len(time) else np.zeros(0)
    signal = 0.1 * np.sin(2 * np.pi * 0.3 * time + lead) + 0.03 * np.sin(2 * np.pi * 50.0 * time)
    for share, width, height, turn in _WAVES:
        for peak in peaks + share * interval:
            signal += height * np.cos(turn * lead) * np.exp(-0.5 * ((time - peak) / width) ** 2)
    return signal + 0.01 * rng.standard_normal(len(time))


def arrays(made: dict[str, Case], loaded: LoadedEncoder) -> dict[str, np.ndarray]:
    """The content of golden.npz: "<case>/<field>", the raw input and what `loaded.embed` gives on this machine.

    Args:
        made: from `cases`. loaded: an encoder that computes in float32.
    """
    out = {}
    for name, case in made.items():
        # TPUs round the factors of float32 products to bfloat16 otherwise
        with jax.default_matmul_precision("highest"):
            result = loaded.embed(case.signal, RATE, case.channels, case.units, text=case.text)
        fields = {
            "signal": case.signal,
            "rate": np.float64(RATE),
            "channels": np.array(case.channels),
            "units": np.array(case.units),
            "text": case.text,
            "pooled": result.pooled,
            "tokens": result.tokens,
            "channel_out": np.array([CHANNEL_ID[c] for c in result.channel], np.int64),
            "time_out": result.time,
        }
        out |= {f"{name}/{field}": np.asarray(value) for field, value in fields.items()}
    return out
