"""Planning ten million windows of mixed size: seconds, memory and fill, in a process of its own.

The mix (tokens of 0.1 s at 250 Hz, windows of 10 s and of 5 to 10 s): 12-lead ECG 10 %, ECG and PPG 40 %, one ECG
lead 30 %, PPG 20 %; a third of the windows is shorter than 10 s, and 30 % have a report of 5 to 64 tokens. Rows of
2048 tokens, 768 visible, 64 windows: T binds. (Where short windows are too few to accompany the 12-lead ones, 2048 is
the wrong length: `csfm data --suggest`.)
"""

import json
import resource
import subprocess
import sys
import time

WINDOWS = 10_000_000
ROW = (2048, 768, 64)


def mixed_sizes(windows: int, seed: int = 0):
    """int32 [windows, 3]: tokens, visible tokens, 1 of the mix above."""
    import numpy as np

    rng = np.random.default_rng(seed)
    channels = rng.choice(np.array([12, 2, 1, 1], np.int32), windows, p=[0.10, 0.40, 0.30, 0.20])
    patches = np.where(rng.random(windows) < 1 / 3, rng.integers(50, 100, windows), 100).astype(np.int32)
    signal = channels * patches
    text = np.where(rng.random(windows) < 0.3, rng.integers(5, 65, windows), 0).astype(np.int32)
    sizes = np.ones((windows, 3), np.int32)
    sizes[:, 0] += signal + text
    sizes[:, 1] += np.maximum(1, np.rint(0.25 * signal)).astype(np.int32) + np.rint(0.5 * text).astype(np.int32)
    return sizes


def measure(windows: int = WINDOWS) -> dict:
    """Plans once in this process: seconds, rise of the peak in bytes, fill of T and V, rows."""
    from data_pipelines import packing

    sizes = mixed_sizes(windows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, spent = time.perf_counter(), time.process_time()
    plan = packing.plan(sizes, ROW, seed=0, epoch=0)
    seconds, cpu = time.perf_counter() - start, time.process_time() - spent
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": seconds,
        "cpu": cpu,
        "rise": (peak - before) * 1024,
        "peak": peak * 1024,
        "fill": plan.fill,
        "rows": plan.rows,
        "distinct": len(packing.histogram(sizes)[0]),
    }


def run() -> list[tuple[str, float, str, str]]:
    """(name, value, unit, note) of each figure."""
    command = [sys.executable, "-m", "benchmarks.packing"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    mix = f"{found['distinct']} distinct sizes, rows of {ROW[0]} tokens, {ROW[1]} visible, {ROW[2]} windows"
    return [
        ("plan 10 million windows", found["seconds"], "s", f"goal < 10; {found['cpu']:.1f} s of CPU; {mix}"),
        ("its peak memory", found["peak"] / 1e9, "GB", "goal < 2; the whole process, the window sizes included"),
        ("its fill of T", 100 * found["fill"][0], "%", "goal >= 99.5"),
        ("its fill of V", 100 * found["fill"][1], "%", f"{found['rows']} rows"),
    ]


if __name__ == "__main__":
    print(json.dumps(measure()))
