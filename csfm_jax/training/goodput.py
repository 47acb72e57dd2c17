"""Where a run's time went since it was first started, restarts included: productive time over wall time, by cause."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

CAUSES = ("start", "compile", "data", "save", "evaluate", "down", "again")


class Goodput:
    """Seconds by cause, kept in WORKDIR/goodput.json by process 0.

    Causes: "start" (until the first step, compilation left out), "compile", "data" (waiting for a batch), "save" and
    "evaluate" (as far as the loop waits), "down" (between the last line of one process and the start of the next),
    "again" (steps that a restart repeats, since they came after the last checkpoint). The rest is productive.

    Args:
        path: the file; where it is there, an earlier process's account goes on, whether or not that process came to
            save a checkpoint. began: when this process began, seconds since the epoch. write: whether this process
            keeps the file.
        now: the clock; one that goes on between processes.
    """

    def __init__(self, path: Path, began: float, *, write: bool, now=time.time):
        self._path, self._began, self._write, self._now = path, began, write, now
        self._first, self._step, self._seconds = began, 0, dict.fromkeys(CAUSES, 0.0)
        if path.is_file():
            with contextlib.suppress(OSError, ValueError, KeyError):  # a torn file loses a statistic, not a run
                kept = json.loads(path.read_text())
                self._seconds |= {name: kept["seconds"][name] for name in CAUSES}
                self._first, self._step = kept["first"], kept["step"]
                self._seconds["down"] += max(0.0, began - kept["written"])
        self._reached, self._mark = self._step, None

    def started(self) -> None:
        """Called before the first step."""
        self._seconds["start"] += self._now() - self._began
        self._mark = self._now(), sum(self._seconds.values())

    @contextlib.contextmanager
    def spent(self, cause: str | None) -> Iterator[None]:
        """Counts the time within it for a cause; None counts nothing."""
        began = self._now()
        try:
            yield
        finally:
            if cause:
                self._seconds[cause] += self._now() - began

    def stepped(self, step: int) -> None:
        """Called after every step: what it took is work done twice, up to the step that an earlier process reached."""
        now, counted = self._now(), sum(self._seconds.values())
        if step <= self._reached:
            since, before = self._mark
            self._seconds["again"] += max(0.0, (now - since) - (counted - before))
        self._step, self._mark = max(self._step, step), (now, sum(self._seconds.values()))

    def values(self) -> dict[str, float]:
        """{"goodput": share of the wall time, "lost_seconds/CAUSE": ...} since the run was first started."""
        wall = max(self._now() - self._first, 1e-9)
        lost = sum(self._seconds.values())
        return {"goodput": max(0.0, 1.0 - lost / wall)} | {f"lost_seconds/{n}": s for n, s in self._seconds.items()}

    def write(self) -> None:
        """Puts the file in place, whole."""
        if not self._write:
            return
        kept = {"first": self._first, "written": self._now(), "step": self._step, "seconds": self._seconds}
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(kept))
        os.replace(temporary, self._path)
