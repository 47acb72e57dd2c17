"""TensorBoard's files of a run, written beside it."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class Board:
    """Numbers by step, written by a thread of its own, in order.

    tensorboardX imports PyTorch and Google's storage client where they are installed: half of what a start took, on
    the way to the first step. Here it is imported when the first line comes, and no step waits for it or for a line.

    Args:
        folder: made at the first line. purge_step: what an earlier run wrote from here on is not shown.
    """

    def __init__(self, folder: Path, purge_step: int):
        self._folder, self._purge_step = folder, purge_step
        self._thread, self._last, self._writer = ThreadPoolExecutor(1, thread_name_prefix="tensorboard"), None, None

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Has the numbers of a step written; raises what writing earlier ones has raised."""
        if self._last is not None and self._last.done():
            self._last.result()
        self._last = self._thread.submit(self._write, step, numbers, time.time())

    def _write(self, step: int, numbers: dict[str, float], now: float) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self._purge_step)
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step, walltime=now)

    def close(self) -> None:
        """Returns when everything is written; raises as `add` does."""
        try:
            if self._last is not None:
                self._last.result()
        finally:
            self._thread.shutdown()
            if self._writer is not None:
                self._writer.close()
