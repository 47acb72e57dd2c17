"""MIT-BIH Arrhythmia Database: beats by the five classes of ANSI/AAMI EC57, and rhythms."""

from csfm_jax.tasks.task import Task
from data_pipelines.stretches import Cut

_AAMI = {"N": "NLRej", "S": "AaJS", "V": "VE", "F": "F", "Q": "/fQ"}
_RHYTHMS = ("N", "AFIB", "AFL", "B", "T", "P", "SBR", "SVTA", "VT")
_OTHERS = ("AB", "ASYS", "BII", "IVR", "NOD", "PREX", "VF", "VFL")  # too rare to be learned here; they end what was

# with its neighbours: whether a beat is early, its interval tells
_BEATS = Cut(tuple((code, name) for name, codes in _AAMI.items() for code in codes), 3.0, "about", dataset="mitdb")
_EPISODES = Cut((*((f"({name}", name) for name in _RHYTHMS), *((f"({name}", "") for name in _OTHERS)), 10.0, "along")

TASKS = (
    Task("mitdb_beats", "class of every beat, from the 3 s about it", tuple(_AAMI), "multiclass", seconds=3.0, crops=1,
         cut=_BEATS),
    Task("mitdb_rhythms", "rhythm of every 10 s", _RHYTHMS, "multiclass", seconds=10.0, crops=1, cut=_EPISODES),
)  # fmt: skip
