"""Damages the seeds of every reader and reads them: `python -m fuzz --inputs=100000`.

Prints what came of them. Exit code 1 if any input gave anything else than a recording or a BadInput, or took too much
time or memory: its files are then below `--output`, with why. `--only=edf:123` reads one input again.
"""

import argparse
import collections
import importlib.util
import multiprocessing.pool
import os
import sys
import tempfile
from pathlib import Path

from fuzz.campaign import job, one, shares
from fuzz.check import FLOOR, MOST_SECONDS, MOST_TIMES
from fuzz.seeds import seeds


def main() -> None:
    parser = argparse.ArgumentParser(prog="fuzz")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="READER:NUMBER of one input, to be read again")
    parser.add_argument("--output", type=Path, default=Path("runs/fuzz"))
    arguments = parser.parse_args()
    if arguments.only:
        reader, number = arguments.only.split(":")
        with tempfile.TemporaryDirectory() as folder:
            print(one(reader, seeds()[reader], int(number), arguments.seed, Path(folder)))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    guided = importlib.util.find_spec("atheris") is not None
    jobs = []
    for reader, (mutated, by_atheris) in shares(arguments.inputs, guided).items():
        jobs += [("atheris", reader, by_atheris, arguments.seed, arguments.output)] * bool(by_atheris)
        jobs.append(("mutated", reader, range(mutated), arguments.seed, arguments.output))
    total = collections.Counter()
    print(f"{'':<20}{'inputs':>9}{'values':>9}{'BadInput':>9}{'failures':>9}", flush=True)
    # threads: each only waits for a process of its own
    with multiprocessing.pool.ThreadPool(os.cpu_count() or 1) as pool:
        for name, counts in pool.imap_unordered(job, jobs):
            print(_line(name, counts), flush=True)
            total += counts
    print(_line("all" if guided else "all (no atheris)", total))
    print(
        f"bounds: {MOST_SECONDS:g} s of processor time; the larger of {MOST_TIMES} x the files' size and {FLOOR} bytes"
    )
    sys.exit(1 if total["failed"] else 0)


def _line(name: str, counts: collections.Counter) -> str:
    numbers = (sum(counts.values()), counts["value"], counts["refused"], counts["failed"])
    return f"{name:<20}" + "".join(f"{number:>9,}" for number in numbers)


if __name__ == "__main__":
    main()
