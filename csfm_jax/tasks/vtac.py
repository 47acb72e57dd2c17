"""VTaC's ventricular tachycardia alarms (Lehman et al. 2023): the alarm sounds five minutes into the waveform."""

from csfm_jax.tasks.task import Task

TASKS = (
    Task(
        "vtac_false_alarm", "whether the alarm is true, from the 10 s before it", ("true_alarm",), "multilabel",
        ("ecg", "ppg", "abp"), begin=290.0, end=300.0,
    ),
)  # fmt: skip
