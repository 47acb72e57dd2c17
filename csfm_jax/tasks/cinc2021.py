"""SNOMED CT codes of the CinC Challenges 2020 and 2021."""

from csfm_jax.tasks.task import Task

TASKS = (Task("cinc2021_codes", "every SNOMED CT code that the stores hold", ("dx/*",), "multilabel"),)
