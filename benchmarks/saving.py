"""What saving 100 million parameters with AdamW's state costs the loop that saves: time, and memory.

`Checkpoints` as the loop uses it, on a disk of this machine. Rounds of twenty steps (AdamW's update of all parameters,
state donated) are timed in pairs, one with a save at its beginning and one without, in turns of order; saves are waited
for between rounds, untimed. So what a save moves into the steps after it is counted, not only how long `save` keeps the
loop. On CPU the steps compete with the save for the cores and for memory's bandwidth, which an accelerator's do not.
"""

import contextlib
import statistics
import tempfile
import threading
import time
from pathlib import Path

PARAMETERS, STEPS, PAIRS = 100_000_000, 20, 10
LIMIT = 170  # seconds of rounds: on a machine that is busy there are fewer pairs, and the figures say how many


def run(parameters: int = PARAMETERS, pairs: int = PAIRS) -> list[tuple[str, float, str, str]]:
    """(name, value, unit, note) of each figure."""
    with tempfile.TemporaryDirectory() as folder:
        return _lines(_measure(Path(folder), parameters, pairs))


def _measure(folder: Path, parameters: int, pairs: int) -> dict:
    import jax
    import numpy as np

    from csfm_jax.training.checkpoint import Checkpoints

    step, state = _steps(parameters)
    for _ in range(2):
        state = step(*state)
    jax.block_until_ready(state)
    checkpoints = Checkpoints(folder / "checkpoints", keep=2)
    found = {"blocked": [], "extra": [], "peak": [], "plain": [], "whole": []}
    began = time.perf_counter()
    with contextlib.closing(checkpoints):
        for pair in range(1, pairs + 1):
            seconds = {}
            for saving in (False, True)[:: 1 if pair % 2 else -1]:
                with _Peak() as peak:
                    start = time.perf_counter()
                    if saving:
                        checkpoints.save(pair, *state, {"step": pair})
                        found["blocked"].append(time.perf_counter() - start)
                    for _ in range(STEPS):
                        state = step(*state)
                        jax.block_until_ready(state)  # the loop, too, is one step ahead at most
                    seconds[saving] = time.perf_counter() - start
                    checkpoints.wait()
                if saving:
                    found["whole"].append(time.perf_counter() - start)
                    found["peak"].append(peak.grown)
            found["plain"].append(seconds[False])
            found["extra"].append(seconds[True] - seconds[False])
            if time.perf_counter() - began > LIMIT:
                break
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return found | {"size": size, "copy": _copy(np.zeros(size // 4, np.float32))}


def _steps(parameters: int):
    """AdamW's update as one compiled function, and the state that it is called with."""
    import jax
    import jax.numpy as jnp
    import optax

    layers = 12
    width = round((parameters / layers) ** 0.5)
    keys = jax.random.split(jax.random.key(0), layers)
    params = {f"layer{i}": jax.random.normal(key, (width, width), jnp.float32) for i, key in enumerate(keys)}
    optimizer = optax.adamw(1e-4)

    def step(params, moments):
        gradients = jax.tree.map(lambda p: 1e-3 * p, params)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments

    return jax.jit(step, donate_argnums=(0, 1)), (params, jax.jit(optimizer.init)(params))


def _copy(source) -> float:
    """Seconds of copying the state into memory that is there already: as fast as memory goes."""
    target = source.copy()
    start = time.perf_counter()
    target[:] = source
    return time.perf_counter() - start


class _Peak:
    """How far this process's memory grows within a block, in bytes, looked at every few milliseconds."""

    def __enter__(self):
        self._before, self._most, self._end = _resident(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self):
        while not self._end.wait(0.005):
            self._most = max(self._most, _resident())

    def __exit__(self, *error):
        self._end.set()
        self._thread.join()
        self.grown = max(0, self._most - self._before)


def _resident() -> int:
    import resource

    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _lines(found: dict) -> list[tuple[str, float, str, str]]:
    extra, number = sorted(found["extra"]), len(found["extra"])
    # of ten, the second and the ninth: they hold the median with 97.9 % (binomial)
    least, most = (extra[1], extra[-2]) if number >= 6 else (extra[0], extra[-1])
    size, median = found["size"], statistics.median
    return [
        ("a save keeps the loop, median", 1e3 * median(found["blocked"]), "ms", f"goal < 100; {size / 1e9:.2f} GB"),
        ("  the longest", 1e3 * max(found["blocked"]), "ms", "the first one makes threads and folders"),
        (f"the save and the next {STEPS} steps, beyond as many without", median(extra), "s",
         f"median of {number} pairs; {least:.2f} to {most:.2f}"),
        (f"  {STEPS} steps without a save", median(found["plain"]), "s", ""),
        ("  copying the state in memory that is hot", found["copy"], "s", "one thread"),
        ("until the step is sealed", median(found["whole"]), "s", "in the background"),
        ("memory beyond the state while saving", max(found["peak"]) / size, "copies", "goal <= 1.5"),
    ]  # fmt: skip
