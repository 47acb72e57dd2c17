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
    protocol.check_unseen(protocol.Recordings.whole(stores), record.trained_on(provenance).subjects, where)
    return check_comparable(stores, provenance, unchecked, where)


def check_comparable(stores: list[Store], provenance: dict[str, Any], unchecked: bool, where: str) -> bool:
    """The second half of `check`, arguments and errors as there: can it be told at all?"""
    before = record.trained_on(provenance)
    others = before.incomparable(stores) if "path" in provenance else []
    return protocol.check_comparable(others, before.complete, unchecked, where)


def seen_validation(stores: list[Store], provenance: dict[str, Any]) -> tuple[int, int]:
    """Validation subjects whom weights were trained on, and all of them: what is chosen on these flatters itself."""
    everyone, before = protocol.Recordings.whole(stores), record.trained_on(provenance)
    validation = set(everyone.subject[everyone.split == 1].tolist())
    return len(validation & before.subjects), len(validation)
