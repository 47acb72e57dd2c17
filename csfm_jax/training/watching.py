"""Looks at a run from the side: the stacks of a start, a step or an end that hangs, and a profile of a few steps."""

import faulthandler
import math
import sys
import time
from pathlib import Path

import jax

from csfm_jax.config import TrainingConfig
from csfm_jax.training.together import LONG


class Watch:
    """Told that the run goes on; each process watches itself, from the context's begin to its end.

    What takes too long has the stacks of all threads printed, once, and the run goes on all the same.
    """

    def __init__(self, config: TrainingConfig):
        self._limit, self._armed = config.hang_seconds, -math.inf  # when

    def __enter__(self):
        if self._limit > 0:
            self._arm(max(LONG, self._limit))  # stores are opened, which others wait for as long
        return self

    def goes_on(self) -> None:
        """Called before every step and, beside them, where another part of the run begins."""
        # Arming starts a thread and waits for the one before to end, many milliseconds where cores are busy; so not at
        # every step, but with a little more time.
        if self._limit > 0 and time.monotonic() - self._armed > 0.05 * self._limit:
            self._arm(1.05 * self._limit)
            self._armed = time.monotonic()

    def _arm(self, limit: float) -> None:
        faulthandler.dump_traceback_later(limit, file=sys.__stderr__)  # in place of the one before

    def __exit__(self, *error) -> None:
        faulthandler.cancel_dump_traceback_later()


class Profile:
    """Told of every step; JAX's profile of some goes to `folder`, readable by XProf and TensorBoard."""

    def __init__(self, config: TrainingConfig, folder: Path):
        self._first, self._steps, self._folder, self._running = config.profile_step, config.profile_steps, folder, False

    def __enter__(self):
        return self

    def step(self, number: int) -> None:
        """Called before step `number`."""
        if self._first and number == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._running and number >= self._first + self._steps:
            self._end()

    def _end(self) -> None:
        jax.profiler.stop_trace()
        self._running = False

    def __exit__(self, *error) -> None:
        if self._running:
            self._end()
