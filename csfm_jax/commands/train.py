"""Pretrains a model, or goes on where the same command stopped.

csfm train --config=csfm_base --workdir=DIR --config.data.stores=STORES --config.optimizer.learning_rate=3e-4

SIGTERM or Ctrl-C finishes the step, saves and exits with 0 (or --stopped-code); the same command goes on from there.
Before there is anything to save, it exits so at once.
DIR holds metrics.jsonl, validation.jsonl, tensorboard/, checkpoints/ and the record of the run.
"""

import logging
import shlex
import sys

from csfm_jax import config as configs
from data_pipelines.storage import place


def arguments(parser):
    parser.add_argument("--config", required=True, help="a config file or the name of a shipped one")
    parser.add_argument("--workdir", required=True, help="the run's folder, here or at gs:// or s3://; made if absent")
    parser.add_argument(
        "--init",
        metavar="WEIGHTS",
        help="begin with the encoder of this checkpoint (work directory or step) or file of published CSFM weights",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="one process of several (TPU pod, SLURM, Open MPI): join the others before anything else",
    )
    parser.add_argument(
        "--stopped-code",
        type=int,
        default=0,
        metavar="CODE",
        help="exit code of a run that a signal ended before its last step: how a scheduler knows that it must go on",
    )


def run(args) -> int:
    config = configs.load(args.config, args.overrides)  # before JAX starts: a typo is answered at once
    workdir = place(args.workdir)
    from csfm_jax.training import companions

    if args.distributed:
        companions.join()
    # Orbax logs the traceback of every background thread that fails; the loop raises the error itself, once.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    from csfm_jax.training.loop import train

    last = train(config, workdir, init=args.init, command=shlex.join(["csfm", *sys.argv[1:]]))
    return args.stopped_code if last < config.training.steps else 0
