"""What a training run spends beside its compiled step: the host's time in the loop, and waiting for data.

Host time is that of the loop itself (`csfm_jax.training.loop.train`, csfm_nano's shapes) around a compiled program with
the step's arguments and results and nothing in it, and a batch that is at hand. Waiting is read off the metrics of a
real run of csfm_nano. Batches are then made by one process as fast as it can, by its own processor time: how many
cores a host needs follows by arithmetic for accelerators at their data sheet's peak, which no run reaches.
"""

import dataclasses
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.reading import write_records
from csfm_jax import config as configs
from csfm_jax import sharding
from csfm_jax.models import flops
from csfm_jax.training import loop, step
from data_pipelines.datasets import open_sources
from data_pipelines.loader import Rows
from data_pipelines.prepare import prepare
from data_pipelines.store import open_stores

STEPS, EMPTY_STEPS, BATCHES = 100, 200, 40
# device_kind -> name of a host, its chips, and the cores that it is rented with (ct5lp-hightpu-4t, a3-ultragpu-8g)
HOSTS = {"TPU v5 lite": ("a v5e host", 4, "112 vCPUs"), "NVIDIA H200": ("a host of 8 H200", 8, "224 vCPUs")}


def run(
    steps: int = STEPS, empty_steps: int = EMPTY_STEPS, batches: int = BATCHES
) -> list[tuple[str, float, str, str]]:
    """(name, value, unit, note) of each figure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(open_sources("simulated:subjects=60,seed=0")[0], folder / "store", keep_reports=True)
        nano = configs.load(
            "csfm_nano", [f"--config.data.stores={folder / 'store'}", "--config.optimizer.warmup_steps=0"]
        )
        lines = waiting(_training(nano, steps=steps, log_every=10), folder / "nano")
        lines += host_time(_training(nano, steps=empty_steps, log_every=20), folder / "empty")
        return lines + feeding(folder, batches)


def _training(config, **values):
    values |= {"eval_every": values["steps"] + 1, "save_every": values["steps"] + 1}
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **values))


def waiting(config, folder: Path) -> list[tuple[str, float, str, str]]:
    """Share of a run's time that it waits for data, from its own lines; the first holds the compilation."""
    loop.train(config, folder, command="benchmarks overheads")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first, last = lines[0], lines[-1]
    seconds, steps = _wall(last) - _wall(first), last["step"] - first["step"]
    share = (last["lost_seconds/data"] - first["lost_seconds/data"]) / seconds
    note = f"goal < 2; {steps} steps of {1e3 * seconds / steps:.0f} ms, workers={config.data.workers}"
    return [("csfm_nano: waiting for data, share of the time", 100 * share, "%", note)]


def _wall(line: dict) -> float:
    """Seconds since the run began: what was lost over the share that was."""
    lost = sum(value for name, value in line.items() if name.startswith("lost_seconds/"))
    return lost / (1 - line["goodput"])


def host_time(config, folder: Path) -> list[tuple[str, float, str, str]]:
    """Milliseconds of the loop around an empty program, a step; waiting for data left out."""
    turns = []

    class Repeating:
        """The loader, with the first batch again and again."""

        def __init__(self, loader):
            self._loader, self._batch = loader, next(loader)

        def __next__(self):
            return self._batch

        def __getattr__(self, name):
            return getattr(self._loader, name)

    def make_empty_step(plan, optimizer, rate, config):
        empty = _empty(plan, real(plan, optimizer, rate, config))

        def timed(state, batch):
            turns.append((time.perf_counter(), time.thread_time()))
            return empty(state, batch)

        return timed

    loader, real = loop._loader, step.make_train_step
    with (
        mock.patch.object(loop, "_loader", lambda *args: Repeating(loader(*args))),
        mock.patch.object(loop.step, "make_train_step", make_empty_step),
    ):
        loop.train(config, folder, command="benchmarks overheads")
    between = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(turns[5:], turns[6:])]
    each, busy = ([1e3 * seconds for seconds in column] for column in zip(*between))
    note = "goal < 2; all of the loop but the compiled program, its dispatch included"
    return [
        ("the loop's own time a step, median", statistics.median(each), "ms", note),
        ("  processor time of the loop's thread, median", statistics.median(busy), "ms", "whatever else runs here"),
        ("  mean, with a line of metrics every 20 steps", statistics.fmean(each), "ms", ""),
    ]


def _empty(plan, real):
    """A compiled program with the arguments and the results of a step, which does nothing."""

    def nothing(state, batch):
        shapes = jax.eval_shape(real, state, batch)[1]
        metrics = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)  # of a step that was made
        return state._replace(step=state.step + 1), metrics

    taken = plan.shardings, sharding.batch_sharding(plan.mesh)
    return jax.jit(nothing, donate_argnums=0, in_shardings=taken, out_shardings=(plan.shardings, None))


def feeding(folder: Path, batches: int) -> list[tuple[str, float, str, str]]:
    """Windows a second that one core makes into batches of csfm_base, and how many cores feed an accelerator host."""
    leads = twelve_leads(folder)
    config = configs.load("csfm_base", [f"--config.data.stores={leads}", "--config.data.rows=8"])
    rows = Rows(open_stores(config.data.stores, "size"), config.tokens, config.data, "train", folder / "plans")
    made = sum(int((rows.batch(0, range(8)).window >= 0).sum()) for _ in range(2))  # warm
    total, made, began = rows.plans.get(0).rows, 0, time.process_time()
    for turn in range(batches):
        begin = turn * 8 % max(1, total - 8)
        made += int((rows.batch(0, range(begin, begin + 8)).window >= 0).sum())
    speed = made / (time.process_time() - began)
    lines = [("12-lead windows of csfm_base, a core of this machine", speed, "windows/s", f"{made} windows")]
    each = made / (8 * batches)  # windows a row
    for size in ("tiny", "base", "large"):
        work = flops.count(configs.load(f"csfm_{size}")).train / each
        for kind, (name, chips, has) in HOSTS.items():
            needed = chips * flops.PEAK[kind]["bfloat16"] / work
            note = f"{needed:,.0f} windows/s at the data sheet's peak; {has}"
            lines.append((f"cores that feed {name} training {size}", math.ceil(needed / speed), "cores", note))
    return lines


def twelve_leads(folder: Path) -> Path:
    """A store of twelve-lead recordings of ten seconds; what they hold does not matter for the time they take."""
    write_records(folder / "records")
    prepare(open_sources(str(folder / "records"))[0], folder / "leads", key=os.urandom(32))
    return folder / "leads"
