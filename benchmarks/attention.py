"""Attention of packed rows on this machine: "blocks" against all pairs of a row, and against each window alone.

Output and gradients of q, k and v, float32. Windows alone are unpacked beforehand and attended in batches of equal
length, without padding: what no packed row can be expected to reach. The candidates take turns, in the opposite order
every second round, and the best of each counts; a ratio below 1.15 means nothing.
"""

import time

ROUNDS = 3
MIX = ((300, 150, 75, 375), (0.40, 0.25, 0.20, 0.15))  # 12-lead ECG, ECG and PPG, PPG, sleep: tokens and shares
CASES = {
    "2048 tokens, windows of 75-375": (2048, None),
    "2560 tokens, two windows of 1200": (2560, [1200, 1200]),
    "512 tokens, windows of 75": (512, [75] * 6),
    "512 tokens, windows of 26": (512, [26] * 19),
    "320 tokens, one window": (320, [316]),
    "224 tokens, one window": (224, [217]),
    "128 tokens, one window": (128, [121]),
}
SIZES = ((4, 12, 64), (8, 4, 32))  # rows, heads, head_dim


def lengths(row: int, windows: list[int] | None, rng) -> list[int]:
    """Windows of one row: as given, or drawn from the mix until the next one does not fit."""
    if windows is not None:
        return windows
    found, drawn = [], int(rng.choice(MIX[0], p=MIX[1]))
    while sum(found) + drawn <= row:
        found.append(drawn)
        drawn = int(rng.choice(MIX[0], p=MIX[1]))
    return found


def candidates(row: int, windows: list[int] | None, rows: int, heads: int, head_dim: int) -> dict:
    """Compiled functions without arguments, by name."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from csfm_jax.models.attention import attend

    rng = np.random.default_rng(0)
    values = rng.standard_normal((4, rows, row, heads, head_dim)).astype(np.float32)  # q, k, v, cotangent
    segments = np.zeros((rows, row), np.int32)
    apart: dict[int, list] = {}
    for number in range(rows):
        at = 0
        for window, length in enumerate(lengths(row, windows, rng), 1):
            segments[number, at : at + length] = window
            apart.setdefault(length, []).append(values[:, number, at : at + length])
            at += length
    groups = [np.stack(found, axis=1) for found in apart.values()]

    def both(backend, values, segments):
        q, k, v, cotangent = values
        out, back = jax.vjp(lambda *x: attend(*x, segments, backend=backend), q, k, v)
        return out, back(cotangent)

    def alone(groups):
        return [both("reference", group, jnp.ones(group.shape[1:3], jnp.int32)) for group in groups]

    def prepare(function, *args):
        args = jax.device_put(args)
        run = jax.jit(function).lower(*args).compile()
        return lambda: jax.block_until_ready(run(*args))

    found = {"alone": prepare(alone, groups)}
    for backend in ("blocks", "reference"):
        found[backend] = prepare(lambda x, s, backend=backend: both(backend, x, s), values, segments)
    return found


def best(runs: dict, rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds of each candidate's fastest turn."""
    for run in runs.values():
        run()
    seconds = dict.fromkeys(runs, float("inf"))
    for number in range(rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            runs[name]()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def run() -> list[tuple[str, float, str, str]]:
    """(name, value, unit, note) of each figure."""
    from csfm_jax.models.attention import SHORT

    lines = []
    for name, (row, windows) in CASES.items():
        goals = ("goal < 1.5", "goal > 0.9") if row > SHORT else ("not used in such rows", "not used in such rows")
        for rows, heads, head_dim in SIZES:
            found = best(candidates(row, windows, rows, heads, head_dim))
            shown = ", ".join(f"{which} {1e3 * seconds:.0f} ms" for which, seconds in found.items())
            note = f"{goals[0]}; {rows} rows; {shown}"
            lines.append((f"{name}, {heads}x{head_dim}: blocks / alone", found["blocks"] / found["alone"], "", note))
            faster = found["reference"] / found["blocks"]
            lines.append((f"{name}, {heads}x{head_dim}: reference / blocks", faster, "", goals[1]))
    return lines
