"""Tasks on the simulated cohort, whose answers are known: for demos and tests."""

from csfm_jax.tasks.task import Task

_SENSORS = ("ecg", "ppg", "resp")

TASKS = (
    Task("simulated_rhythm", "irregular rhythm; fast heart", ("rhythm/irregular", "rate/fast"), "multilabel", _SENSORS),
    Task("simulated_heart_rate", "heart rate, beats a minute", ("heart_rate",), "regression", _SENSORS),
)
