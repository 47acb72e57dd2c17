"""Predictions of a fine-tuned checkpoint for the recordings of a split, crops averaged, to Parquet or NumPy.

OUTPUT.parquet has a row a recording: store, recording (its study's hash), subject (hashed), windows, prediction/LABEL
and label/LABEL; OUTPUT.npz has the same as arrays. Probabilities, values in the label's own unit, or log-hazards. After
`csfm calibrate` probabilities are calibrated ones; uncalibrated/LABEL is then what the network said, and decision/LABEL
whether the label is called.
"""

from pathlib import Path

from csfm_jax.commands import options
from data_pipelines.errors import BadInput


def arguments(parser) -> None:
    options.of_fine_tuned(parser, "predict", "test")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test")
    parser.add_argument("--output", required=True, type=Path, help="a .parquet or .npz file")


def run(args) -> None:
    from csfm_jax.evaluation import calibrated, leakage
    from csfm_jax.evaluation.fine_tuned import FineTuned, write
    from data_pipelines.store import open_stores

    if args.output.suffix not in (".parquet", ".npz"):
        raise BadInput("--output", f"a name that ends in {args.output.suffix!r}", ".parquet or .npz", "choose another")
    model = FineTuned.load(args.checkpoint)
    stores = open_stores(args.store, args.verify)
    if args.split == "test":
        leakage.check(stores, model.provenance, args.unchecked_subjects, args.checkpoint)
    found = model.predict(stores, args.split)
    write(found, model, stores, args.output)
    print(f"{len(found.values)} recordings, {int(found.windows.sum())} windows")
    for name, value in _figures(model, found).items():
        print(f"  {name:<40}{value:.4f}")
    if model.task.kind in calibrated.KINDS:
        remedy = "csfm calibrate --checkpoint=... --store=... fits temperatures and thresholds"
        fitted = model.calibrated and f"fitted on {model.calibrated.recordings} validation recordings"
        print(f"probabilities are calibrated, {fitted}" if fitted else f"probabilities are not calibrated; {remedy}")
    print(f"wrote {args.output}")


def _figures(model, found) -> dict[str, float]:
    """The task's figures (calibration changes no ranking of a label), and whether probabilities mean what they say."""
    from csfm_jax.evaluation import calibrated, predictions

    task, names, ours = model.task, model.outputs, model.calibrated
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
