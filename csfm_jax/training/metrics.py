"""Metrics: what one line says, and where lines go (JSON always, TensorBoard, a progress bar on a terminal)."""

import dataclasses
import json
import math
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from csfm_jax.training.board import Board
from csfm_jax.training.step import StepMetrics
from data_pipelines.batch import MODALITY_OF, TokenBatch
from data_pipelines.signals import MODALITIES


@dataclass(frozen=True)
class BatchFacts:
    """What the host reads off its own rows before they leave for the devices.

    Attributes:
        sensors: set of modalities ("ecg+ppg") -> windows that have exactly these.
        planned: tokens that the plan put into the rows in use; more than are there where a sensor was off.
        tokens: tokens that are there. waited: seconds that the loop waited for the batch.
        position: epoch and first row of the global batch.
    """

    sensors: dict[str, int]
    planned: float
    tokens: int
    waited: float
    position: tuple[int, int]


def batch_facts(batch: TokenBatch, planned_fill: float, waited: float, position: tuple[int, int]) -> BatchFacts:
    """Summarises a host-local batch.

    Args:
        batch: NumPy arrays. planned_fill: tokens of the epoch's plan over its capacity. waited: seconds. position: as
            in `BatchFacts`.
    """
    rows, windows = batch.window.shape
    kind, kinds = MODALITY_OF[batch.channel], len(MODALITIES)
    place = np.arange(rows)[:, None] * (windows + 1) + batch.segment
    found = (place * kinds + kind)[kind >= 0]  # of each signal token: its window and its modality
    there = np.bincount(found, minlength=rows * (windows + 1) * kinds).reshape(-1, kinds) > 0
    sensors = {}
    for code, count in zip(*np.unique(there @ (1 << np.arange(kinds)), return_counts=True)):
        if code:
            sensors["+".join(m for i, m in enumerate(MODALITIES) if code >> i & 1)] = int(count)
    used = int(np.count_nonzero((batch.window >= 0).any(axis=1)))
    planned = planned_fill * used * batch.channel.shape[1]
    return BatchFacts(sensors, planned, int(np.count_nonzero(batch.channel)), waited, position)


@dataclass
class Interval:
    """Sums since the last line. Plain values: it travels in a checkpoint, so that a resumed run's lines are the same.

    Averages are sums over sums of all steps of the interval, never means of means; a step that was not made
    contributes its counters only.
    """

    steps: int = 0
    made: int = 0
    loss: float = 0.0
    gradient_norm: float = 0.0
    learning_rate: float = 0.0
    skipped: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    visible: int = 0
    windows: int = 0
    windows_digest: int = 0
    sensors: dict[str, int] = field(default_factory=dict)
    planned: float = 0.0
    present: int = 0

    def add(self, metrics: StepMetrics, facts: BatchFacts) -> None:
        """Adds one step; `metrics` already on the host."""
        self.steps += 1
        self.skipped = metrics.skipped
        self.learning_rate = metrics.learning_rate
        self.tokens += metrics.tokens
        self.visible += metrics.visible
        self.windows += metrics.windows
        self.windows_digest = (self.windows_digest + metrics.windows_digest) % 2**32
        _add(self.sensors, facts.sensors)
        self.planned += facts.planned
        self.present += facts.tokens
        if metrics.made:
            self.made += 1
            self.loss += metrics.loss
            self.gradient_norm += metrics.gradient_norm
            _add(self.sums, metrics.sums)
            _add(self.counts, metrics.counts)

    def values(self, row_tokens: int, row_visible: int, rows: int) -> dict:
        """The interval's averages; None where nothing was counted. "windows_digest" tells which windows they are of.

        Args:
            row_tokens, row_visible: T and V. rows: of a global batch.
        """
        windows = sum(self.sensors.values())
        return {
            "loss": _ratio(self.loss, self.made),
            **averages(self.sums, self.counts),
            "gradient_norm": _ratio(self.gradient_norm, self.made),
            "learning_rate": self.learning_rate,
            "fill/tokens": _ratio(self.tokens, self.steps * rows * row_tokens),
            "fill/visible": _ratio(self.visible, self.steps * rows * row_visible),
            # the plan's average fill stands for the rows at hand: a percent of noise over few rows
            "missing": None if self.planned == 0 else max(0.0, 1 - self.present / self.planned),
            "sensors": {name: count / windows for name, count in sorted(self.sensors.items())},
            "skipped": self.skipped,
            "windows_digest": f"{self.windows_digest:08x}",
        }


def averages(sums: dict[str, float], counts: dict[str, float]) -> dict[str, float | None]:
    """Sums over counts by name; "rmse/..." sums are of squares, so its root is taken here, after the division."""
    result = {}
    for name in sorted(sums):
        mean = _ratio(sums[name], counts[name])
        result[name] = math.sqrt(mean) if mean is not None and name.startswith("rmse/") else mean
    return result


class Speed:
    """Rates between two lines, of this process: wall time, time spent waiting for data."""

    def __init__(self, flops_per_step: float, peak: float | None):
        self._flops, self._peak = flops_per_step, peak
        self._restart()

    def _restart(self):
        self._since, self._waited, self._steps, self._tokens, self._windows = time.perf_counter(), 0.0, 0, 0, 0

    def add(self, metrics: StepMetrics, facts: BatchFacts) -> None:
        self._steps += 1
        self._waited += facts.waited
        self._tokens += metrics.tokens
        self._windows += metrics.windows

    def values(self) -> dict:
        """Rates since the last call. "mfu" is None where the device's peak is not known (CPU)."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        found = {
            "tokens_per_second": self._tokens / seconds,
            "windows_per_second": self._windows / seconds,
            "mfu": None if self._peak is None else self._flops * self._steps / seconds / self._peak,
            "seconds_waiting": self._waited,
        }
        self._restart()
        return found


class Log:
    """Where lines go. Only process 0 writes.

    Args:
        folder: the work directory: metrics.jsonl (training), validation.jsonl, skipped.jsonl (steps that were not made,
            with their windows), tensorboard/.
        done: steps that the restored state has taken; later lines are of a run that was cut off, and are dropped, so
            that each step stands in the file once.
        steps: length of the run, for the progress bar, which is shown on a terminal only.
    """

    def __init__(self, folder: Path, *, done: int, steps: int, write: bool):
        self._files, self._board, self._bar = {}, None, None
        if not write:
            return
        for name in ("metrics", "validation", "skipped"):
            path = folder / f"{name}.jsonl"
            drop_lines_after(path, done)
            self._files[name] = open(path, "a", encoding="utf-8")
        self._board = Board(folder / "tensorboard", done + 1)
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True)

    def write(self, name: str, step: int, values: dict) -> None:
        """Writes one line to NAME.jsonl, flushed, and its numbers to TensorBoard. NaN and Inf, which JSON has not, are
        null."""
        if not self._files:
            return
        line = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._files[name].write(json.dumps({"step": step, **line}, allow_nan=False) + "\n")
        self._files[name].flush()
        if name == "skipped":
            return
        parted = {k: v if isinstance(v, dict) else {"": v} for k, v in values.items()}
        scalars = {f"{k}/{part}" if part else k: v for k, parts in parted.items() for part, v in parts.items()}
        self._board.add(step, {k: v for k, v in scalars.items() if v is not None and not isinstance(v, str)})

    def line(self, name: str, step: int) -> dict | None:
        """The line of a step in NAME.jsonl; None where there is none, and in a process that writes none."""
        if name not in self._files:
            return None
        lines = map(json.loads, Path(self._files[name].name).read_text(encoding="utf-8").splitlines())
        return next((line for line in lines if line["step"] == step), None)

    def lacks(self, name: str, step: int) -> bool:
        """Whether NAME.jsonl has no line of a step; False in a process that writes none."""
        return name in self._files and self.line(name, step) is None

    def progress(self, step: int, loss: float | None) -> None:
        if self._bar is not None:
            self._bar.set_postfix(loss=loss, refresh=False)
            self._bar.update(step - self._bar.n)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        for open_one in (*self._files.values(), self._board, self._bar):
            if open_one is not None:
                open_one.close()


def drop_lines_after(path: Path, step: int) -> None:
    """Keeps the lines of a .jsonl file up to a step; a line that a kill cut in two goes as well."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def interval_from(values: dict) -> Interval:
    """The interval that a checkpoint holds."""
    return Interval(**values)


def interval_values(interval: Interval) -> dict:
    """An interval as plain values, for a checkpoint."""
    return dataclasses.asdict(interval)


def _add(into: dict, more: dict) -> None:
    for name, value in more.items():
        into[name] = into.get(name, 0) + value


def _ratio(value: float, count: float) -> float | None:
    return value / count if count else None
