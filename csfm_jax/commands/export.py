"""Writes a checkpoint as a self-contained PyTorch folder: weights, code, preprocessing, self-check.

Of a run of `csfm train` the encoder; of `csfm finetune` also the head, labels, calibration and thresholds.
"""


def arguments(parser) -> None:
    parser.add_argument(
        "--checkpoint", required=True, help="work directory, its checkpoints folder, or one step; here, gs://, s3://"
    )
    parser.add_argument(
        "--output",
        required=True,
        help="folder to write, here or at gs:// or s3://; an earlier export there is replaced",
    )


def run(args) -> None:
    from csfm_jax.export.write import export_checkpoint
    from data_pipelines.storage import is_remote, join

    folder = export_checkpoint(args.checkpoint, args.output)
    which, script = ("a copy of it", "csfm_torch.py") if is_remote(folder) else ("it", join(folder, "csfm_torch.py"))
    print(f"exported to {folder}; check {which} with: python {script} --selfcheck")
