"""False arrhythmia alarms of the CinC Challenge 2015: five minutes, then the alarm."""

from csfm_jax.tasks.task import Task

_ALARM = 300.0  # seconds from the recording's start to the alarm, by the Challenge's design

# The 10 s before the alarm; what comes after it in half of the records does not enter a store.
TASKS = (
    Task(
        "cinc2015_false_alarm", "whether the alarm is true, from the 10 s before it", ("true_alarm",), "multilabel",
        ("ecg", "ppg", "abp"), begin=_ALARM - 10.0, end=_ALARM,
    ),
)  # fmt: skip
