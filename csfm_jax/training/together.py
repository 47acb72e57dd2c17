"""What the processes of a run do together: wait for each other (never for ever), and agree."""

import hashlib
import json
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from csfm_jax.training.companions import late_processes
from data_pipelines.errors import BadInput

LIMIT = 600  # seconds; hosts that hash a checkpoint are minutes apart, not more
LONG = 4 * 3600  # seconds; hosts that hash their own copies of the stores, from disks of other speeds


def barrier(name: str, limit: float = LIMIT) -> None:
    """Returns when every process has come here; at once where there is one.

    Raises:
        BadInput: some have not come in time; the message names them.
    """
    if jax.process_count() == 1:
        return
    try:
        multihost.get_barrier_sync_fn()(key=f"csfm {name}", timeout_ms=int(1000 * limit))
    except jax.errors.JaxRuntimeError as error:
        late = late_processes(str(error))
        found = f"processes {', '.join(map(str, late))} not here" if late else "processes missing"
        expected = f"all {jax.process_count()} within {limit:g} s"
        raise BadInput(f"barrier {name!r}", found, expected, "look at the logs of those processes") from error


def anywhere(what: str, flag: bool, limit: float = LIMIT) -> bool:
    """Whether the flag is set in any process; asked by all.

    Args:
        what: the question. limit: seconds to wait for the others. Both, and what is raised, as of `barrier`.
    """
    if jax.process_count() == 1:
        return flag
    barrier(what, limit=limit)  # collectives wait for ever, and name nobody
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def of_first(what: str, value: float) -> float:
    """The number that process 0 holds, bit by bit; asked by all. what: it is; errors as of `barrier`."""
    if jax.process_count() == 1:
        return value
    barrier(what)
    mine = np.frombuffer(np.float64(value).tobytes(), np.uint8)  # as it is: JAX would make it a float32
    return float(multihost_utils.process_allgather(mine)[0].view(np.float64)[0])


def check_equal(what: str, held: str | Mapping[str, str], expected: str, remedy: str) -> None:
    """Refuses to go on with processes that do not hold the same.

    Args:
        what: field or file, for the message. held: what this process holds, or name -> that of each part.

    Raises:
        BadInput: in every process, naming those that differ from process 0, and the parts in which they do; or some
            have not come in time.
    """
    if jax.process_count() == 1:
        return
    barrier(f"{what} compared")
    mine = json.dumps(held, sort_keys=True).encode()
    digests = multihost_utils.process_allgather(np.frombuffer(hashlib.sha256(mine).digest(), np.uint8))
    others = [int(number) for number in np.flatnonzero((digests != digests[0]).any(axis=1))]
    if others:
        found = f"processes {', '.join(map(str, others))} differ from process 0"
        if isinstance(held, Mapping):
            found += " in " + ", ".join(_differing([json.loads(text) for text in _everyones(mine)]))
        raise BadInput(what, found, expected, remedy)


def _everyones(text: bytes) -> list[bytes]:
    """The text of every process, by number."""
    lengths = multihost_utils.process_allgather(np.array(len(text)))
    padded = np.zeros(lengths.max(), np.uint8)  # what is gathered has one shape
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    return [row[:length].tobytes() for row, length in zip(multihost_utils.process_allgather(padded), lengths)]


def _differing(held: list[dict[str, str]]) -> list[str]:
    """Names of the parts in which any differs from the first."""
    names = sorted(set().union(*held))
    return [name for name in names if any(one.get(name) != held[0].get(name) for one in held)]
