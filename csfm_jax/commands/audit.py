"""How far embeddings move under what should not move them: gain, wander, mains, sampling, shifts, lost leads.

csfm audit --models=linear:RUN,random:RUN --store=STORES --workdir=DIR [--labels='superclass/*'] [--split=test]

Each recording's first seconds are changed, preprocessed and embedded; displacements are compared with the distances
between windows, recordings, patients and diagnoses. Writes DIR/results.parquet (columns of a study) and
DIR/report.html. Without --source the stores' own samples are changed, which were filtered once already; with it, the
recordings themselves, as downloaded.
"""

from pathlib import Path

from csfm_jax.commands import options
from data_pipelines.errors import BadInput

_FROZEN = ("linear", "random", "given")


def arguments(parser) -> None:
    parser.add_argument("--models", required=True, help="linear:RUN, random:RUN or a folder, separated by commas")
    options.of_stores(parser, "audit", "test")
    parser.add_argument(
        "--workdir", required=True, action=options.WrittenHere, help="where the results go; made if absent"
    )
    parser.add_argument("--source", help="the recordings that the stores were prepared from, as of csfm prepare")
    parser.add_argument("--key-file", type=Path, help="with --source: the key that subjects were hashed with, if any")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--labels", help="patterns of diagnoses, separated by commas: superclass/*")
    parser.add_argument("--recordings", type=int, default=500, metavar="N", help="at most, drawn at random [500]")
    parser.add_argument(
        "--seconds", type=float,
        help="length of a window [the models' own, or half of the median recording where that is shorter]",
    )  # fmt: skip
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="replicates")
    parser.add_argument("--seed", type=int, default=0, help="of random networks, phases, draws and the bootstrap")


def run(args) -> int:
    for name in ("bootstrap", "recordings"):
        if (value := getattr(args, name)) < 1:
            raise BadInput(f"--{name}", str(value), "1 or more", "correct it")
    if args.key_file and not args.source:
        raise BadInput("--key-file", "a key without --source", "both", "leave it out")
    from csfm_jax.evaluation import invariance, moved, protocol, raw_recordings, study_models, study_results
    from csfm_jax.reporting import audit_page
    from data_pipelines.store import open_stores

    stores = open_stores(args.store, args.verify)
    encoders = {m.word: _encoder(m, stores, args) for m in study_models.parse(args.models, stores, [])}
    chosen = moved.choose(stores, args.split, encoders, args.recordings, args.seconds, args.seed)
    recordings = protocol.Recordings.of(stores, chosen.store, chosen.recording)
    groups = _groups(recordings, args.labels)
    read = raw_recordings.reader(args.source, args.key_file, stores, chosen) if args.source else moved.stored_channels
    embedded = moved.embed(encoders, stores, chosen, read, args.seed)
    lines = invariance.measure(embedded, recordings.subject, groups, args.bootstrap, args.seed)
    told = audit_page.About(args.split, [s.name for s in stores], chosen, bool(args.source))
    args.workdir.mkdir(parents=True, exist_ok=True)
    study_results.write_rows(audit_page.rows(lines), args.workdir / "results.parquet")
    audit_page.write(lines, told, args.workdir / "report.html")
    print(audit_page.summary(lines))
    print(f"wrote {args.workdir / 'results.parquet'} and {args.workdir / 'report.html'}")
    return 0


def _encoder(model, stores, args):
    from csfm_jax import encoding
    from csfm_jax.evaluation import leakage

    if model.kind not in _FROZEN:
        found, expected = f"a model of the kind {model.kind}", "an encoder as it is: linear:RUN, random:RUN or a folder"
        raise BadInput(f"--models={model.word}", found, expected, "fine-tune it first, and give its folder")
    if model.kind == "random":
        return encoding.random_encoder(model.config, args.seed, stores[0].spec)
    if args.split == "test":
        leakage.check(stores, model.provenance, args.unchecked_subjects, model.word)
    return encoding.load(model.source)


def _groups(recordings, patterns: str | None) -> dict:
    import numpy as np

    from csfm_jax.evaluation import protocol

    found = protocol.groups(recordings, patterns) if patterns else []
    if values := [group.name for group in found if group.continuous]:
        raise BadInput(f"--labels {values[0]}", "a label with values", "classes of 0 and 1", "leave it out")
    return {g.name: np.stack([recordings.labels[n] for n in g.labels], axis=1) for g in found}
