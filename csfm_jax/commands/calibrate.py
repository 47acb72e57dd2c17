"""Fits temperatures and decision thresholds of a fine-tuned checkpoint on the validation recordings of stores.

Written beside the checkpoint's step (checkpoints/calibration-STEP.json), where `csfm predict` and `csfm export` find
it: their probabilities are then calibrated, and come with decisions. A step that is trained further needs its own.
"""

from csfm_jax.commands import options
from data_pipelines.errors import BadInput

_RULES = ("f1", "youden", "specificity")  # `evaluation.decisions.RULES`, which would import JAX
_SPECIFICITY = 0.95
_FEW = 20  # cases of the rarer class: below, a threshold is that of a few people


def arguments(parser) -> None:
    options.of_fine_tuned(parser, "calibrate", "validation")
    parser.add_argument(
        "--rule", choices=_RULES,
        help="what a label's threshold maximises: F1 (as when none is named); sensitivity + specificity (youden); or "
        "the sensitivity at a specificity of --specificity or more",
    )  # fmt: skip
    parser.add_argument("--specificity", type=float, help=f"for --rule=specificity; 0 to 1 [{_SPECIFICITY:g}]")


def run(args) -> None:
    from csfm_jax.evaluation import calibrated
    from csfm_jax.evaluation.fine_tuned import FineTuned
    from data_pipelines.store import open_stores

    specificity = _SPECIFICITY if args.specificity is None else args.specificity
    if not 0 <= specificity <= 1:
        raise BadInput("--specificity", f"{specificity:g}", "0 to 1", "correct it")
    if args.specificity is not None and args.rule != "specificity":
        found = f"beside --rule={args.rule or _RULES[0]}"
        raise BadInput("--specificity", found, "--rule=specificity", "leave one out")
    model = FineTuned.load(args.checkpoint, calibration=False)  # an earlier one is about to be replaced
    calibrated.check_kind(model.task)
    if args.rule and model.task.kind == "multiclass":
        found = f"of {model.task.name}, whose classes exclude each other: the most probable one is called"
        raise BadInput(f"--rule={args.rule}", found, "a task with thresholds", "leave it out")
    stores = model.on_fold(open_stores(args.store, args.verify))
    _check_unseen(model, stores, args)
    found = model.predict(stores, "validation")
    step = model.provenance["path"]
    of = calibrated.Step.of(step)
    made = calibrated.fit(model.task, model.outputs, found, args.rule or _RULES[0], specificity, of)
    path = calibrated.write(made, step)
    print(f"{made.recordings} validation recordings; probabilities before and after:")
    for name, (before, after) in made.figures.items():
        print(f"  {name:<40}{before:.4f}  {after:.4f}")
    for name, value in zip(made.labels, made.temperature * (len(made.labels) if made.exclusive else 1)):
        print(f"  {'temperature/' + name:<40}{value:.4g}")
    for name, threshold in zip(made.labels, made.thresholds):
        told = f"{threshold:.4f}" if threshold == threshold else "none: one class only among validation recordings"
        print(f"  {'threshold/' + name:<40}{told}")
    for name, positives in zip(made.labels, made.positives):
        if min(positives, made.recordings - positives) < _FEW:
            print(f"  {name}: {positives} of {made.recordings} are positive: too few to trust what was fitted on them")
    print(f"wrote {path}")


def _check_unseen(model, stores, args) -> None:
    """What a model says of those it was trained on is too certain to calibrate by."""
    from csfm_jax.evaluation import leakage

    seen, everyone = leakage.seen_validation(stores, model.provenance)
    if seen:
        found = f"{seen} of the {everyone} validation subjects among those that the checkpoint was trained on"
        raise BadInput(args.checkpoint, found, "none", "use stores whose splits were those of the training")
    leakage.check_comparable(stores, model.provenance, args.unchecked_subjects, args.checkpoint)
