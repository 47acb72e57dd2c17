"""BIDMC's vital signs from the pulse oximeter (Pimentel et al. 2016): medians over a recording of eight minutes."""

from csfm_jax.tasks.task import Task

_WHOLE = {"sensors": ("ppg",), "seconds": 10.0, "crops": 48}  # all eight minutes

TASKS = (
    Task("bidmc_heart_rate", "heart rate, beats a minute", ("heart_rate",), "regression", **_WHOLE),
    Task("bidmc_respiration", "breaths a minute", ("respiration_rate",), "regression", **_WHOLE),
    Task("bidmc_spo2", "oxygen saturation, %", ("spo2",), "regression", **_WHOLE),
)
