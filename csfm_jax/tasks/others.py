"""Tasks of datasets that have one each."""

from csfm_jax.tasks.task import Task
from data_pipelines.datasets.cinc2017 import CLASSES

_CINC2017 = tuple(f"cinc2017/{name}" for name in CLASSES.values())

TASKS = (
    Task("cinc2016_abnormal", "abnormal heart sounds", ("abnormal",), "multilabel", ("pcg",)),
    Task("cinc2017_rhythm", "normal, atrial fibrillation, another rhythm, or noise", _CINC2017, "multiclass"),
    Task("echonext_shd", "structural heart disease in the echocardiogram", ("echo/*",), "multilabel"),
    Task("sph_statements", "AHA statements of the Shandong hospital", ("aha/*",), "multilabel"),
)
