"""Which windows share which row: an epoch's packing, planned before any signal is read.

Longest-first best-fit under three capacities (T tokens, V visible tokens, S windows a row), run on the histogram of
distinct sizes instead of on windows: rows that hold the same sizes are one template with a multiplicity, so the work
depends on how many sizes there are and not on how many windows. A seeded assignment of windows to the slots of their
size and a seeded shuffle of rows follow. The unit is a group of one or more windows that must share a row.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.errors import BadInput


@dataclass(frozen=True)
class Templates:
    """Kinds of rows and how often each occurs.

    Attributes:
        rows: int64 [K], multiplicity of each template.
        offsets: int64 [K + 1], where each template's slots begin in `slots`.
        slots: int32 [sum of slots], index of the size class that each slot takes; largest first within a template.
        used: int64 [K, 3], tokens, visible tokens and windows of one row of each template.
    """

    rows: np.ndarray
    offsets: np.ndarray
    slots: np.ndarray
    used: np.ndarray

    @property
    def total_rows(self) -> int:
        return int(self.rows.sum())

    def fill(self, capacities: tuple[int, int, int]) -> np.ndarray:
        """Share of T, V and S that is used over all rows, float64 [3]."""
        return (self.used * self.rows[:, None]).sum(0) / (max(1, self.total_rows) * np.asarray(capacities, float))


@dataclass(frozen=True)
class PackingPlan:
    """An epoch's rows.

    Attributes:
        row_offsets: int64 [R + 1]; row r holds `row_windows[row_offsets[r]:row_offsets[r + 1]]`.
        row_windows: int32 [N], windows (or groups, as `plan` was given sizes) in row order; each exactly once.
        fill: share of T, V and S that the planned sizes use.
    """

    row_offsets: np.ndarray
    row_windows: np.ndarray
    fill: tuple[float, float, float]

    @property
    def rows(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def digest(self) -> str:
        """sha256 of the arrays: equal on every host, or the hosts would not train on the same rows."""
        digest = hashlib.sha256()
        for array in (self.row_offsets, self.row_windows):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Writes the arrays as .npy and `plan.json` (rows, windows, fill, digest) into an existing folder."""
        folder = Path(folder)
        np.save(folder / "row_offsets.npy", self.row_offsets)
        np.save(folder / "row_windows.npy", self.row_windows)
        summary = {"rows": self.rows, "windows": len(self.row_windows), "fill": self.fill, "digest": self.digest}
        (folder / "plan.json").write_text(json.dumps(summary))

    @classmethod
    def open(cls, folder: Path) -> "PackingPlan":
        """Maps a saved plan into memory; only the rows that are asked for are read."""
        folder = Path(folder)
        summary = json.loads((folder / "plan.json").read_text())
        arrays = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("row_offsets", "row_windows"))
        return cls(*arrays, tuple(summary["fill"]))


def plan(sizes: np.ndarray, capacities: tuple[int, int, int], seed: int, epoch: int) -> PackingPlan:
    """Plans one epoch.

    Args:
        sizes: int [N, 3], (tokens, visible tokens, windows) of each group.
        capacities: (T, V, S) of a row.
        seed, epoch: of the assignment and of the rows' order; the same arguments give the same plan.

    Raises:
        BadInput: a group is larger than a row; the message names the size, the capacity and the way out.
    """
    classes, counts, member = histogram(sizes)
    check_sizes(classes, capacities)
    templates = best_fit(classes, counts, capacities)
    rng = np.random.Generator(np.random.PCG64([0x9AC4, seed, epoch]))
    row_template = rng.permutation(np.repeat(np.arange(len(templates.rows), dtype=np.int32), templates.rows))
    lengths = np.diff(templates.offsets)[row_template]
    row_offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    # slot j of a row takes entry (template's offset + j) of the templates' slot list
    source = np.arange(len(member), dtype=np.int64)
    source += np.repeat(templates.offsets[row_template] - row_offsets[:-1], lengths)
    slot_class = templates.slots.astype(member.dtype)[source]
    del source
    row_windows = np.empty(len(member), np.int32)
    shuffled = rng.permutation(len(member)).astype(np.int32)
    # classes are uint16 in practice, for which a stable argsort is a radix sort
    by_class = shuffled[np.argsort(member[shuffled], kind="stable")]
    row_windows[np.argsort(slot_class, kind="stable")] = by_class
    return PackingPlan(row_offsets, row_windows, tuple(float(f) for f in templates.fill(capacities)))


def histogram(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct sizes, largest first (tokens, then visible, then windows).

    Returns:
        classes int64 [D, 3]; counts int64 [D]; member uint16 (int32 beyond 65,536 classes) [N], each group's class.
    """
    sizes = np.asarray(sizes)
    if not len(sizes):
        return np.zeros((0, 3), np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint16)
    base = sizes.max(0).astype(np.int64) + 1
    key = (sizes[:, 0].astype(np.int64) * base[1] + sizes[:, 1]) * base[2] + sizes[:, 2]
    distinct, counts = np.unique(key, return_counts=True)
    distinct, counts = distinct[::-1], counts[::-1]
    classes = np.stack([distinct // (base[1] * base[2]), distinct // base[2] % base[1], distinct % base[2]], 1)
    rank = (len(distinct) - 1 - np.searchsorted(distinct[::-1], key)).astype(
        np.uint16 if len(distinct) <= 65536 else np.int32
    )
    return classes, counts, rank


def check_sizes(classes: np.ndarray, capacities: tuple[int, int, int]) -> None:
    """Refuses, before training, a group that no row can hold."""
    for column, (field, what) in enumerate(
        (("row_tokens", "tokens"), ("row_visible", "visible tokens"), ("row_windows", "windows"))
    ):
        largest = int(classes[:, column].max(initial=0))
        if largest > capacities[column]:
            raise BadInput(
                f"config.data.{field}",
                f"a window of {largest} {what} and rows of {capacities[column]}",
                f"rows of at least {largest} {what}",
                f"set config.data.{field} to what `csfm data STORE --config=CONFIG --suggest` prints",
            )


def best_fit(classes: np.ndarray, counts: np.ndarray, capacities: tuple[int, int, int]) -> Templates:
    """Longest-first best-fit on a histogram.

    Kinds of open rows are kept in arrays: what is left of T, V and S, how many rows are of the kind, and a link to
    the kind they came from. Placing size class d takes the kind with the least room of T that still fits, puts as
    many of the class into each of its rows as fit, and so turns those rows into another kind.

    Args:
        classes: int [D, 3], largest first. counts: int [D]. capacities: (T, V, S).
    """
    left = np.array([capacities], np.int64)
    rows = np.array([np.iinfo(np.int64).max // 2])  # kind 0: the endless supply of empty rows
    parent, added = [-1], [(0, 0)]
    for d, (size, count) in enumerate(zip(classes, counts)):
        count = int(count)
        while count:
            fits = np.flatnonzero((left >= size).all(1) & (rows > 0))
            kind = fits[np.argmin(left[fits, 0])]
            each = int(np.min(left[kind, size > 0] // size[size > 0]))
            new = [(count // each, each)] if count >= each else []
            if not new or (count % each and count // each < rows[kind]):
                new.append((1, count % each))
            new = [(min(n, int(rows[kind])), k) for n, k in new]
            for n, k in new:
                rows[kind] -= n
                count -= n * k
                parent.append(int(kind))
                added.append((d, k))
            left = np.concatenate([left, [left[kind] - size * k for _, k in new]])
            rows = np.concatenate([rows, [n for n, _ in new]])
    return _templates(classes, rows, left, parent, added, capacities)


def _templates(classes, rows, left, parent, added, capacities) -> Templates:
    """Follows each surviving kind of row back to the empty row to list its slots."""
    slots, lengths = [], []
    alive = np.flatnonzero(rows[1:] > 0) + 1
    for kind in alive:
        path = []
        while kind > 0:
            path.append(added[kind])
            kind = parent[kind]
        row = [d for d, k in reversed(path) for _ in range(k)]
        slots.extend(row)
        lengths.append(len(row))
    return Templates(
        rows[alive],
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.asarray(slots, np.int32),
        np.asarray(capacities, np.int64) - left[alive],
    )


def expand(plan: PackingPlan, starts: np.ndarray) -> PackingPlan:
    """A plan of groups as a plan of their windows.

    Args:
        starts: int64 [groups + 1], the first window of each group, and the number of windows.
    """
    lengths = np.diff(starts)[plan.row_windows]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)
    row_windows = (np.repeat(starts[plan.row_windows], lengths) + within).astype(np.int32)
    return PackingPlan(ends[plan.row_offsets], row_windows, plan.fill)
