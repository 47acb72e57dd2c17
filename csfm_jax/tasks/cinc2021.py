"""CinC Challenges 2020 and 2021: SNOMED CT codes, and the 26 diagnoses that the later one scores, with its score."""

from csfm_jax.tasks.task import Rewards, Task
from data_pipelines.datasets.cinc2021 import SCORED

# The Challenge's weights.csv in short: a diagnosis lies so far from sinus rhythm, in outcome and treatment, and to call
# one where another is true earns 0.5 less their distance; right calls earn 1.
_FAR = {
    0.0: "NSR", 0.05: "Brady IAVB IRBBB LPR SA SB", 0.0875: "PAC", 0.1: "LAD LAnFB NSIVCB RAD", 0.125: "PR PVC STach",
    0.15: "RBBB", 0.175: "LQRSV PRWP", 0.2: "LQT", 0.225: "BBB LBBB", 0.25: "AF AFL TAb TInv", 0.35: "QAb",
}  # fmt: skip
_DISTANCE = {name: distance for distance, names in _FAR.items() for name in names.split()}
_EXCEPT = {frozenset(("BBB", "LBBB")): 0.475, frozenset(("LQRSV", "PRWP")): 0.475}  # instead of 0.5


def _worth(true: str, called: str) -> float:
    if true == called:
        return 1.0
    return _EXCEPT.get(frozenset((true, called)), 0.5 - abs(_DISTANCE[true] - _DISTANCE[called]))


_REWARDS = Rewards(
    labels=tuple(f"scored/{name}" for name in SCORED),
    worth=tuple(tuple(_worth(true, called) for called in SCORED) for true in SCORED),
    normal="scored/NSR",
)

TASKS = (
    Task("cinc2021_codes", "every SNOMED CT code that the stores hold", ("dx/*",), "multilabel"),
    Task("cinc2021_scored", "the 26 diagnoses that the Challenge scores", ("scored/*",), "multilabel",
         rewards=_REWARDS),
)  # fmt: skip
