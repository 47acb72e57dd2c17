"""The training run: build mesh, data, model, optimizer; restore; step; log; save."""

import contextlib
import time
from pathlib import Path

import jax

from csfm_jax import sharding
from csfm_jax.config import Config
from csfm_jax.evaluation import label_budget
from csfm_jax.models import attention, flops
from csfm_jax.models import config as model_config
from csfm_jax.tasks.resolve import read_stores, read_tokens
from csfm_jax.training import initial, record, step, together
from csfm_jax.training.adaptation import run_optimizer
from csfm_jax.training.best import Best
from csfm_jax.training.checkpoint import Checkpoints
from csfm_jax.training.goodput import Goodput
from csfm_jax.training.metrics import Interval, Log, interval_from
from csfm_jax.training.optimizer import learning_rate
from csfm_jax.training.remote import Workdir
from csfm_jax.training.run import Run
from csfm_jax.training.state import Blueprint, TrainState, blueprint
from csfm_jax.training.stopping import StopRequest
from csfm_jax.training.task_validation import TaskValidation
from csfm_jax.training.validation import Validation
from csfm_jax.training.watching import Profile, Watch
from data_pipelines import storage
from data_pipelines.errors import BadInput
from data_pipelines.loader import Loader, make_loader
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
        watch = until_end.enter_context(Watch(config.training))  # until the last checkpoint is written and closed
        # All that can be refused is refused before anything is compiled, cheapest first.
        mesh = _checked_mesh(config)
        share = sharding.rows_share(mesh)
        # By every process, so that a late one is known by its absence; in one write, since they may share a log.
        print(f"devices: {record.device_line(share, config.data.rows)}\n", end="", flush=True)
        remedy = "start every process with the same command and the same files"
        # A folder may have another name on each host; whether all see one is asked where it is entered.
        told = record.everywhere(config) | {"--workdir": workdir if storage.is_remote(workdir) else "a folder"}
        together.check_equal("--config and --workdir", told, "the same everywhere", remedy)
        rate = learning_rate(config.optimizer, config.training.steps)
        optimizer = run_optimizer(config)
        stores = open_stores(config.data.stores, config.data.verify, config.data.fold)
        # Before anything waits for the others: what a host reads to verify its own copies may take it hours.
        together.barrier("stores opened", together.LONG)
        watch.goes_on()
        home = until_end.enter_context(Workdir(workdir))
        folder = home.folder  # of this host; the work directory itself, unless that is in an object store
        _cache_compilations(home)
        checkpoints = home.checkpoints(config.training.keep_checkpoints)
        until_end.push(checkpoints.ended)
        saved = checkpoints.read_run()
        begins = {"--init": str(init), "the latest step": str(saved.get("step"))}
        together.check_equal("--init and the latest checkpoint", begins, "the same everywhere", remedy)
        tokenizer = choose_tokenizer(stores, read_tokens(config), config.data.tokenizer)
        about = record.describe(config, stores, tokenizer, command)
        if saved:
            # Before arrays are read: another width would fail there too, but not by the name of its field.
            record.check_resumable(saved, about, str(workdir))
            initial.check_resumed(init, saved, str(workdir))
        from_weights = init not in (None, initial.RANDOM) and not saved
        begun = initial.read(init, config, stores, tokenizer) if from_weights else None
        about["initial"] = begun.about if begun else saved.get("initial")
        loader = _loader(config, stores, folder / "plans", saved.get("data"), share)
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
        profile = until_end.enter_context(Profile(config.training, folder / "profile"))
        goodput.started()
        number, steps = done, range(done + 1, config.training.steps + 1)  # a run that is complete makes none
        # The line that a stop had no time for. Its absence is asked for, too: this run may be the second to go on here.
        owed = saved.get("owes_validation", False) and together.anywhere("line owed", log.lacks("validation", done))
        if owed and not run.validate(validation, done, state, stop.asked):
            steps = ()
        else:  # the run before may have ended between saving its last step and keeping it as the best one
            best.catch_up(done, log.line("validation", done))
        for number in steps:
            watch.goes_on()
            profile.step(number)
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


def _checked_mesh(config: Config) -> jax.sharding.Mesh:
    for name in ("steps", "log_every", "eval_every", "eval_batches", "save_every", "bad_steps", "accumulate"):
        if (value := getattr(config.training, name)) < 1:
            raise BadInput(
                f"config.training.{name}", str(value), "1 or more", "correct it; to do without, exceed steps"
            )
    if not 0.0 <= config.training.ema < 1.0:
        raise BadInput("config.training.ema", str(config.training.ema), "a number in [0, 1)", "0.9999 is usual, 0 none")
    model_config.check(config)
    attention.check(config.encoder.attention)
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


def _print_start(config: Config, plan: Blueprint, loader: Loader, done: int) -> None:
    counted, fill = flops.count(config), loader.plans.get(loader.state()["epoch"]).packing.fill
    tokens = config.data.rows * config.data.row_tokens
    row_tokens, row_visible, _ = loader.plans.capacities
    if config.backbone.name == "transformer":
        visible, whole = (attention.chosen(config.encoder.attention, keys) for keys in (row_visible, row_tokens))
        print(f"attention: {visible} among a row's {row_visible} visible tokens, {whole} among all {row_tokens}")
    print(
        f"parameters: {plan.parameters:,}; decoder's share of the FLOPs: {counted.decoder_share:.0%}\n"
        f"a step: {config.data.rows} rows, {tokens:,} tokens at most; the plan fills {fill[0]:.1%} of T, "
        f"{fill[1]:.1%} of V\n"
        f"steps: {done:,} done of {config.training.steps:,}",
        flush=True,
    )
