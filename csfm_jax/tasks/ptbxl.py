"""PTB-XL's benchmark tasks (Strodthoff et al. 2021): statements by level, age and sex, on the official folds."""

from csfm_jax.tasks.task import Task

# Which statements are of form and which of rhythm: `scp_statements.csv`; some of the form are diagnostic too.
FORM = (
    "NDT NST_ DIG LNGQT ABQRS PVC STD_ VCLVH QWAVE LOWT NT_ PAC LPR INVT LVOLT HVOLT TAB_ STE_ PRC(S)".split()
)  # fmt: skip
RHYTHM = "SR AFIB STACH SARRH SBRAD PACE SVARR BIGU AFLT SVTAC PSVT TRIGU".split()

TASKS = (
    Task("ptbxl_superclass", "five diagnostic superclasses", ("superclass/*",), "multilabel"),
    Task("ptbxl_subclass", "23 diagnostic subclasses", ("subclass/*",), "multilabel"),
    Task("ptbxl_all", "all 71 SCP-ECG statements", ("scp/*",), "multilabel"),
    Task("ptbxl_form", "19 statements of form", tuple(f"scp/{code}" for code in FORM), "multilabel"),
    Task("ptbxl_rhythm", "12 statements of rhythm", tuple(f"scp/{code}" for code in RHYTHM), "multilabel"),
    Task("ptbxl_age", "age in years; 90 stands for over 89", ("age",), "regression"),
    Task("ptbxl_sex", "sex, 1 female", ("sex",), "multilabel"),
)
