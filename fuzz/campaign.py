"""Damages the seeds of every reader and reads them, each share in a process of its own.

Each input is a function of (seed, reader, number). WFDB and EDF get part of theirs from atheris, guided by coverage.
"""

import collections
import json
import multiprocessing
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from fuzz.check import Failed, check
from fuzz.mutate import damaged, misplaced
from fuzz.seeds import Seed, seeds

GUIDED = ("edf", "wfdb")
_GUIDED_PART = 5  # of all inputs, each of GUIDED gets one in so many from atheris
_SHARES = {"edf": 3, "wfdb": 3}  # the others 1
_MISPLACED = 0.02  # of the inputs that are not atheris's have a link or a pipe in place of a file
_STUCK = 20  # seconds without progress: a library hangs where no timer of Python's reaches it


def place(seed: Seed, files: dict[str, bytes], folder: Path) -> None:
    """Puts a recording's files in an otherwise empty folder."""
    for old in folder.iterdir():
        old.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def one(reader: str, group: tuple[Seed, ...], number: int, seed: int, folder: Path) -> str:
    """Damages and reads input `number`; "value" or "refused", or Failed."""
    rng = random.Random(f"{seed}:{reader}:{number}")
    chosen = rng.choice(group)
    place(chosen, damaged(chosen, rng), folder)
    if rng.random() < _MISPLACED:
        misplaced(folder, rng)
    return check(reader, folder, chosen.main)


def warm(reader: str, group: tuple[Seed, ...], folder: Path) -> None:
    """Reads the seeds as they are, twice: imports are no reader's memory, and a seed that is refused tests nothing."""
    for chosen in group:
        place(chosen, chosen.files, folder)
        try:
            check(reader, folder, chosen.main)
        except Failed:
            pass
        if check(reader, folder, chosen.main) != "value":
            raise SystemExit(f"a seed of {reader} is not read: {chosen.main}")


def _work(reader: str, numbers: range, seed: int, folder: str, output: str, at, pipe) -> None:
    """A process's share; `at` tells the number in hand, and the pipe brings back the counts."""
    import tracemalloc

    group, counts = seeds()[reader], collections.Counter()
    tracemalloc.start()
    warm(reader, group, Path(folder))
    for number in numbers:
        at.value = number
        try:
            counts[one(reader, group, number, seed, Path(folder))] += 1
        except Failed as failed:
            counts["failed"] += 1
            keep(reader, number, Path(folder), Path(output), failed)
    pipe.send(counts)


def keep(reader: str, number: int, folder: Path, output: Path, failed: BaseException) -> None:
    """Saves the input in hand, with what came of it."""
    place_of = output / f"{reader}-{number}"
    shutil.rmtree(place_of, ignore_errors=True)
    shutil.copytree(folder, place_of, symlinks=True, ignore=_pipes)
    (place_of / "why.txt").write_text("".join(traceback.format_exception(failed)))
    print(f"{reader}:{number}: {failed}; its files: {place_of}", flush=True)


def _pipes(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder, name).is_fifo()]


def run_share(reader: str, numbers: range, seed: int, output: Path) -> collections.Counter:
    """Runs a share in a process of its own, and a new one after each crash or hang."""
    counts = collections.Counter()
    context = multiprocessing.get_context("spawn")
    while len(numbers):
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            at, (ours, theirs) = context.Value("q", -1), context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(reader, numbers, seed, folder, str(output), at, theirs), daemon=True
            )
            process.start()
            theirs.close()
            last, still = None, 0
            # a second at a time: a machine that slept, or a campaign that was stopped, used up one of them
            while not ours.poll(1) and process.is_alive() and still < _STUCK:
                still = still + 1 if at.value == last and last >= 0 else 0
                last = at.value
            try:
                if ours.poll():
                    counts += ours.recv()
                    process.join(_STUCK)
                    return counts
            except EOFError:
                pass
            process.join(1)  # one that died may not be known to have done so yet
            hung = process.is_alive()
            process.kill()
            process.join()
            what = "hung in a library" if hung else f"died with exit code {process.exitcode}"
            if at.value < 0:
                raise SystemExit(f"the process of {reader} {what} before its first input")
            keep(reader, at.value, Path(folder), output, Failed(what))
            # the process's own counts died with it: those before it were no failures, and are counted as read
            counts += collections.Counter(failed=1, uncounted=at.value - numbers.start)
            numbers = range(at.value + 1, numbers.stop)
    return counts


def run_guided(reader: str, inputs: int, seed: int, output: Path) -> collections.Counter:
    """Runs atheris in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        command = [sys.executable, "-m", "fuzz.guided", reader, str(inputs), str(seed), folder, str(output)]
        done = subprocess.run(command, capture_output=True, text=True)
        counted = Path(folder, "counts.json")
        counts = collections.Counter(json.loads(counted.read_text()) if counted.exists() else {})
        if done.returncode or sum(counts.values()) < inputs:
            counts["failed"] += not counts["failed"]
            print(f"{reader}, guided, ended early:\n{done.stderr[-2000:]}", flush=True)
        return counts


def shares(inputs: int, guided: bool) -> dict[str, tuple[int, int]]:
    """Reader -> how many inputs (from the mutator, from atheris)."""
    names = list(seeds())
    per_guided = inputs // _GUIDED_PART if guided else 0
    left = inputs - per_guided * len(GUIDED)
    weights = [_SHARES.get(name, 1) for name in names]
    counts = [left * weight // sum(weights) for weight in weights]
    counts[0] += left - sum(counts)
    return {name: (count, per_guided if name in GUIDED else 0) for name, count in zip(names, counts)}


def job(what: tuple) -> tuple[str, collections.Counter]:
    """One line of the campaign: (way, reader, numbers or their count, seed, output) -> its name and its counts."""
    way, reader, inputs, seed, output = what
    return f"{reader}, {way}", (run_guided if way == "atheris" else run_share)(reader, inputs, seed, output)
