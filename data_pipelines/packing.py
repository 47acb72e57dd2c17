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

_TABLE = 1 << 26  # entries of a counting table at most
_FAR = np.iinfo(np.int64).max


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
        """Maps a saved plan into memory; only the rows that are asked for are read.

        Raises:
            OSError, ValueError: there is none, or a torn one.
        """
        folder = Path(folder)
        summary = json.loads((folder / "plan.json").read_text())
        names = ("row_offsets", "row_windows")
        arrays = (np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in names)
        plan = cls(*arrays, tuple(summary["fill"]))
        if (plan.rows, len(plan.row_windows)) != (summary["rows"], summary["windows"]):
            raise ValueError(f"{folder}: the arrays do not have the sizes that plan.json names")
        return plan


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
    if np.prod(base) <= _TABLE:  # counting costs a few passes where sorting costs many
        counts = np.bincount(key)
        distinct = np.flatnonzero(counts)
        counts = counts[distinct]
        table = np.zeros(distinct[-1] + 1, np.int32)
        table[distinct] = np.arange(len(distinct))[::-1]
        member = table[key]
    else:
        distinct, counts = np.unique(key, return_counts=True)
        member = len(distinct) - 1 - np.searchsorted(distinct, key)
    distinct, counts = distinct[::-1], counts[::-1]
    classes = np.stack([distinct // (base[1] * base[2]), distinct // base[2] % base[1], distinct % base[2]], 1)
    return classes, counts, member.astype(np.uint16 if len(distinct) <= 65536 else np.int32)


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
    """Longest-first best-fit on a histogram; the last two windows of a row are chosen together.

    A row starts with the largest size that is left and goes on with the largest that fits; when two more can fill it,
    the pair that fills it best is taken. The row is then repeated for as long as all of its sizes last, so that every
    template uses up at least one size.

    Args:
        classes: int [D, 3], distinct, largest first. counts: int [D]. capacities: (T, V, S).
    """
    stock = _Stock(classes, counts, capacities[0])
    rows, slots, lengths, used = [], [], [], []
    while stock.largest[-1]:
        row = _fill_row(stock, *capacities)
        times = 1 + min(int(stock.left[c]) // n for c, n in row.items())
        for c, n in row.items():
            stock.take(c, n * (times - 1))
        rows.append(times)
        lengths.append(sum(row.values()))
        slots += [c for c, n in row.items() for _ in range(n)]
        used.append(sum(classes[c] * n for c, n in row.items()))
    return Templates(
        np.asarray(rows, np.int64),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.asarray(slots, np.int32),
        np.asarray(used, np.int64).reshape(-1, 3),
    )


class _Stock:
    """Windows that have no row yet, by size class and by tokens.

    Attributes:
        left: int64 [D], by class. largest: int32 [T + 1], the largest size still there that is not above the index.
    """

    def __init__(self, classes, counts, room):
        self.tokens, self.visible, self.windows = (np.ascontiguousarray(column) for column in classes.T)
        self.left = np.array(counts, np.int64)
        self._by_tokens = np.bincount(self.tokens, self.left, room + 1).astype(np.int64)
        sizes = np.arange(room + 2)
        self._first = np.searchsorted(-self.tokens, -sizes)  # classes of t tokens: _first[t] ... _first[t - 1]
        self._sizes = sizes[: room + 1].astype(np.int32)
        self._refresh()

    def _refresh(self):
        there = np.where(self._by_tokens > 0, self._sizes, 0)
        self.largest = np.maximum.accumulate(there)
        self._there = there[there > 0][::-1]

    def take(self, c: int, n: int) -> None:
        tokens = self.tokens[c]
        self.left[c] -= n
        self._by_tokens[tokens] -= n
        if n and not self._by_tokens[tokens]:
            self._refresh()

    def next_size(self, room: int, pair: bool) -> int:
        """Tokens of the window that best goes into `room`; 0 where none fits."""
        size = int(self.largest[room])
        if size == room or 2 * size < room or not pair:
            return size
        first = self._there[np.searchsorted(-self._there, -room) :]
        return int(first[np.argmax(first + self.largest[room - first])]) if len(first) else 0

    def choose(self, size: int, room: int, visible: int, windows: int) -> int:
        """The class of a size whose visible tokens come nearest to its share of what is left of V; -1: none fits."""
        begin, end = int(self._first[size]), int(self._first[size - 1])
        fits = (self.left[begin:end] > 0) & (self.visible[begin:end] <= visible) & (self.windows[begin:end] <= windows)
        if not fits.any():
            return -1
        away = np.abs(self.visible[begin:end] * room - visible * size)
        return begin + int(np.argmin(np.where(fits, away, _FAR)))

    def any_that_fits(self, room: int, visible: int, windows: int) -> int:
        fits = (self.left > 0) & (self.tokens <= room) & (self.visible <= visible) & (self.windows <= windows)
        return int(np.argmax(fits)) if fits.any() else -1


def _fill_row(stock: _Stock, room: int, visible: int, windows: int) -> dict[int, int]:
    """Takes one row's windows from the stock: class -> how many."""
    row: dict[int, int] = {}
    while windows and (size := stock.next_size(room, pair=bool(row) and windows > 1)):
        c = stock.choose(size, room, visible, windows)
        if c < 0 and (c := stock.any_that_fits(room, visible, windows)) < 0:
            break
        size, seen, held = int(stock.tokens[c]), int(stock.visible[c]), int(stock.windows[c])
        # far from full, several at once; the last two are left to the search for a pair
        n = max(1, min(room // size - 2, int(stock.left[c]), visible // max(1, seen), windows // max(1, held)))
        stock.take(c, n)
        row[c] = row.get(c, 0) + n
        room, visible, windows = room - n * size, visible - n * seen, windows - n * held
    return row


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
