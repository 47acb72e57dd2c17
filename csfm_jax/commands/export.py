"""Writes the encoder of a checkpoint as a self-contained PyTorch folder: weights, code, preprocessing, self-check."""


def arguments(parser) -> None:
    parser.add_argument("--checkpoint", required=True, help="work directory, its checkpoints folder, or one step")
    parser.add_argument("--output", required=True, help="folder to write; an earlier export there is replaced")


def run(args) -> None:
    from csfm_jax.export.write import export_checkpoint

    folder = export_checkpoint(args.checkpoint, args.output)
    print(f"exported to {folder}; check it with: python {folder / 'csfm_torch.py'} --selfcheck")
