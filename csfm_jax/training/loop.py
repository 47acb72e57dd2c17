"""The training run: build mesh, data, model, optimizer; restore; step; log; save."""

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from csfm_jax import sharding
from csfm_jax.config import Config
from csfm_jax.evaluation import label_budget
from csfm_jax.models import config as model_config
from csfm_jax.models import flops
from csfm_jax.tasks.resolve import read_stores, read_tokens
from csfm_jax.training import initial, record, step, together
from csfm_jax.training.adaptation import run_optimizer
from csfm_jax.training.best import Best
from csfm_jax.training.checkpoint import Checkpoints
from csfm_jax.training.goodput import Goodput
from csfm_jax.training.metrics import (
    BatchFacts,
    Interval,
    Log,
    Speed,
    averages,
    batch_facts,
    interval_from,
    interval_values,
)
from csfm_jax.training.optimizer import learning_rate
from csfm_jax.training.remote import Workdir
from csfm_jax.training.state import Blueprint, TrainState, blueprint
from csfm_jax.training.stopping import RunStopped, StopRequest
from csfm_jax.training.task_validation import TaskValidation
from csfm_jax.training.watching import Watch
from data_pipelines import masking, storage, windows
from data_pipelines.batch import TokenBatch
from data_pipelines.errors import BadInput
from data_pipelines.loader import Loader, evaluation_batches, make_loader
from data_pipelines.storage import Place
from data_pipelines.store import open_stores
from data_pipelines.text import choose_tokenizer


def train(config: Config, workdir: Place, *, command: str, init: str | None = None) -> int:
    """Trains to `config.training.steps`, or goes on where an earlier call with this work directory stopped.

    Args:
        config: the whole run. workdir: a folder, or one in an object store; made if absent; see `remote.Workdir`,
            `record.write_folder`, `metrics.Log` and `checkpoint` for what lies in it. command: kept with the run.
            init: weights to begin from, see `initial.read`, or `initial.RANDOM`; a run that goes on has no more use for
                them.

    Returns:
        The last step that was made; below `config.training.steps` when a signal ended the run.

    Raises:
        BadInput: anything that the user can correct. RunStopped: too many non-finite steps in a row.
        OSError: ENOSPC when the disk is full; the last good checkpoint stands.
    """
    began = time.time()
    with contextlib.ExitStack() as until_end:
        # The signals first: whatever comes at any moment from here on ends in a saved checkpoint.
        stop = until_end.enter_context(StopRequest())
        # All that can be refused is refused before anything is compiled, cheapest first.
        mesh = _checked_mesh(config)
        remedy = "start every process with the same command and the same files"
        together.check_equal("--config", record.everywhere_digest(config), "one configuration everywhere", remedy)
        rate = learning_rate(config.optimizer, config.training.steps)
        optimizer = run_optimizer(config)
        stores = open_stores(config.data.stores, config.data.verify)
        # Before anything waits for the others: what a host reads to verify its own copies may take it hours.
        together.barrier("stores opened", together.LONG)
        home = until_end.enter_context(Workdir(workdir))
        folder = home.folder  # of this host; the work directory itself, unless that is in an object store
        _cache_compilations(home)
        checkpoints = home.checkpoints(config.training.keep_checkpoints)
        until_end.push(checkpoints.ended)
        saved = checkpoints.read_run()
        tokenizer = choose_tokenizer(stores, read_tokens(config), config.data.tokenizer)
        about = record.describe(config, stores, tokenizer, command)
        if saved:
            # Before arrays are read: another width would fail there too, but not by the name of its field.
            record.check_resumable(saved, about, str(workdir))
            initial.check_resumed(init, saved, str(workdir))
        from_weights = init not in (None, initial.RANDOM) and not saved
        begun = initial.read(init, config, stores, tokenizer) if from_weights else None
        about["initial"] = begun.about if begun else saved.get("initial")
        loader = _loader(config, stores, folder / "plans", saved.get("data"), sharding.rows_share(mesh))
        until_end.callback(loader.close)

        plan = blueprint(config, optimizer, mesh)
        state = _restored(checkpoints, plan, saved) if saved else plan.initial()
        if begun:
            state = initial.put(state, begun.params, begun.decoder)
        done = saved.get("step", 0)
        writes = jax.process_index() == 0
        if writes:
            record.write_folder(folder, about, record.trained_subjects(stores, config))
            if begun:
                record.write_subjects(folder / record.SUBJECTS_BEFORE, begun.subjects)
            _print_start(config, plan, loader, done)
            home.send()
        log = until_end.enter_context(Log(folder, done=done, steps=config.training.steps, write=writes))
        until_end.enter_context(sharding.use(mesh))

        goodput = Goodput(folder / "goodput.json", began, write=writes)
        run = Run(config, plan, loader, checkpoints, log, about, goodput)
        run.interval = interval_from(saved["interval"]) if saved else Interval()
        kind = TaskValidation if config.adaptation.task else Validation
        validation = kind(config, plan, stores, folder / "plans", mesh)
        best = Best(config, workdir, folder)
        train_step = step.make_train_step(plan, optimizer, rate, config)
        watch = until_end.enter_context(Watch(config.training, folder / "profile"))
        goodput.started()
        number, steps = done, range(done + 1, config.training.steps + 1)  # a run that is complete makes none
        # The line that a stop had no time for. Its absence is asked for, too: this run may be the second to go on here.
        owed = saved.get("owes_validation", False) and together.anywhere(log.lacks("validation", done))
        if owed and not run.validate(validation, done, state, stop.asked):
            steps = ()
        elif owed and best.better(run.measured):
            best.keep(done)
        for number in steps:
            watch.step(number)
            with goodput.spent("data"):
                batch = run.next_batch()
            with goodput.spent("compile" if number == done + 1 else None):
                state, metrics = train_step(state, step.to_global(batch, mesh))
            # Only now, with this step under way on the devices, are the metrics of the one before fetched, and the
            # batch looked at: the host never makes the devices wait.
            run.settle()
            run.pending = number, metrics, run.facts(batch)
            checkpoints.check()
            # A machine that is taken back is gone half a minute later: the checkpoint comes first, and the line of this
            # step is written by the run that goes on.
            owed, improved = number % config.training.eval_every == 0, False
            if owed and not stop.asked():
                owed = not run.validate(validation, number, state, stop.asked)
                improved = not owed and best.better(run.measured)
            last = stop.asked() or number == config.training.steps
            if last or improved or number % config.training.save_every == 0:
                # Lines up to a checkpoint's step are on disk before it is: a restart drops only later ones.
                run.settle()
                with goodput.spent("save"):
                    run.save(number, state, owed)
                    if last or improved:
                        checkpoints.wait()
            if owed and number == config.training.steps:  # no run goes on from here
                run.validate(validation, number, state, lambda: False)
                improved = best.better(run.measured)
            if improved:
                best.keep(number)
            goodput.stepped(number)
            if last:
                goodput.write()
                break
        # The context's end waits for the save under way, then closes workers and files.
    return number


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


class Validation:
    """Held-out loss and errors on validation subjects, for each kind of mask, with fixed starts and fixed masks."""

    def __init__(self, config: Config, plan: Blueprint, stores, plans_dir: Path, mesh):
        self._config, self._stores, self._plans_dir, self._mesh = config, stores, plans_dir, mesh
        self._evaluate, self._share = step.make_eval_step(plan), sharding.rows_share(mesh)
        self._present = any(np.any(store.index.split == 1) for store in stores)
        if not self._present and jax.process_index() == 0:
            print("no validation subjects in these stores: no held-out loss will be measured", flush=True)

    def measure(self, params: dict, stopping: Callable[[], bool] = lambda: False) -> dict | None:
        """{"validation/KIND/METRIC/MODALITY": average over `training.eval_batches` batches}.

        Args:
            stopping: asked before each batch, the same answer in every process; None is returned once it says so.
        """
        found = {}
        for kind in masking.STRATEGIES if self._present else ():
            sums, counts = {}, {}
            batches = evaluation_batches(
                self._stores,
                self._config.tokens,
                self._config.data,
                "validation",
                plans_dir=self._plans_dir / "validation",
                strategy=kind,
                host=self._share.number,
                hosts=self._share.parts,
            )
            for _, batch in zip(range(self._config.training.eval_batches), batches):
                if stopping():
                    return None
                outputs = jax.device_get(self._evaluate(params, step.to_global(batch, self._mesh)))
                for total, more in zip((sums, counts), outputs):
                    for name, value in more.items():
                        total[name] = total.get(name, 0.0) + float(value)
            found |= {f"validation/{kind}/{name}": value for name, value in averages(sums, counts).items()}
        return found


def _checked_mesh(config: Config) -> jax.sharding.Mesh:
    for name in ("steps", "log_every", "eval_every", "eval_batches", "save_every", "bad_steps", "accumulate"):
        if (value := getattr(config.training, name)) < 1:
            raise BadInput(
                f"config.training.{name}", str(value), "1 or more", "correct it; to do without, exceed steps"
            )
    if not 0.0 <= config.training.ema < 1.0:
        raise BadInput("config.training.ema", str(config.training.ema), "a number in [0, 1)", "0.9999 is usual, 0 none")
    model_config.check(config)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check(config, mesh)
    return mesh


def _restored(checkpoints: Checkpoints, plan: Blueprint, saved: dict) -> TrainState:
    # Straight into the mesh at hand, which need not be the one that saved; nothing is initialised first.
    abstract = plan.abstract
    arrays = checkpoints.restore(saved["step"], abstract.params, abstract.optimizer, abstract.average)
    return plan.resumed(**arrays, **{name: saved[name] for name in ("step", "bad", "skipped", "usual_norm")})


def _loader(config: Config, stores, plans_dir: Path, state: dict | None, share: sharding.Share) -> Loader:
    views = read_stores(config, stores)
    loader = make_loader(
        views, read_tokens(config), config.data, plans_dir=plans_dir, host=share.number,
        hosts=share.parts, state=state, hide=not config.adaptation.task, label_names=config.adaptation.labels,
        among=label_budget.among(config, views),
    )  # fmt: skip
    try:  # before the first step: hosts that disagreed would train on batches that nobody planned
        remedy = "copy the stores again, or let all hosts read them from one place"
        together.check_equal("config.data.stores", loader.plan_digest, "one packing plan everywhere", remedy)
    except BadInput:
        loader.close()
        raise
    return loader


def _cache_compilations(home: Workdir) -> None:
    # A restart then compiles nothing; what takes less than a second is not worth a file. Process 0 alone writes them,
    # so that they lie where every host reads: in the object store, where the work directory is there.
    if jax.config.jax_compilation_cache_dir is None:  # a cache that several runs share may be set in the environment
        jax.config.update("jax_compilation_cache_dir", str(storage.join(home.place, "compilation_cache")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _print_start(config: Config, plan: Blueprint, loader: Loader, done: int) -> None:
    counted, fill = flops.count(config), loader.plans.get(loader.state()["epoch"]).packing.fill
    tokens = config.data.rows * config.data.row_tokens
    print(
        f"devices: {record.device_line()}\n"
        f"parameters: {plan.parameters:,}; decoder's share of the FLOPs: {counted.decoder_share:.0%}\n"
        f"a step: {config.data.rows} rows, {tokens:,} tokens at most; the plan fills {fill[0]:.1%} of T, "
        f"{fill[1]:.1%} of V\n"
        f"steps: {done:,} done of {config.training.steps:,}",
        flush=True,
    )
