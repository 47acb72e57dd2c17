"""The check before any evaluation: was the model trained on people on whom it is to be tested?"""

from typing import Any

from csfm_jax.evaluation import protocol
from csfm_jax.training import record
from data_pipelines.store import Store


def check(stores: list[Store], provenance: dict[str, Any], unchecked: bool, where: str) -> bool:
    """Refuses test subjects whom weights were trained on, or of whom that cannot be told.

    Args:
        stores: of the evaluation. provenance: of the weights (`encoding.About`). unchecked: whether not being told has
            been accepted (--unchecked-subjects). where: named in the error.

    Returns:
        Whether test subjects are checked.

    Raises:
        BadInput: as `protocol.check_unseen` and `protocol.check_comparable`.
    """
    before = record.trained_on(provenance)
    protocol.check_unseen(protocol.Recordings.whole(stores), before.subjects, where)
    others = before.incomparable(stores) if "path" in provenance else []
    return protocol.check_comparable(others, before.complete, unchecked, where)
