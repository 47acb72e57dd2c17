"""Ends of a run: a request to stop (SIGTERM, Ctrl-C), and the error of a run that cannot go on."""

import os
import signal

import jax
from jax.experimental import multihost_utils

from data_pipelines.errors import BadInput


class RunStopped(BadInput):
    """Training was stopped because going on would be useless; the message names the step."""


class StopRequest:
    """Turns SIGTERM and Ctrl-C into a flag that the loop asks for between steps and within a validation.

    A second Ctrl-C interrupts at once.

    With several processes a signal may reach only one of them, so they agree on the moment through JAX's preemption
    service, which catches SIGTERM itself; there, Ctrl-C is passed on as SIGTERM.
    """

    def __enter__(self):
        self._asked, self._questions, self._several = False, 0, jax.process_count() > 1
        names = (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM)
        self._before = {name: signal.signal(name, self._ask) for name in names}
        return self

    def _ask(self, number, frame):
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def asked(self) -> bool:
        """Whether to stop here; every process must ask at the same places. Once it is yes, it stays so."""
        if self._several and not self._asked:
            # The service chooses one of the questions to come, by its number: they are numbered without a gap.
            self._questions += 1
            self._asked = multihost_utils.reached_preemption_sync_point(self._questions)
        return self._asked

    def __exit__(self, *error):
        for name, handler in self._before.items():
            signal.signal(name, handler)
