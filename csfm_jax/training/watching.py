"""Looks at a run from the side: the stacks of a step that hangs, and a profile of a few steps."""

import faulthandler
import math
import sys
import time
from pathlib import Path

import jax

from csfm_jax.config import TrainingConfig


class Watch:
    """Told of every step. Each process watches itself; profiles go to `folder`, readable by XProf and TensorBoard."""

    def __init__(self, config: TrainingConfig, folder: Path):
        self._config, self._folder, self._profiling = config, folder, False
        self._armed = -math.inf  # when

    def __enter__(self):
        return self

    def step(self, number: int) -> None:
        """Called before step `number`."""
        limit, now = self._config.hang_seconds, time.monotonic()
        # Armed anew: it fires only if the next call does not come in time, and the run goes on all the same. Arming
        # starts a thread and waits for the one before to end, many milliseconds where cores are busy; so not at every
        # step, but with a little more time.
        if limit > 0 and now - self._armed > 0.05 * limit:
            faulthandler.dump_traceback_later(1.05 * limit, file=sys.__stderr__)
            self._armed = now
        first = self._config.profile_step
        if first and number == first:
            jax.profiler.start_trace(str(self._folder))
            self._profiling = True
        elif self._profiling and number >= first + self._config.profile_steps:
            self._end_profile()

    def _end_profile(self) -> None:
        jax.profiler.stop_trace()
        self._profiling = False

    def __exit__(self, *error) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self._profiling:
            self._end_profile()
