"""Folds of patients: splits drawn from hashed subjects, in place of those that stores were prepared with."""

import hashlib
from typing import NamedTuple

import numpy as np

from data_pipelines.errors import BadInput


class Fold(NamedTuple):
    """Attributes: number: of the test patients' fold, from 1. of: how many folds there are, 3 or more."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def parse(words: str) -> Fold | None:
    """ "2/5" -> Fold(2, 5); "" -> None.

    Raises:
        BadInput: anything else.
    """
    if not words:
        return None
    number, _, of = words.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of) and int(of) >= 3):
        expected = "NUMBER/OF such as 2/5, of three folds or more"
        raise BadInput("config.data.fold", repr(words), expected, "correct it, or leave it out for the stores' splits")
    return Fold(int(number), int(of))


def splits(subject: np.ndarray, fold: Fold) -> np.ndarray:
    """int8 [recordings], positions in `store.SPLITS`: test are the patients of the fold, validation those of the next
    one, train all others.

    Args:
        subject: S16 [recordings], keyed hashes. A patient is in the same fold in every store that was prepared with one
            key and whose ids are of the same people.
    """
    people, recordings = np.unique(subject, return_inverse=True)
    # hashed again: a hash's own digits have decided its split and its shard
    drawn = [int.from_bytes(hashlib.sha256(b"fold " + one).digest()[:8], "big") % fold.of for one in people.tolist()]
    turn = (np.array(drawn, int) - (fold.number - 1)) % fold.of
    return np.choose(np.minimum(turn, 2), (2, 1, 0)).astype(np.int8)[recordings]
