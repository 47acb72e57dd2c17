"""CODE-15% (Ribeiro et al. 2020, 2021): abnormalities, mortality, age, and Chagas disease of the 2025 Challenge."""

from csfm_jax.tasks.task import Task

TASKS = (
    Task("code15_abnormalities", "six abnormalities", ("abnormality/*",), "multilabel"),
    Task("code15_mortality", "survival: death, and years of follow-up", ("death", "followup_years"), "survival"),
    Task("code15_age", "age in years", ("age",), "regression"),
    Task("code15_chagas", "Chagas disease", ("chagas",), "multilabel"),
)
