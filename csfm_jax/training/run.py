"""What a training run does between steps: takes a batch, fetches metrics, writes lines, measures, saves."""

import math
import time
from collections.abc import Callable

import jax

from csfm_jax.config import Config
from csfm_jax.models import flops
from csfm_jax.training.checkpoint import Checkpoints
from csfm_jax.training.goodput import Goodput
from csfm_jax.training.metrics import BatchFacts, Interval, Log, Speed, batch_facts, interval_values
from csfm_jax.training.state import Blueprint, TrainState
from csfm_jax.training.stopping import RunStopped
from data_pipelines import windows
from data_pipelines.batch import TokenBatch
from data_pipelines.loader import Loader


class Run:
    """What the loop does between steps, kept out of the way of its order.

    Attributes:
        pending: (step, metrics on the devices, facts) of the step whose metrics were not fetched yet.
        interval: sums since the last line. measured: the latest held-out figures, or None.
    """

    def __init__(
        self,
        config: Config,
        plan: Blueprint,
        loader: Loader,
        checkpoints: Checkpoints,
        log: Log,
        about: dict,
        goodput: Goodput,
    ):
        self._config, self._loader, self._checkpoints, self._log, self._about = config, loader, checkpoints, log, about
        self._goodput = goodput
        kind, compute = jax.devices()[0].device_kind, config.encoder.compute
        peak = flops.peak(kind, compute)
        per_step = flops.count(config).train * config.data.rows
        self._speed = Speed(per_step, None if peak is None else peak * jax.device_count())
        self._capacities = windows.capacities(config.tokens, config.data)
        self.pending, self.interval, self._bad, self._skipped, self._usual_norm = None, Interval(), 0, 0, 0.0
        self._fill, self._came, self.measured = {}, None, None

    def next_batch(self) -> TokenBatch:
        """The next local batch."""
        position, began = self._loader.state(), time.perf_counter()
        batch, epoch = next(self._loader), position["epoch"]
        self._came = time.perf_counter() - began, (epoch, position["row"])
        if epoch not in self._fill:
            self._fill = {epoch: float(self._loader.plans.get(epoch).packing.fill[0])}
        return batch

    def facts(self, batch: TokenBatch) -> BatchFacts:
        """What the host reads off the batch that came last."""
        waited, position = self._came
        return batch_facts(batch, self._fill[position[0]], waited, position)

    def settle(self) -> None:
        """Fetches the pending step's metrics; writes a line where one is due.

        Raises:
            RunStopped: `training.bad_steps` in a row were not finite.
        """
        if self.pending is None:
            return
        (number, metrics, facts), self.pending = self.pending, None
        metrics = metrics.fetch()
        self._bad, self._skipped, self._usual_norm = metrics.bad, metrics.skipped, metrics.usual_norm
        if not metrics.made:
            self._log.write("skipped", number, self._blame(metrics, facts))
        self.interval.add(metrics, facts)
        self._speed.add(metrics, facts)
        if number % self._config.training.log_every == 0:
            row_tokens, row_visible, _ = self._capacities
            values = self.interval.values(row_tokens, row_visible, self._config.data.rows)
            values |= {"epoch": facts.position[0], "row": facts.position[1]}
            self._log.write("metrics", number, {**values, **self._speed.values(), **self._goodput.values()})
            self._goodput.write()
            self._log.progress(number, values["loss"])
            self.interval = Interval()
        if self._bad >= self._config.training.bad_steps:
            last = self._checkpoints.latest()
            raise RunStopped(
                f"training step {number}",
                f"{self._bad} steps in a row whose loss or gradient is not finite, or a spike",
                f"fewer than config.training.bad_steps = {self._config.training.bad_steps}",
                f"no update was made since step {number - self._bad}; "
                + (f"the checkpoint of step {last} stands; " if last is not None else "")
                + "look at the data, or begin again in another --workdir with a lower config.optimizer.learning_rate",
            )

    def _blame(self, metrics, facts) -> dict:
        """Of a step that was not made: why, and the whole batch's windows, as rows of the epoch's window table."""
        epoch, row = facts.position
        plan = self._loader.plans.get(epoch)
        windows = [int(w) for r in range(row, row + self._config.data.rows) for w in plan.row(r)]
        finite = math.isfinite(metrics.loss) and math.isfinite(metrics.gradient_norm)
        reason = "not finite" if not finite else "nothing to learn" if metrics.gradient_norm == 0 else "spike"
        norm = {"gradient_norm": metrics.gradient_norm, "usual_norm": self._usual_norm}
        return {"reason": reason, **norm, "epoch": epoch, "row": row, "windows": windows}

    def validate(self, validation, number: int, state: TrainState, stopping: Callable[[], bool]) -> bool:
        """Writes the line of held-out figures after step `number`; False, and no line, where a stop was asked for."""
        self.settle()
        with self._goodput.spent("evaluate"):
            measured = validation.measure(state.weights, stopping)
        if measured is None:
            return False
        self._log.write("validation", number, measured)
        self.measured = measured
        return True

    def save(self, number: int, state: TrainState, owes_validation: bool) -> None:
        """Starts saving the state after step `number`."""
        position = {
            "step": number,
            "bad": self._bad,
            "skipped": self._skipped,
            "usual_norm": self._usual_norm,
            "data": self._loader.state(),
            "interval": interval_values(self.interval),
            "owes_validation": owes_validation,
        }
        self._checkpoints.save(number, state.params, state.optimizer, {**self._about, **position}, state.average)
