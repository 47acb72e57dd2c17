"""Predictions of a fine-tuned checkpoint for the recordings of a split, crops averaged, to Parquet or NumPy.

OUTPUT.parquet has a row a recording: store, recording (its study's hash), subject (hashed), windows, prediction/LABEL
and label/LABEL; OUTPUT.npz has the same as arrays. Probabilities, values in the label's own unit, or log-hazards. After
`csfm calibrate` probabilities are calibrated ones; uncalibrated/LABEL is then what the network said, and decision/LABEL
whether the label is called.

Of a task that predicts signals OUTPUT is a new folder: recording-000000.npz and so on with what was predicted and what
was recorded, and recordings.parquet, whose they are and how far the two are apart (`evaluation/translated_files.py`).
"""

from csfm_jax.commands import options
from data_pipelines.errors import BadInput


def arguments(parser) -> None:
    options.of_fine_tuned(parser, "predict", "test")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test")
    parser.add_argument(
        "--output", required=True, action=options.WrittenHere, help="a .parquet or .npz file; of signals, a new folder"
    )
    parser.add_argument(
        "--blind", action="store_true",
        help="of signals: predict from inputs as they were recorded, of recordings that need not hold the targets",
    )  # fmt: skip


def run(args) -> None:
    from csfm_jax.evaluation import calibrated, leakage, translated
    from csfm_jax.evaluation.fine_tuned import FineTuned, write
    from data_pipelines.store import open_stores

    model = FineTuned.load(args.checkpoint)
    suffixes = ("",) if model.task.kind == "signal" else (".parquet", ".npz")
    if args.output.suffix not in suffixes:
        expected = " or ".join(filter(None, suffixes)) or f"a folder: {model.task.name} predicts signals"
        raise BadInput("--output", f"a name that ends in {args.output.suffix!r}", expected, "choose another")
    if args.blind and model.task.kind != "signal":
        raise BadInput("--blind", f"the task {model.task.name}", "one that predicts signals", "leave it out")
    stores = model.on_fold(open_stores(args.store, args.verify))
    if args.split == "test":
        leakage.check(stores, model.provenance, args.unchecked_subjects, args.checkpoint)
    if model.task.kind == "signal":
        found = translated.predictions(_kept(model, stores, args), model.outputs)
    else:
        found = model.predict(stores, args.split)
        write(found, model, stores, args.output)
    print(f"{len(found.values)} recordings, {int(found.windows.sum())} windows")
    for name, value in ({} if args.blind else _figures(model, found)).items():
        print(f"  {name:<40}{value:.4f}")
    if model.task.kind in calibrated.KINDS:
        remedy = "csfm calibrate --checkpoint=... --store=... fits temperatures and thresholds"
        fitted = model.calibrated and f"fitted on {model.calibrated.recordings} validation recordings"
        print(f"probabilities are calibrated, {fitted}" if fitted else f"probabilities are not calibrated; {remedy}")
    print(f"wrote {args.output}")


def _kept(model, stores, args):
    """Recordings with their signals, each of which is written as it passes."""
    from csfm_jax.evaluation import translated
    from csfm_jax.evaluation.translated_files import SignalFiles

    files = SignalFiles(args.output, model, stores)
    for one in translated.translate(model, stores, args.split, blind=args.blind):
        files.add(one)
        yield one
    files.finish()


def _figures(model, found) -> dict[str, float]:
    """The task's figures (calibration changes no ranking of a label), and whether probabilities mean what they say."""
    from csfm_jax.evaluation import calibrated, predictions, task_figures

    task, names, ours = model.task, model.outputs, model.calibrated
    if task.kind == "signal":
        every = task_figures.all_of(task, names, found.values, found.labels, (found.values, found.labels), ())
        return {name: float(value[0]) for name, value in every.under(None).items()}
    told = predictions.figures(task, names, found)
    if task.kind not in calibrated.KINDS:
        return told
    plain = calibrated.probability_figures(task, names, found.values, found.labels)
    if ours is None:
        return told | plain
    values = ours.probabilities(found.values)
    told |= {f"uncalibrated/{name}": plain[name] for name in ("brier", "calibration_error")}
    told |= calibrated.probability_figures(task, names, values, found.labels)
    return told | calibrated.decision_figures(task, names, ours.decisions(values), found.labels)
