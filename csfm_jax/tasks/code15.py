"""CODE-15% (Ribeiro et al. 2020, 2021): abnormalities, mortality, age, sex; Chagas disease of the 2025 Challenge."""

from csfm_jax.tasks.task import Task

TASKS = (
    Task("code15_abnormalities", "six abnormalities", ("abnormality/*",), "multilabel"),
    Task("code15_mortality", "survival: death, and years of follow-up", ("death", "followup_years"), "survival"),
    Task("code15_death_within_a_year", "death within a year, 1 yes; not known where follow-up ended before",
         ("death_within_a_year",), "multilabel"),
    Task("code15_age", "age in years", ("age",), "regression"),
    Task("code15_sex", "sex, 1 female", ("sex",), "multilabel"),
    Task("code15_chagas", "Chagas disease", ("chagas",), "multilabel"),
)  # fmt: skip
