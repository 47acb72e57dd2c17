"""Tasks of datasets that have one each."""

from csfm_jax.tasks.task import Task

TASKS = (
    Task("cinc2016_abnormal", "abnormal heart sounds", ("abnormal",), "multilabel", ("pcg",)),
    Task("echonext_shd", "structural heart disease in the echocardiogram", ("echo/*",), "multilabel"),
    Task("sph_statements", "AHA statements of the Shandong hospital", ("aha/*",), "multilabel"),
)
