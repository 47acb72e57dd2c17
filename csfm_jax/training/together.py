"""What the processes of a run do together: wait for each other (never for ever), and agree."""

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


def anywhere(flag: bool) -> bool:
    """Whether the flag is set in any process; asked by all."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def of_first(value: float) -> float:
    """The number that process 0 holds, bit by bit; asked by all."""
    if jax.process_count() == 1:
        return value
    mine = np.frombuffer(np.float64(value).tobytes(), np.uint8)  # as it is: JAX would make it a float32
    return float(multihost_utils.process_allgather(mine)[0].view(np.float64)[0])


def check_equal(what: str, digest: str, expected: str, remedy: str) -> None:
    """Refuses to go on with processes that do not hold the same.

    Args:
        what: field or file, for the message. digest: of what this process holds, hexadecimal.

    Raises:
        BadInput: in every process, naming those that differ from process 0.
    """
    if jax.process_count() == 1:
        return
    mine = np.frombuffer(bytes.fromhex(digest), np.uint8)
    everyone = multihost_utils.process_allgather(mine)
    others = np.flatnonzero((everyone != everyone[0]).any(axis=1))
    if len(others):
        found = f"processes {', '.join(map(str, others))} differ from process 0"
        raise BadInput(what, found, expected, remedy)
