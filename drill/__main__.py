"""Breaks small runs in every way that a cluster does, and compares what comes of them with a run that nothing befell.

    python -m drill [--processes=2,4] [--faults=WORDS]

Several processes on this machine (JAX with gloo) train a tiny model on a simulated cohort. After each fault the same
command is given again: it must go on from the newest checkpoint that is whole, and then every step must stand in
metrics.jsonl once, with the windows that the undisturbed run had there (the digest of those that entered the step) and
its loss: bit for bit on as many processes, within 1e-5 of it on another number. Of the undisturbed run, every epoch has
each of its planned windows exactly once.
"""

import argparse
import atexit
import contextlib
import importlib
import json
import math
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess as Process
from pathlib import Path

import numpy as np

from csfm_jax import cli
from csfm_jax import config as configs
from csfm_jax.training.manifest import finished_steps
from data_pipelines.batch import windows_digest
from data_pipelines.loader import Rows
from data_pipelines.store import open_stores

STEPS, SAVE_EVERY, FAULT_AT = 24, 6, 9
SOON = 60  # seconds that processes have to end after one of them has; a machine may be busy
CONFIG = f"""
from csfm_jax.config import default

def get_config():
    c = default()
    c.tokens.modalities, c.tokens.text_length = ("ecg", "ppg"), 0
    c.tokens.patch.ecg = c.tokens.patch.ppg = 125
    c.data.rows, c.data.row_tokens, c.data.row_visible, c.data.row_windows = 4, 160, 60, 6
    c.data.window.seconds = 5.0
    for part in (c.encoder, c.decoder):
        part.width, part.depth, part.heads, part.head_dim, part.mlp = 8, 1, 1, 8, 16
    c.optimizer.warmup_steps = 5
    t = c.training
    t.steps, t.log_every, t.save_every = {STEPS}, 1, {SAVE_EVERY}
    t.eval_every, t.eval_batches = {FAULT_AT + 1}, 2
    return c
"""


class Cluster:
    """Runs of some processes; `compiled` is shared by all runs, so that each program is compiled once.

    Attributes:
        epochs: of each epoch that a run begins, its steps and the digest of its planned windows.
    """

    def __init__(self, folder: Path):
        self.folder, self._number, self._stores = folder, 0, folder / "stores"
        (folder / "tiny.py").write_text(CONFIG)
        words = ["prepare", "--source=simulated:subjects=24,seed=0", f"--output={self._stores}"]
        subprocess.run([sys.executable, "-m", "csfm_jax.cli", *words], check=True, stdout=subprocess.DEVNULL)
        # Half of such a run is importing: done here once, before JAX starts anything, and forked.
        os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        for name in ("csfm_jax.commands.train", "csfm_jax.training.loop", "grain", "tensorboardX"):
            importlib.import_module(name)
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        self._fork = multiprocessing.get_context("fork")
        planning = self._fork.Process(target=_write_epochs, args=(folder, self._stores))
        planning.start()  # which leaves its threads, of Arrow's, to a process that nobody forks
        planning.join()
        self.epochs = json.loads((folder / "epochs.json").read_text())

    def start(self, workdir: Path, processes: int) -> list[Process]:
        words = ["train", f"--config={self.folder / 'tiny.py'}", f"--workdir={workdir}",
                 f"--config.data.stores={self._stores}"]  # fmt: skip
        several = {}
        if processes > 1:
            words.append("--distributed")
            # JAX learns from SLURM's variables who takes part; its port follows from the job's number
            several |= {"SLURM_JOB_ID": str(_free_job()), "SLURM_STEP_NODELIST": "localhost"}
            several |= {"SLURM_NTASKS": str(processes)}
        self._number += 1
        started = []
        for rank in range(processes):
            own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
            log = self.folder / f"run-{self._number}-{rank}.log"
            started.append(self._fork.Process(target=_csfm, args=(words, several | own, log)))
            started[-1].start()
        return started

    def said(self) -> str:
        """What the processes of the last run printed."""
        return "".join(path.read_text() for path in sorted(self.folder.glob(f"run-{self._number}-*.log")))

    def finish(self, running: list[Process], limit: float = 1800) -> list[int | str]:
        """Exit codes. When one dies of a fault the others must end too; those that do not are ended."""
        until = time.monotonic() + limit
        while any(p.is_alive() for p in running) and time.monotonic() < until:
            if any(p.exitcode for p in running):
                until = min(until, time.monotonic() + SOON)
            time.sleep(0.05)
        stuck = [p for p in running if p.is_alive()]
        for p in stuck:
            p.kill()
        for p in running:
            p.join()
        return ["did not end" if p in stuck else p.exitcode for p in running]

    def run(self, workdir: Path, processes: int) -> list[int | str]:
        return self.finish(self.start(workdir, processes))


def _csfm(words: list[str], environment: dict[str, str], log: Path) -> None:
    """In a process of its own: the command, as its console script runs it."""
    os.environ.update(environment)
    with open(log, "w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115 (until it ends)
    sys.argv = ["csfm", *words]
    code = cli.main(words)
    atexit._run_exitfuncs()  # of a forked process they would not run; JAX takes leave of the others there
    sys.exit(code)


def _write_epochs(folder: Path, stores: Path) -> None:
    config = configs.load(str(folder / "tiny.py"), [f"--config.data.stores={stores}"])
    rows = Rows(open_stores(config.data.stores), config.tokens, config.data, "train", folder / "plans")
    epochs = []
    while sum(steps for steps, _ in epochs) < STEPS:
        plan = rows.plans.get(len(epochs))
        every = np.arange(len(plan.recording))
        epochs.append((math.ceil(plan.rows / config.data.rows), int(windows_digest(every)) % 2**32))
    (folder / "epochs.json").write_text(json.dumps(epochs))


def _free_job() -> int:
    for job in range(os.getpid() % 4096, 4096 * 2):
        with socket.socket() as port, contextlib.suppress(OSError):
            port.bind(("127.0.0.1", job % 4096 + 61440))
            return job
    raise OSError("no free port")


def lines(workdir: Path, name: str = "metrics") -> list[dict]:
    path = workdir / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def wait_for(running: list[Process], happened) -> None:
    while not happened() and all(p.is_alive() for p in running):
        time.sleep(0.002)


def reached(workdir: Path, step: int):
    def happened() -> bool:
        try:
            return lines(workdir)[-1]["step"] >= step
        except (IndexError, ValueError):  # nothing yet, or a line being written
            return False

    return happened


def saving(workdir: Path, step: int):
    """That a checkpoint is being written: Orbax renames it when it is whole."""
    return lambda: any((workdir / "checkpoints").glob(f"{step}.orbax*"))


def unplanned(workdir: Path, epochs: list[tuple[int, int]]) -> list[str]:
    """The whole epochs of a run in which a planned window was missing, or came twice."""
    digests, wrong, at = [int(line["windows_digest"], 16) for line in lines(workdir)], [], 0
    for epoch, (steps, planned) in enumerate(epochs):
        of_epoch, at = digests[at : at + steps], at + steps
        if at <= STEPS and sum(of_epoch) % 2**32 != planned:
            wrong.append(f"epoch {epoch}: other windows than planned, or not each once")
    return wrong


def newest(workdir: Path) -> int:
    """The newest step of which there is a whole checkpoint, 0 where there is none."""
    return max(finished_steps(workdir / "checkpoints"), default=0)


def differences(workdir: Path, undisturbed: Path, exact: bool) -> list[str]:
    """What of the run is not as in the undisturbed one."""
    found, expected, wrong = lines(workdir), lines(undisturbed), []
    if [line["step"] for line in found] != list(range(1, STEPS + 1)):
        return [f"steps {[line['step'] for line in found]}"]
    mine, others = (lines(folder, "validation") for folder in (workdir, undisturbed))
    if [line["step"] for line in mine] != [line["step"] for line in others] or (exact and mine != others):
        wrong.append(f"validation after steps {[line['step'] for line in mine]}, or its figures")
    for mine, other in zip(found, expected):
        for name in ("epoch", "row", "windows_digest", "fill/tokens", "fill/visible"):
            if mine[name] != other[name]:
                wrong.append(f"step {mine['step']}: {name} {mine[name]} instead of {other[name]}")
        limit = 0.0 if exact else 1e-5 * abs(other["loss"])
        if abs(mine["loss"] - other["loss"]) > limit:
            wrong.append(f"step {mine['step']}: loss {mine['loss']} instead of {other['loss']}")
    return wrong


def scenarios(cluster: Cluster, processes: int, undisturbed: Path) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """(what is done, a function that does it and says what went wrong) of each fault."""

    def folder(name: str) -> Path:
        return cluster.folder / f"{processes}-{name}"

    def again(workdir: Path, on: int = processes, damaged: int = 0) -> list[str]:
        """The same command once more; `damaged`: the step of a checkpoint that is none."""
        whole = set(finished_steps(workdir / "checkpoints")) - {damaged}
        begins, codes = max(whole, default=0), cluster.run(workdir, on)
        wrong = [f"exit codes {codes}, given again"] * any(codes)
        wrong += [f"it did not go on after step {begins}"] * (f"steps: {begins} done of {STEPS}" not in cluster.said())
        return wrong + differences(workdir, undisturbed, on == processes)

    def stopped(workdir: Path, rank: int) -> list[str]:
        running = cluster.start(workdir, processes)
        wait_for(running, reached(workdir, FAULT_AT))
        running[rank].terminate()
        codes = cluster.finish(running)
        last = (lines(workdir) or [{"step": 0}])[-1]["step"]
        wrong = [f"exit codes {codes}"] * any(codes) + ["it was not stopped"] * (last >= STEPS)
        return wrong + [f"no checkpoint of step {last}"] * (last != newest(workdir))

    def copied(workdir: Path) -> list[str]:
        once = folder("stopped")  # several faults begin with the same stopped run
        wrong = [] if once.exists() else stopped(once, 0)
        shutil.copytree(once, workdir)
        return wrong

    def killed(workdir: Path, rank: int, happened, whole: list[int] | None = None) -> list[str]:
        """As soon as something has `happened`; `whole`: the checkpoints that must stand then."""
        running = cluster.start(workdir, processes)
        wait_for(running, happened)
        running[rank].kill()
        codes = cluster.finish(running)
        # "leader": JAX's runtime names process 0 so
        said = cluster.said().replace("leader task was preempted/died", "process 0: found gone")
        wrong = [f"exit codes {codes}"] * (0 in codes or "did not end" in codes)
        wrong += ["the others do not name it"] * (f"process {rank}: found gone" not in said)
        found = finished_steps(workdir / "checkpoints")
        wrong += [f"checkpoints of steps {found} instead of {whole}"] * (whole not in (None, found))
        return wrong + again(workdir)

    to = folder("term-0")
    yield "SIGTERM to process 0", lambda to=to: copied(to) + again(to)
    for rank in range(1, processes):
        to = folder(f"term-{rank}")
        yield f"SIGTERM to process {rank}", lambda to=to, rank=rank: stopped(to, rank) + again(to)
    for rank in {0, processes - 1}:
        to = folder(f"kill-{rank}")
        yield (
            f"kill -9 of process {rank} during a step",
            lambda to=to, rank=rank: killed(to, rank, reached(to, FAULT_AT)),
        )
    for rank in {0, processes - 1}:
        to = folder(f"kill-save-{rank}")
        yield (
            f"kill -9 of process {rank} during a save",
            lambda to=to, rank=rank: killed(to, rank, saving(to, 2 * SAVE_EVERY), whole=[SAVE_EVERY]),
        )
    for other in {1, 2, 4} - {processes}:
        to = folder(f"on-{other}")
        yield f"restarted on {other} processes", lambda to=to, other=other: copied(to) + again(to, on=other)
    to = folder("flip")
    yield "a flipped bit in the newest checkpoint", lambda to=to: copied(to) + _flipped(cluster, to, again)
    yield "disk full", lambda: _disk_full(cluster, folder("full"), processes, again)


def _flipped(cluster, workdir, again) -> list[str]:
    step = newest(workdir)
    written = (workdir / "checkpoints" / str(step)).rglob("*")
    victim = max((p for p in written if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    wrong = again(workdir, damaged=step)
    return wrong + ["it does not say which file"] * (str(victim) not in cluster.said())


def _disk_full(cluster, workdir, processes, again) -> list[str]:
    workdir.mkdir()
    small, large = "size=700k", "size=100m"  # the first checkpoint, and no second
    if subprocess.run(["mount", "-t", "tmpfs", "-o", small, "tmpfs", str(workdir)], capture_output=True).returncode:
        return ["NOT TRIED: a small file system cannot be mounted here (needs root)"]
    try:
        codes, said = cluster.run(workdir, processes), cluster.said()
        wrong = [f"exit codes {codes}"] * (2 not in codes or not set(codes) <= {1, 2})
        told = re.search(f"^csfm train: {workdir}.*: found no space left on device", said, re.MULTILINE)
        wrong += ["it is not named"] * (not told) + re.findall(r"Traceback[\s\S]{,2000}", said)[:1]
        wrong += ["not all say who is gone"] * (said.count(" has ended, and this one with it") != codes.count(1))
        wrong += ["no checkpoint stands"] * (newest(workdir) == 0)
        subprocess.run(["mount", "-o", f"remount,{large}", str(workdir)], check=True)
        return wrong + again(workdir)
    finally:
        subprocess.run(["umount", "-l", str(workdir)], check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="2,4", help="numbers of processes to drill with")
    parser.add_argument("--faults", default="", help="of their names; only those are tried: 'disk full'")
    args = parser.parse_args()
    failed = 0
    # not a TemporaryDirectory, which every forked process would remove at its end
    folder = tempfile.mkdtemp(prefix="csfm-drill-")
    try:
        cluster = Cluster(Path(folder))
        for processes in map(int, args.processes.split(",")):
            undisturbed = Path(folder) / f"{processes}-undisturbed"
            if any(codes := cluster.run(undisturbed, processes)):
                print(f"{processes} processes, undisturbed: exit codes {codes}\n{cluster.said()[-2000:]}")
                return 1
            if wrong := unplanned(undisturbed, cluster.epochs):
                print(f"{processes} processes, undisturbed: {'; '.join(wrong)}")
                return 1
            for what, tried in scenarios(cluster, processes, undisturbed):
                if args.faults not in what:
                    continue
                began, wrong = time.monotonic(), tried()
                failed += bool(wrong)
                found = "; ".join(wrong[:3]) or "as if nothing had been"
                print(f"{processes} processes, {what}: {found} ({time.monotonic() - began:.0f} s)", flush=True)
                if wrong:
                    print("\n".join(cluster.said().splitlines()[-8:]), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
