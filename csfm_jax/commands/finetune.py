"""Teaches a pretrained encoder a task: the loop, checkpoints and resume of `csfm train` with labels.

csfm finetune --checkpoint=runs/base --task=ptbxl_superclass --workdir=DIR --store=stores/ptbxl
              [--recipe=NAME|FILE.py] [--config.adaptation.trainable=head|lora|all]
              [--config.adaptation.head=linear|attention|average|mixture]

Train subjects alone are learned from; validation subjects give the held-out loss and figures (validation.jsonl).
--recipe names how somebody fine-tunes (configs/recipes): it sets fields of adaptation, data, optimizer and training;
the network is the checkpoint's, and --config.x.y=value beats it. What neither says is ours: 1,000 steps of AdamW, 10 %
of them warm-up, a batch of 16 rows, learning rate 1e-4 with layer decay 0.75 for a whole encoder, 1e-3 for a head or
LoRA. --checkpoint=random --config=NAME trains the same network from scratch by the same protocol. DIR then serves
`csfm predict`, `embed`, `evaluate`, and --init of another run.
"""

import dataclasses
import logging
import shlex
import sys
import tempfile
from collections.abc import Sequence

from csfm_jax import config as configs
from csfm_jax import recipes, tasks
from csfm_jax.config import Config, MeshConfig, ObjectiveConfig, OptimizerConfig, TrainingConfig
from csfm_jax.tasks import own
from csfm_jax.tasks.config import AdaptationConfig
from data_pipelines.config import DataConfig, WindowConfig
from data_pipelines.errors import BadInput
from data_pipelines.storage import place

_TENTH = -1  # as optimizer.warmup_steps: of the steps, which `with_steps` finds
_FOUND = ("task", "labels", "mean", "scale", "positive_weight")  # of `adaptation`: by --task, and in the stores


def arguments(parser) -> None:
    parser.add_argument(
        "--checkpoint", required=True,
        help="work directory or step of `csfm train`, published CSFM weights, or `random`",
    )  # fmt: skip
    parser.add_argument(
        "--task", required=True, help=f"one of {', '.join(sorted(tasks.TASKS))}; or of own labels: {own.FORM}"
    )
    parser.add_argument("--workdir", required=True, help="the run's folder, here or at gs:// or s3://; made if absent")
    parser.add_argument("--store", required=True, help="a store, a folder of stores, or several separated by commas")
    parser.add_argument("--config", help="with --checkpoint=random: a config file or the name of a shipped one")
    parser.add_argument(
        "--recipe",
        help="how it is taught: a recipe file or the name of a shipped one, "
        + ", ".join(configs.shipped_configs("recipes")),
    )
    parser.add_argument(
        "--unchecked-subjects", action="store_true",
        help="train even where nothing tells whether test subjects were pretrained on (see `csfm data overlap`)",
    )  # fmt: skip
    parser.add_argument("--distributed", action="store_true", help="one process of several, as in `csfm train`")
    parser.add_argument("--stopped-code", type=int, default=0, metavar="CODE", help="as in `csfm train`")


def run(args) -> int:
    task = tasks.get(args.task)
    scratch = args.checkpoint == "random"
    if scratch == (args.config is None):
        found = f"--checkpoint={args.checkpoint} {'without' if scratch else 'with'} --config"
        expected = "--config with --checkpoint=random alone: a checkpoint brings its own"
        raise BadInput(
            "--config", found, expected, "add it" if scratch else "leave it out; --recipe says how it is taught"
        )
    workdir = place(args.workdir)
    base = configs.load(args.config) if scratch else None  # before JAX starts: a typo is answered at once
    words = recipes.read(args.recipe) if args.recipe else ()
    if words and scratch and _is_baseline(base, task):
        expected = "none: this config of a supervised baseline says how it is trained"
        raise BadInput("--recipe", f"{args.recipe} beside --config={args.config}", expected, "leave one of them out")
    import jax

    from csfm_jax.training import companions

    if args.distributed:
        companions.join()
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # as in `csfm train`
    from csfm_jax import encoding
    from csfm_jax.evaluation import leakage
    from csfm_jax.tasks.resolve import resolve
    from csfm_jax.training import best, initial
    from csfm_jax.training.loop import train
    from data_pipelines.store import open_stores

    about = None if scratch else encoding.about(args.checkpoint)
    config = recipe(base or about.config, task, args.store, args.overrides, scratch, words)
    # the loop opens them again, and verifies them as the config says
    stores = open_stores(args.store, "size", config.data.fold)
    resolved = resolve(config, stores)
    if about is not None:
        leakage.check(stores, about.provenance, args.unchecked_subjects, args.checkpoint)
        seen, everyone = leakage.seen_validation(stores, about.provenance)
        if seen and jax.process_index() == 0:
            print(f"{seen} of the {everyone} validation subjects were pretrained on: their figures flatter", flush=True)
    config = with_steps(with_rows(resolved.adapted(config), stores), stores)
    if jax.process_index() == 0:
        _print_task(config, resolved)
    last = train(
        config,
        workdir,
        init=initial.RANDOM if scratch else args.checkpoint,
        command=shlex.join(["csfm", *sys.argv[1:]]),
    )
    if last < config.training.steps:
        return args.stopped_code
    if config.training.keep_best and jax.process_index() == 0 and not best.kept(workdir):
        print("no step was kept as the best: no validation had the figure that config.training.keep_best names")
    return 0


def recipe(
    base: Config, task: tasks.Task, stores: str, overrides: list[str], scratch: bool, of_file: Sequence[str] = ()
) -> Config:
    """The configuration of a fine-tuning run, but for what the stores decide.

    Args:
        base: of the checkpoint, or of the network to be trained from scratch: encoder and tokens stay, all else is the
            recipe's. stores: as `data.stores`. overrides: `--config.x.y=value` words; they win.
        scratch: whether weights begin at random. Then all layers learn at one rate, for none was pretrained; and the
            config of a supervised baseline stays as it is.
        of_file: words of a recipe file (`recipes.read`), which stand where ours would; no baseline's.
    """
    baseline = scratch and _is_baseline(base, task)
    words = [*([] if baseline else recipes.left_standing(of_file, overrides, scratch)), *overrides]
    given = {configs.field_of(word) for word in words}
    if given >= {"training.steps", "training.epochs"}:
        expected = "it or --config.training.steps"
        raise BadInput("--config.training.epochs", "both lengths", expected, "leave one of them out")
    for name in [*(f"adaptation.{name}" for name in _FOUND), "objective.name", "data.stores"]:
        if name in given:
            raise BadInput(f"--config.{name}", "a value", "none: --task and --store decide it", "leave it out")
    if baseline:
        window = dataclasses.replace(base.data.window, begin=task.begin, end=task.end)
        config = dataclasses.replace(
            base,
            data=dataclasses.replace(base.data, stores=stores, window=window),
            adaptation=dataclasses.replace(base.adaptation, task=task.name, layer_decay=1.0),
        )
        return configs.override(config, words)
    return _with_usual(configs.override(_ours(base, task, stores, scratch), words), given)


def _is_baseline(base: Config, task: tasks.Task) -> bool:
    """Whether a config is that of a supervised baseline: it says all but the task."""
    return base.objective.name == task.objective


def _ours(base: Config, task: tasks.Task, stores: str, scratch: bool) -> Config:
    """What holds where neither a recipe file nor the command line says anything, but for what depends on these."""
    window = WindowConfig(
        seconds=task.seconds,
        minimum_seconds=min(base.data.window.minimum_seconds, task.seconds),
        begin=task.begin,
        end=task.end,
    )
    return dataclasses.replace(
        base,
        data=DataConfig(
            stores=stores, window=window, rows=16, row_tokens=0, row_visible=0, row_windows=base.data.row_windows
        ),
        objective=ObjectiveConfig(name=task.objective),
        optimizer=OptimizerConfig(warmup_steps=0, learning_rate=0.0),
        training=TrainingConfig(steps=1000, log_every=10, eval_every=100, save_every=100),
        mesh=MeshConfig(),
        adaptation=AdaptationConfig(task=task.name, layer_decay=1.0 if scratch else AdaptationConfig.layer_decay),
    )


def _with_usual(config: Config, given: set[str]) -> Config:
    """The config with the values that depend on others, of the fields that are not given."""
    in_epochs = config.training.epochs != 0
    usual = {
        "learning_rate": 1e-4 if config.adaptation.trainable == "all" else 1e-3,
        "warmup_steps": _TENTH if in_epochs else config.training.steps // 10,
    }
    usual = {name: value for name, value in usual.items() if f"optimizer.{name}" not in given}
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **usual))
    if in_epochs and "training.eval_every" not in given:
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, eval_every=0))
    return config


def with_rows(config: Config, stores) -> Config:
    """Rows as long as the longest window asks for, unless `data.row_tokens` is given; every token is visible. Where
    signals are predicted, only the inputs are: then as many as these take of such a row on average, unless
    `data.row_visible` is given."""
    from csfm_jax.tasks.resolve import read_stores, read_tokens
    from data_pipelines import windows

    data, signal = config.data, config.objective.name == "translation"
    if not data.row_tokens or signal:
        # every recording that an epoch may hold, whichever the first one does
        every = dataclasses.replace(data, row_tokens=2, weights={}, quality_weight=False)
        table = windows.epoch_windows(read_stores(config, stores), read_tokens(config), every, "train", 0)
        row = data.row_tokens or windows.row_length(table.tokens.max(), data.row_windows)
        data = dataclasses.replace(data, row_tokens=row)
        if signal and not data.row_visible:
            share = table.visible.sum(dtype=float) / table.tokens.sum(dtype=float)
            visible = max(int(table.visible.max()), int(share * row))
            data = dataclasses.replace(data, row_visible=min(row, windows.row_length(visible)))
    if signal:
        return dataclasses.replace(config, data=data)
    return dataclasses.replace(config, data=dataclasses.replace(data, row_visible=data.row_tokens))


def with_steps(config: Config, stores) -> Config:
    """As many steps as `training.epochs` asks for, where it does: of all labelled train recordings, also where fewer
    learn (`adaptation.halvings`). A measurement an epoch and a warm-up of a tenth, unless they are given."""
    from csfm_jax.tasks.resolve import read_stores, read_tokens
    from data_pipelines.loader import Rows

    if not config.training.epochs:
        return config
    if config.training.epochs < 0:
        raise BadInput("config.training.epochs", str(config.training.epochs), "1 or more, or 0", "correct it")
    with tempfile.TemporaryDirectory(prefix="csfm-plans-") as plans:
        views, tokens, labels = read_stores(config, stores), read_tokens(config), config.adaptation.labels
        rows = Rows(views, tokens, config.data, "train", plans, hide=False, label_names=labels, training=True)
        epoch = -(-rows.plans.get(0).rows // config.data.rows)
    steps = config.training.epochs * epoch
    training = dataclasses.replace(config.training, steps=steps, eval_every=config.training.eval_every or epoch)
    warmup = steps // 10 if config.optimizer.warmup_steps == _TENTH else config.optimizer.warmup_steps
    optimizer = dataclasses.replace(config.optimizer, warmup_steps=warmup)
    return dataclasses.replace(config, training=training, optimizer=optimizer)


def _print_task(config: Config, resolved) -> None:
    counts = ", ".join(f"{count:,} {split}" for split, count in resolved.recordings.items())
    named = "targets" if config.objective.name == "translation" else "labels"
    told = f"task: {config.adaptation.task}, {len(resolved.labels)} {named}"
    print(f"{told}; labelled recordings: {counts}", flush=True)
    for name, why in resolved.left_out.items():
        print(f"  {name} is left out: {why}", flush=True)
