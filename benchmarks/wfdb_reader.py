"""WFDB records a second, ours beside `wfdb.rdrecord`, on the same files: formats 16 and 212, headers parsed each time.

Twelve leads of 10 s at 500 Hz in format 16, as PTB-XL; two leads of half an hour at 360 Hz in format 212, as MIT-BIH,
and of a minute. Checksums are verified on our side only. Rounds are interleaved, the best of each side counts.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

ROUNDS = 4
KINDS = (("16", 12, 500, 10, 40), ("212", 2, 360, 1800, 6), ("212", 2, 360, 60, 40))  # ..., Hz, seconds, records


def run() -> list[tuple[str, float, str, str]]:
    """(name, value, unit, note) of each figure."""
    with tempfile.TemporaryDirectory() as folder:
        return [line for kind in KINDS for line in _measure(Path(folder), *kind)]


def _measure(folder: Path, form: str, signals: int, rate: int, seconds: int, records: int):
    import wfdb

    from data_pipelines.formats.wfdb import read

    paths = []
    for i in range(records):
        digital = np.random.default_rng(i).integers(-900, 900, (rate * seconds, signals)).astype(np.int64)
        wfdb.wrsamp(
            f"r{form}_{seconds}_{i}", rate, ["mV"] * signals, [f"V{k + 1}" for k in range(signals)], d_signal=digital,
            fmt=[form] * signals, adc_gain=[200.0] * signals, baseline=[0] * signals, write_dir=str(folder),
        )  # fmt: skip
        paths.append(folder / f"r{form}_{seconds}_{i}")
    sides = {
        "ours": lambda path: read(path.with_suffix(".hea")),
        "wfdb": lambda path: wfdb.rdrecord(str(path)),
    }
    best = dict.fromkeys(sides, 0.0)
    for _ in range(ROUNDS):
        for name, side in sides.items():
            began = time.perf_counter()
            for path in paths:
                side(path)
            best[name] = max(best[name], len(paths) / (time.perf_counter() - began))
    return [
        (
            f"WFDB format {form}, {seconds} s, our reader",
            best["ours"],
            "records/s",
            f"{signals} signals, {seconds} s at {rate} Hz",
        ),
        ("  over wfdb.rdrecord", best["ours"] / best["wfdb"], "x", "goal: at least 20; header parsing included"),
    ]
