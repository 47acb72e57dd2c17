"""PTB-XL's benchmark tasks (Strodthoff et al. 2021): statements by level, age and sex, on the official folds."""

from csfm_jax.tasks.task import Task

TASKS = (
    Task("ptbxl_superclass", "five diagnostic superclasses", ("superclass/*",), "multilabel"),
    Task("ptbxl_subclass", "23 diagnostic subclasses", ("subclass/*",), "multilabel"),
    Task("ptbxl_diagnostic", "44 diagnostic statements", ("diagnostic/*",), "multilabel"),
    Task("ptbxl_all", "all 71 SCP-ECG statements", ("scp/*",), "multilabel"),
    Task("ptbxl_form", "19 statements of form", ("form/*",), "multilabel"),
    Task("ptbxl_rhythm", "12 statements of rhythm", ("rhythm/*",), "multilabel"),
    Task("ptbxl_age", "age in years; 90 stands for over 89", ("age",), "regression"),
    Task("ptbxl_sex", "sex, 1 female", ("sex",), "multilabel"),
)
