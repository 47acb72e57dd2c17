"""Linear probes on frozen embeddings against the same network at random initialisation, with a bootstrap over patients.

Probes are fitted on train subjects, their regularisation is chosen on validation subjects, and they are read on test
subjects: the splits of the stores. Recordings of people whom the checkpoint was trained on are refused as test data.
"""

import json
import math
import os
from pathlib import Path

from data_pipelines.errors import BadInput


def arguments(parser) -> None:
    parser.add_argument(
        "--checkpoint", required=True, help="work directory, its checkpoints folder, or one step; here, gs://, s3://"
    )
    parser.add_argument("--store", required=True, help="a store, a folder of stores, or several separated by commas")
    parser.add_argument(
        "--labels", default="superclass/*", help='patterns separated by commas, e.g. "superclass/*,age"'
    )
    parser.add_argument(
        "--unchecked-subjects", action="store_true",
        help="evaluate even where nothing tells whether test subjects were trained on (see `csfm data overlap`)",
    )  # fmt: skip
    parser.add_argument("--output", help="results as JSON")
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="replicates")
    parser.add_argument("--seed", type=int, default=0, help="of the random initialisation and of the bootstrap")
    parser.add_argument("--verify", choices=("full", "size"), default="full", help="how stores are checked before use")


def run(args) -> None:
    from csfm_jax import encoding
    from csfm_jax.evaluation import features, protocol
    from csfm_jax.training import record
    from data_pipelines.store import open_stores

    if args.bootstrap < 1:
        raise BadInput("--bootstrap", str(args.bootstrap), "1 or more", "1000 is usual")
    trained = encoding.load(args.checkpoint)
    stores = open_stores(args.store, args.verify)
    everyone = protocol.Recordings.whole(stores)
    groups = protocol.groups(everyone, args.labels)
    trained_on = record.trained_on(trained.provenance)
    protocol.check_unseen(everyone, trained_on.subjects, args.checkpoint)
    others = trained_on.incomparable(stores) if "path" in trained.provenance else []
    checked = protocol.check_comparable(others, trained_on.complete, args.unchecked_subjects, args.checkpoint)
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


def write_json(values: dict, path: str) -> None:
    """Writes results whole or not at all; figures that do not exist are null."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(json.dumps(_plain(values), indent=1) + "\n", encoding="utf-8")
    os.replace(partial, target)


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
