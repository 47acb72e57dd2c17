"""Compares models: a study of models x tasks x sensors, or one checkpoint's probe on labels that are no task.

csfm evaluate --tasks=A,B --models=linear:RUN,finetuned:RUN,trees --store=STORES --workdir=DIR [--sensors=all,2,1]
teaches every model every task on train subjects, keeps predictions of validation and test subjects in DIR, and writes
DIR/results.parquet and DIR/report.html. The same command goes on where it stopped; of several at once, on a folder that
they share, each takes what no other is at. Models: linear:RUN, attention:RUN, finetuned:RUN, lora:RUN, random:CONFIG or
random:RUN, scratch:CONFIG, benchmark_s4, benchmark_net1d, benchmark_xresnet1d, trees, or a work directory of csfm
finetune. --recipe and --config.x.y=... go to the fine-tunings.

csfm evaluate --checkpoint=RUN --store=STORES --labels='pattern/*' probes labels by their names: linear probes on frozen
embeddings against the same network at random initialisation. Both: fitted on train subjects, chosen on validation
subjects, read on test subjects, whom the checkpoint must not have been trained on.
"""

import json
import math
from pathlib import Path

from csfm_jax.commands import options
from data_pipelines import storage
from data_pipelines.errors import BadInput

_OF_STUDY = ("tasks", "models", "workdir")
_OF_PROBE = ("checkpoint", "labels", "output")
_MORE_OF_STUDY = {"folds": 0, "elsewhere": None, "recipe": None, "sensors": "all", "label_fractions": "1",
                  "label_networks": None, "similarity": None, "workers": 0}  # fmt: skip


def arguments(parser) -> None:
    parser.set_defaults(config=None)  # overrides go to the fine-tunings of a study
    options.of_stores(parser, "evaluate", "test")
    study = parser.add_argument_group("a study")
    study.add_argument("--tasks", help="as of csfm finetune, separated by commas")
    study.add_argument("--models", help="separated by commas; every other one is compared with the first")
    study.add_argument("--workdir", action=options.WrittenHere, help="the study's folder; made if absent")
    study.add_argument(
        "--sensors", default=_MORE_OF_STUDY["sensors"],
        help="subsets that test recordings are read with: all, 12, 6, 3, 2, 1, ecg, ppg, ecg+ppg, lead:II ...",
    )  # fmt: skip
    study.add_argument(
        "--label-fractions", metavar="1/N", default=_MORE_OF_STUDY["label_fractions"],
        help="down to which power of two of the train patients probes and trees are fitted again",
    )  # fmt: skip
    study.add_argument(
        "--label-networks", metavar="A,B",
        help="which of the models are fine-tuned again on each of these fractions too: as many fine-tunings more",
    )  # fmt: skip
    study.add_argument(
        "--recipe", metavar="NAME",
        help="how checkpoints are fine-tuned, and networks from scratch but the baselines: as of csfm finetune",
    )  # fmt: skip
    study.add_argument(
        "--folds", type=int, default=0, metavar="N",
        help="folds of patients, each of them tested once, in place of the stores' splits: as many studies, pooled",
    )  # fmt: skip
    study.add_argument(
        "--elsewhere", metavar="STORES",
        help="other sources and devices, whose test subjects every model is read on with nothing fitted there",
    )  # fmt: skip
    study.add_argument("--similarity", metavar="A,B", help="two of the models whose layers are compared by linear CKA")
    study.add_argument("--workers", type=int, default=0, help="processes that measure features for trees")
    study.add_argument("--stopped-code", type=int, default=0, metavar="CODE", help="as in `csfm train`")
    probe = parser.add_argument_group("a probe of labels that are no task")
    probe.add_argument("--checkpoint", help="work directory, its checkpoints folder, or one step; here, gs://, s3://")
    probe.add_argument("--labels", help='patterns separated by commas; "superclass/*" if none is given')
    probe.add_argument("--output", action=options.WrittenHere, help="results as JSON")
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="replicates")
    parser.add_argument("--seed", type=int, default=0, help="of random networks, trees, subsets and the bootstrap")


def run(args) -> int:
    if args.bootstrap < 1:
        raise BadInput("--bootstrap", str(args.bootstrap), "1 or more", "1000 is usual")
    given = [[f"--{name}" for name in names if getattr(args, name)] for names in (_OF_STUDY, _OF_PROBE)]
    if (len(given[0]) == len(_OF_STUDY)) == (args.checkpoint is not None) or all(given):
        found = " ".join(given[0] + given[1]) or "neither"
        expected = "--tasks --models --workdir (a study), or --checkpoint (a probe of labels)"
        raise BadInput("csfm evaluate", found, expected, "give one of the two")
    for name, usual in _MORE_OF_STUDY.items() if args.checkpoint else ():
        if getattr(args, name) != usual:
            where, remedy = f"--{name.replace('_', '-')}", "name --tasks, --models and --workdir"
            raise BadInput(where, "beside --checkpoint", "a study", remedy)
    return _study(args) if given[0] else _probe(args)


def _study(args) -> int:
    import logging

    import jax

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # as in `csfm train`
    from csfm_jax.evaluation import cell, cells, study, study_folds
    from data_pipelines.store import open_stores

    halvings, folder = _halvings(args.label_fractions), args.workdir
    if args.folds and (args.folds < 3 or args.similarity):
        found = "with --similarity, which compares two networks" if args.similarity else str(args.folds)
        raise BadInput("--folds", found, "3 or more, alone", "5 is usual; leave one out")
    stores = open_stores(args.store, args.verify)
    if jax.config.jax_compilation_cache_dir is None:  # one for all cells
        jax.config.update("jax_compilation_cache_dir", str(folder / "compilation_cache"))
    settings = cell.Settings(
        args.store, stores, args.overrides, args.seed, args.unchecked_subjects, folder / "features", halvings,
        args.workers,
        tuple(filter(None, (word.strip() for word in (args.label_networks or "").split(",")))),
        _elsewhere(args, stores), _recipe(args.recipe),
    )  # fmt: skip

    def plan(settings: cell.Settings, folder: Path) -> study.Study:
        return study.plan(settings, args.tasks, args.models, args.sensors, args.similarity, folder)

    parts = study_folds.plan(settings, args.folds, plan, folder) if args.folds else [plan(settings, folder)]
    try:
        study.run(parts)
    except cells.Stopped:
        print("stopped; the same command goes on", flush=True)
        return args.stopped_code
    return _told(parts, args)


def _told(parts: list, args) -> int:
    """Writes and prints the figures of a study that has been run, whole or in folds; the exit code."""
    from csfm_jax.evaluation import study, study_folds, study_results
    from csfm_jax.reporting import evaluation_page
    from csfm_jax.training.claim import locked

    folder = args.workdir
    # of commands that shared the cells each writes the page; one that read them earlier must not do so later
    with locked(folder, math.inf):
        planned = study_folds.pool(parts, folder) if args.folds else parts[0]
        failures, results = planned.failures, study_results.gather(planned, args.bootstrap, args.seed)
        study_results.write(results, folder / "results.parquet")
        evaluation_page.write(results, study.alike(planned), folder / "report.html")
    print(study_results.summary(results))
    for (task, model), why in failures.items():
        print(f"failed: {task}, {model}: {why}")
    for task, why in results.broken.items():
        print(f"failed: {task}, its figures: {why}")
    print(f"wrote {folder / 'results.parquet'} and {folder / 'report.html'}")
    return 1 if failures or results.broken else 0


def _elsewhere(args, stores: list) -> tuple:
    from data_pipelines.store import check_spec, open_stores

    if args.elsewhere is None:
        return ()
    if args.folds:
        found, expected = "with --folds, which tests every patient", "one of the two"
        raise BadInput("--elsewhere", found, expected, "leave one out")
    others = tuple(open_stores(args.elsewhere, args.verify))
    if twice := {store.name for store in stores} & {store.name for store in others}:
        found = f"{min(twice)}, which is among --store, too"
        raise BadInput("--elsewhere", found, "other stores", "leave it out of one of the two")
    for store in others:
        check_spec(store.spec, stores[0].spec, str(store.path))
    return others


def _recipe(name: str | None) -> tuple[str, ...]:
    from csfm_jax import config as configs
    from csfm_jax import recipes
    from csfm_jax.evaluation.study_models import DECIDED
    from csfm_jax.tasks.config import AdaptationConfig

    words, usual = recipes.read(name) if name else (), AdaptationConfig()
    for word in words:
        field, value = configs.field_of(word), word.partition("=")[2]
        if field in DECIDED and value != getattr(usual, field.removeprefix("adaptation.")):
            found, expected = f"{field} = {value}", "a recipe for a whole encoder: --models says what else is taught"
            raise BadInput(f"--recipe={name}", found, expected, "name another recipe, and models such as attention:RUN")
    return words


def _halvings(words: str) -> int:
    one, _, number = words.strip().partition("/")
    size = int(number) if one == "1" and number.isdecimal() else 1 if words.strip() == "1" else 0
    if size < 1 or size & (size - 1):
        raise BadInput("--label-fractions", words, "1 or 1/2, 1/4, 1/8, ...: a power of two", "correct it")
    return size.bit_length() - 1


def _probe(args) -> int:
    from csfm_jax import encoding
    from csfm_jax.evaluation import features, leakage, protocol
    from data_pipelines.store import open_stores

    if args.overrides:
        raise BadInput(args.overrides[0].partition("=")[0], "a value", "none: nothing is trained", "leave it out")
    trained = encoding.load(args.checkpoint)
    stores = open_stores(args.store, args.verify)
    groups = protocol.groups(protocol.Recordings.whole(stores), args.labels or "superclass/*")
    checked = leakage.check(stores, trained.provenance, args.unchecked_subjects, args.checkpoint)
    if not checked:
        print("whether these weights were trained on test subjects is not checked")
    untrained = encoding.random_encoder(trained.config, args.seed, trained.spec)
    found = [features.recording_features(encoder, stores) for encoder in (trained, untrained)]
    recordings = protocol.Recordings.of(stores, found[0].store, found[0].recording)
    judged = [
        protocol.judge(recordings, found[0].pooled, found[1].pooled, group, args.bootstrap, args.seed)
        for group in groups
    ]
    results = {
        "checkpoint": trained.provenance,
        "stores": {s.name: s.digest for s in stores},
        "subjects_checked": checked,
        "windows": int(found[0].windows.sum()),
        "groups": judged,
    }
    print(table(judged))
    if args.output:
        write_json(results, args.output)
        print(f"wrote {args.output}")
    return 0


def table(judged: list[dict]) -> str:
    """One line a label group: both figures and their paired difference, each with its 95 % interval."""
    lines = [f"{'labels':<24}{'figure':<13}{'checkpoint':<23}{'random init':<23}{'difference':<26}test subjects"]
    for group in judged:
        cells = [f"{_cell(group[name]):<23}" for name in ("checkpoint", "random")]
        difference = f"{_cell(group['difference'], '+'):<26}"
        figure = group["metric"].replace("_", " ")
        lines.append(f"{group['group']:<24}{figure:<13}{''.join(cells)}{difference}{group['subjects']['test']}")
        for i, label in enumerate(group["labels"] if "by_label" in group else ()):
            each = group["by_label"]
            values = f"{each['checkpoint'][i]:<23.3f}{each['random'][i]:<23.3f}"
            difference = each["checkpoint"][i] - each["random"][i]
            lines.append(f"  {label:<22}{'auroc':<13}{values}{difference:<+26.3f}{group['positives'][i]} positive")
        if "mean_absolute_error" in group:
            error = group["mean_absolute_error"]
            cells = f"{_cell(error['checkpoint']):<23}{_cell(error['random']):<23}{_cell(error['difference'], '+')}"
            lines.append(f"  {'':<22}{'mean |error|':<13}{cells}")
        for label, why in group["left_out"].items():
            lines.append(f"  {label:<22}left out: {why}")
    return "\n".join(lines)


def _cell(interval: dict, sign: str = "") -> str:
    return f"{interval['point']:{sign}.3f} ({interval['low']:{sign}.3f}, {interval['high']:{sign}.3f})"


def write_json(values: dict, target: Path) -> None:
    """Writes results whole or not at all; figures that do not exist are null."""
    storage.write_bytes(target, (json.dumps(_plain(values), indent=1) + "\n").encode())


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
