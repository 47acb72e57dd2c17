"""BIDMC's vital signs from the pulse oximeter (Pimentel et al. 2016): medians over a recording of eight minutes."""

from csfm_jax.tasks.task import Task

TASKS = (
    Task("bidmc_heart_rate", "heart rate, beats a minute", ("heart_rate",), "regression", ("ppg",), crops=48),
    Task("bidmc_respiration", "breaths a minute", ("respiration_rate",), "regression", ("ppg",), crops=48),
    Task("bidmc_spo2", "oxygen saturation, %", ("spo2",), "regression", ("ppg",), crops=48),
)
