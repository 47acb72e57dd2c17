"""Recordings -> a verified, patient-split store.

Reads a folder of recordings (or makes a simulated cohort), filters and resamples every channel, and writes a store.
Killed or out of disk, the same command goes on; complete, it only verifies. A folder that holds several known datasets
gives one store each, OUTPUT/<name>.

The shards of a store may be written by processes of this machine (--workers=N), by the jobs of an array on a shared
disk (--shard=i/n in each; in a SLURM array --runner=shard is enough; the last job to end finishes the store), or by
Apache Beam (--runner=beam --beam=--runner=FlinkRunner ...). The bytes are the same.

With --output at s3:// or gs://, the store is made in a folder here (--staging) and sent when it is whole, its manifest
last; the same command goes on where it stopped there too.
"""

import sys
from pathlib import Path

from csfm_jax.commands.options import WrittenHere
from data_pipelines.errors import BadInput


def arguments(parser):
    add = parser.add_argument
    add("--source", required=True, help="a folder of recordings, tfds:FOLDER, or simulated:subjects=200,seed=0")
    add("--output", required=True, help="folder (or s3://, gs:// address) of the store; of the stores, if several")
    add("--staging", action=WrittenHere, metavar="FOLDER", help="where stores for s3://, gs:// are made [in TMPDIR]")
    add("--keep-reports", action="store_true", help="store the text reports, and a vocabulary trained on them")
    add("--shards", type=int, help="files of a store (default: about 64 recordings each)")
    add("--workers", type=int, default=1, help="processes; the result is the same (default: 1)")
    add("--runner", choices=("local", "shard", "beam"), help="who writes the shards (default: local)")
    add("--shard", metavar="i/n", help="write the share of job i of n, from 0 (implies --runner=shard)")
    add("--beam", action="append", default=[], metavar="OPTION", help="an option for Beam, e.g. --beam=--runner=Flink")
    add("--channels", type=Path, metavar="CSV", help="a site's own channel names: name,standard")
    add("--labels", type=Path, metavar="CSV", help="a site's own labels: recording[,subject][,split],label,label,...")
    add("--derive-leads", action="store_true", help="add III, aVR, aVL, aVF where only I and II are stored")
    add("--spec", default="csfm-jax", help="preprocessing: csfm-jax (default) or csfm-published")
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument("--key-file", type=Path, help="the site's secret for hashing subjects (not for public datasets)")
    keys.add_argument("--new-key", action=WrittenHere, metavar="FILE", help="make such a secret, and use it")


def run(args):
    from data_pipelines.channel_names import read_channel_table
    from data_pipelines.datasets import left_out, open_sources
    from data_pipelines.prepare import prepare
    from data_pipelines.runners import parse_share
    from data_pipelines.storage import join, place
    from data_pipelines.subjects import new_key, read_key

    for option in ("source", "output"):
        if not getattr(args, option):  # a shell variable that is not set; as a path, it is the working directory
            raise BadInput(f"--{option}", "nothing", "a folder", "write it out")
    runner = args.runner or ("shard" if args.shard else "local")
    if args.shard and runner != "shard":
        raise BadInput("--shard", f"--runner={runner}", "--runner=shard", "leave one of them out")
    if args.beam and runner != "beam":
        raise BadInput("--beam", f"--runner={runner}", "--runner=beam", "add --runner=beam")
    options = {
        "spec": args.spec, "keep_reports": args.keep_reports, "shards": args.shards, "workers": args.workers,
        "derive": args.derive_leads, "names": read_channel_table(args.channels) if args.channels else None,
        "runner": runner, "share": parse_share(args.shard) if runner == "shard" else (0, 1), "beam_options": args.beam,
    }  # fmt: skip
    sources = open_sources(args.source, args.labels)
    key = read_key(args.key_file) if args.key_file else new_key(args.new_key) if args.new_key else None
    if others := left_out(args.source, sources):
        # a folder's name may be a person's
        found = f"{len(others)} folder{'s' if len(others) > 1 else ''} with recordings"
        print(f"csfm prepare: left out, as no known dataset: {found}; give each by itself", file=sys.stderr)
    refused = 0
    for source in sources:
        several = len(sources) > 1
        output = join(place(args.output), source.name) if several else place(args.output)
        staging = args.staging / source.name if several and args.staging else args.staging
        try:
            with _bar(source.name) as progress:
                summary = prepare(source, output, staging=staging, key=key, progress=progress, **options)
            print(summary)
            if source.note:
                print(f"{source.name}: {source.note}", file=sys.stderr)
        except BadInput as error:
            if len(sources) == 1:
                raise
            refused += 1  # the other datasets are not lost to one bad one
            print(f"csfm prepare: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print(f"csfm prepare: stopped; give the same command again, it goes on in {output}", file=sys.stderr)
            return 130
    return 2 if refused else 0


class _bar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        from tqdm import tqdm

        self.bar = tqdm(desc=self.name, unit="rec", disable=not sys.stderr.isatty(), leave=False)
        return self.tell

    def tell(self, done, total):
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def __exit__(self, *_):
        self.bar.close()
