"""Stages of sleep, epoch by epoch of 30 s: Sleep-EDF Expanded and the CinC Challenge 2018."""

from csfm_jax.tasks.task import Task
from data_pipelines.stretches import Cut

_STAGES = ("W", "N1", "N2", "N3", "R")
_SENSORS = ("eeg", "eog", "emg")
# Rechtschaffen and Kales: their stages 3 and 4 are N3 of the AASM. Half an hour awake is kept about the night, as in
# most of the literature (Supratak et al. 2017).
_SLEEP_EDF = Cut(
    (("Sleep stage W", "W"), ("Sleep stage 1", "N1"), ("Sleep stage 2", "N2"), ("Sleep stage 3", "N3"),
     ("Sleep stage 4", "N3"), ("Sleep stage R", "R"), ("Sleep stage ?", ""), ("Movement time", "")),
    30.0, "along", kept=("W", 1800.0),
)  # fmt: skip
# a stage is marked where it begins, and lasts until the next one
_CINC2018 = Cut(tuple((stage, stage) for stage in _STAGES), 30.0, "along", dataset="cinc2018")

TASKS = (
    Task("sleep_edf_stages", "stage of sleep of every 30 s", _STAGES, "multiclass", _SENSORS, 30.0, 1, cut=_SLEEP_EDF),
    Task("cinc2018_stages", "stage of sleep of every 30 s", _STAGES, "multiclass", _SENSORS, 30.0, 1, cut=_CINC2018),
)
