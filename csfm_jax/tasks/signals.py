"""Signals from signals: PPG to ECG, one lead to twelve, a noisy ECG to a clean one; on stores that hold both sides."""

from csfm_jax.tasks.task import Task
from data_pipelines.augment import AugmentConfig

_OTHERS = ("II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
# up to as much noise and mains as there is signal, and twice as much of a wandering baseline
_NOISE = AugmentConfig(noise=1.0, powerline=1.0, wander=2.0, probability=0.8)
_WINDOWS = {"seconds": 10.0, "crops": 4}  # one after another: what is predicted is written down as a trace

TASKS = (
    Task("ppg_to_ecg", "the ECG from the PPG", (), "signal", ("ppg", "ecg"), inputs=("ppg",), targets=("ecg",),
         **_WINDOWS),
    Task("lead_to_twelve", "eleven leads from lead I", (), "signal", inputs=("I",), targets=_OTHERS, **_WINDOWS),
    Task("denoise_ecg", "the ECG without noise, mains and wandering baseline", (), "signal", inputs=("ecg",),
         targets=("ecg",), added=_NOISE, **_WINDOWS),
)  # fmt: skip
