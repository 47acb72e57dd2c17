"""Renders the job files of a training run for the place where it shall run; docs/launching.md shows each.

csfm launch render --target=gke --topology=v5e:16x16 --slices=2 --config=csfm_base --workdir=gs://BUCKET/base ...

Options of the form --config.x.y=value pass into the training command.
"""

from pathlib import Path

from csfm_jax import launching
from csfm_jax.commands.options import WrittenHere
from data_pipelines.errors import BadInput


def arguments(parser) -> None:
    parser.add_argument("action", choices=("render",))
    parser.add_argument("--target", required=True, choices=tuple(launching.TARGETS))
    parser.add_argument("--config", required=True, help="a config file or the name of a shipped one")
    parser.add_argument("--workdir", required=True, help="the run's folder; gs:// or s3:// in a cloud")
    parser.add_argument("--stores", required=True, help="prepared stores, as in --config.data.stores")
    parser.add_argument("--output", action=WrittenHere, metavar="FOLDER", help="where the files go; made if absent")
    parser.add_argument("--dry-run", action="store_true", help="print the files instead")
    parser.add_argument("--name", help="of the job; default: of the config")
    parser.add_argument("--topology", metavar="GENERATION:SHAPE", help="a TPU slice, e.g. v5e:16x16")
    parser.add_argument("--slices", type=int, help="TPU slices; default 1")
    parser.add_argument("--nodes", type=int, help="machines with GPUs")
    parser.add_argument("--gpus", type=int, help="GPUs a node (a machine in all, for local); 0 for CPUs")
    parser.add_argument("--gpu-type", help="SkyPilot's name of the GPU, e.g. H100")
    parser.add_argument("--processes", type=int, help="processes on this machine (local)")
    parser.add_argument("--image", help="the container image to build, push and run")
    parser.add_argument("--project", help="Google Cloud project")
    parser.add_argument("--zone", help="Google Cloud zone")
    parser.add_argument("--cluster", help="GKE cluster that xpk made")
    parser.add_argument("--namespace", help="Kubernetes namespace; default: default")
    parser.add_argument("--queue", help="Kueue's local queue (gke), partition (slurm)")
    parser.add_argument("--account", help="SLURM account")
    parser.add_argument("--time", help="SLURM time limit, e.g. 24:00:00; the job is queued again until it has finished")
    parser.add_argument("--cpus", type=int, help="CPUs a node (slurm); default: whole nodes")
    parser.add_argument("--spot", action="store_const", const=True, help="machines that may be taken away")


def run(args) -> None:
    if args.dry_run == bool(args.output):
        found = "both --output and --dry-run" if args.output else "neither --output nor --dry-run"
        raise BadInput("csfm launch render", found, "one of them", "say where the files shall go")
    given = {key: value for key, value in vars(args).items() if key not in ("action", "output", "dry_run")}
    job = launching.Job(**given | {"overrides": tuple(args.overrides)})
    files = launching.render(job)
    if args.dry_run:
        print("\n".join(f"==> {name} <==\n{text}" for name, text in files.items()), end="")
        return
    write(args.output, files)
    print(f"{args.output}: {launching.describe(job)}; {', '.join(files)}")


def write(folder: Path, files: dict[str, str]) -> None:
    """Writes rendered files to a folder that holds nothing else; shell scripts can be executed."""
    if others := sorted({path.name for path in folder.iterdir()} - set(files) if folder.is_dir() else ()):
        raise BadInput(str(folder), f"other files ({others[0]})", "a new or empty folder", "choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755 if text.startswith("#!") else 0o644)
