"""Scalars for TensorBoard, written by the thread that has them."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# tensorboardX imports these where they are installed, three seconds of every start: to write tensors of PyTorch's and
# to write into object stores, neither of which is done here.
_UNUSED = ("torch", "boto3", "google.cloud.storage")
_FLUSHED_EVERY = 30.0  # seconds; a flush waits for the disk


class Board:
    """Not tensorboardX's `SummaryWriter`, whose thread dies of a full disk with a traceback; ten scalars later whoever
    adds one waits for ever.

    Args:
        folder: of this machine; made if absent. first: the step that is to come: what an earlier process wrote of it
            and of later ones is not shown.

    Raises:
        OSError: of this and of every method: a full disk.
    """

    def __init__(self, folder: Path, first: int):
        with _hidden(*_UNUSED):
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.summary import scalar

        self._event, self._scalar = Event, scalar
        folder.mkdir(parents=True, exist_ok=True)
        self._writer, self._flushed = EventsWriter(str(folder / "events")), 0.0
        started = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=first, session_log=started))

    def add(self, step: int, values: dict[str, float]) -> None:
        """Writes scalars of a step."""
        now = time.time()
        for name, value in values.items():
            self._writer.write_event(self._event(wall_time=now, step=step, summary=self._scalar(name, value)))
        if now - self._flushed > _FLUSHED_EVERY:
            self._writer.flush()
            self._flushed = now

    def close(self) -> None:
        self._writer.close()


@contextlib.contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Modules that cannot be imported meanwhile, but for those that already were."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
