"""Do two stores share people? By subject where hashes can be compared, by signal in any case.

A signal's fingerprint must survive another sampling rate, other filters, a gain and a shift. Each stretch is brought to
one band and one rate; wherever it has a peak, the three seconds that follow are one vector, which therefore does not
know where the recording began. Vectors of near-equal direction fall into one bucket of a hash of random hyperplanes
(Charikar 2002), so that finding candidates is a sort and not a comparison of all pairs; every candidate is then
compared over the first minute that they have in common, on every channel that both have. The smaller store's vectors
are held in memory (about 1 MB an hour), the larger's are looked up as they are made.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import signal as dsp

from data_pipelines.preprocess import INVALID
from data_pipelines.signals import CHANNEL_ID, modality_of
from data_pipelines.store import SPLITS, Store

_RATE = 100  # Hz of the band-limited signal
_BANDS = {"ecg": (2.0, 12.0), "ppg": (0.7, 5.0), "abp": (0.7, 8.0), "resp": (0.1, 1.0), "pcg": (0.7, 8.0)}
_OTHER_BAND = (1.0, 12.0)
_VECTOR_SECONDS, _VECTOR_RATE = 3.0, 25
_ANCHORS = tuple(CHANNEL_ID[name] for name in ("II", "I", "PPG"))
_BITS, _TABLES = 24, 8
_LARGEST_BUCKET = 4096  # what so many stretches share (a flat line, a pacemaker's night) tells nothing
_STRETCH = 60.0  # seconds that are looked at in one piece; neighbours share the length of a vector
_SHORTEST = 5.0  # seconds of a recording that is looked at
_COMMON, _SHARE = 20.0, 0.7  # seconds in common, or that share of the shorter one: steady rhythms fit for a few beats
_CYCLES = 2  # of a band's slowest wave, or edges are most of what is seen
_SLACK = 10  # samples by which two peaks may lie apart
_VOTES, _LAGS = 3, 256  # peaks and tables that must agree on a lag; lags that are tried
_EDGE = 50  # samples at both ends where filters of different beginnings differ
_ENOUGH = 0.97
_MOST_INVALID = 0.2  # share of a stretch
_AT_ONCE, _PAIRS_AT_ONCE = 200_000, 1_000_000  # vectors that are looked up together; matches that are counted together


@dataclass(frozen=True)
class Pair:
    """Two recordings with the same signal.

    Attributes:
        first, second: rows of the two stores' indexes.
        correlation: the least over the channels that both have.
        lag: seconds by which the second is late.
    """

    first: int
    second: int
    correlation: float
    lag: float


@dataclass(frozen=True)
class Overlap:
    """What two stores share.

    Attributes:
        comparable: whether subjects were hashed with one key, so that equal hashes mean equal persons.
        subjects: hashes in both stores; empty where not comparable.
        pairs: recordings with the same signal.
        crossing_subjects, crossing_pairs: those that are in one split in one store and in another in the other.
    """

    comparable: bool
    subjects: list[str]
    pairs: list[Pair]
    crossing_subjects: int
    crossing_pairs: int


def find_overlap(a: Store, b: Store, progress: Callable[[int], None] = lambda n: None) -> Overlap:
    """Compares two stores, or, given one twice, the recordings of one among themselves.

    Args:
        a, b: opened stores. progress: called with the number of recordings just read.
    """
    same = a.digest == b.digest
    comparable = a.manifest["key"] == b.manifest["key"] and a.people == b.people
    shared = np.intersect1d(a.index.subject, b.index.subject) if comparable and not same else np.zeros(0, "S16")
    crossing = sum(_splits(a, subject) != _splits(b, subject) for subject in shared)
    pairs = find_pairs(a, b, progress)
    split_of = (a.index.split, b.index.split)
    crossing_pairs = sum(int(split_of[0][pair.first] != split_of[1][pair.second]) for pair in pairs)
    return Overlap(comparable, [s.decode() for s in shared], pairs, crossing, crossing_pairs)


def _splits(store: Store, subject) -> set[str]:
    return {SPLITS[split] for split in np.unique(store.index.split[store.index.subject == subject])}


def find_pairs(a: Store, b: Store, progress: Callable[[int], None] = lambda n: None) -> list[Pair]:
    """Pairs of recordings with the same signal; of one store with itself, each pair once and none with itself."""
    if _hours(b) < _hours(a):
        return sorted((Pair(p.second, p.first, p.correlation, -p.lag) for p in find_pairs(b, a, progress)), key=_order)
    same = a.digest == b.digest
    known = _Keys.joined(_keys(a, progress))
    ordered = [_sorted(known, table) for table in range(_TABLES)]
    votes: dict[tuple[int, int], dict[int, list[float]]] = {}
    for keys in (known,) if same else _in_blocks(_keys(b, progress)):
        for i, j in _matches(ordered, keys):
            _vote(votes, known, i, keys, j, same)
    compare = _Comparison(a, b)
    pairs = []
    for (first, second), lags in sorted(votes.items()):
        # at the true lag many peaks agree; in a steady rhythm nearly as many do at every beat
        least = max(_VOTES, max(count for count, _ in lags.values()) / 2)
        likely = sorted((lag for lag in lags.values() if lag[0] >= least), reverse=True)[:_LAGS]
        tried = [(compare(first, second, total / count), total / count) for count, total in likely]
        best = max(tried, default=(0.0, 0.0))
        if best[0] >= _ENOUGH:
            pairs.append(Pair(first, second, *best))
    return pairs


def _vote(votes, known: "_Keys", i: np.ndarray, keys: "_Keys", j: np.ndarray, same: bool) -> None:
    """Counts matches by pair of recordings and by lag: {pair: {lag in units of the slack: [matches, sum of lags]}}."""
    first, second = known.recording[i], keys.recording[j]
    lag = keys.time[j] - known.time[i]
    if same:
        once = first < second
        first, second, lag = first[once], second[once], lag[once]
    where = np.stack([first, second, np.rint(lag * _RATE / _SLACK).astype(np.int32)])
    where, inverse, counts = np.unique(where, axis=1, return_inverse=True, return_counts=True)
    totals = np.bincount(inverse.ravel(), lag, len(counts))
    for a, b, bin, count, total in zip(*where.tolist(), counts.tolist(), totals.tolist()):
        entry = votes.setdefault((a, b), {}).setdefault(bin, [0, 0.0])
        entry[0] += count
        entry[1] += total


def _hours(store: Store) -> float:
    return float(store.index.milliseconds.sum())


def _order(pair: Pair) -> tuple[int, int]:
    return pair.first, pair.second


class _Keys(NamedTuple):
    """One row a vector: the recording, seconds from its start to the peak, and a key a table.

    A key is the anchor channel and the side of each hyperplane, so that only like channels meet.
    """

    recording: np.ndarray
    time: np.ndarray
    keys: np.ndarray

    @classmethod
    def joined(cls, parts: Iterable["_Keys"]) -> "_Keys":
        empty = cls(np.zeros(0, np.int32), np.zeros(0), np.zeros((0, _TABLES), np.int32))
        return cls(*map(np.concatenate, zip(empty, *parts)))


def _keys(store: Store, progress) -> Iterator[_Keys]:
    """The vectors of a store, stretch by stretch."""
    planes, weights = _planes(), (1 << np.arange(_BITS)).astype(np.int32)
    for recording in range(len(store.index)):
        for channel, start, x in _stretches(store, recording):
            peaks, vectors = _vectors(x, modality_of(channel).name)
            if len(peaks):
                bits = (vectors @ planes).reshape(len(peaks), _TABLES, _BITS) > 0
                keys = (bits @ weights) | np.int32(channel << _BITS)
                yield _Keys(np.full(len(peaks), recording, np.int32), start + peaks / _RATE, keys)
        progress(1)


def _in_blocks(parts: Iterator[_Keys]) -> Iterator[_Keys]:
    block, size = [], 0
    for part in parts:
        block.append(part)
        size += len(part.time)
        if size >= _AT_ONCE:
            yield _Keys.joined(block)
            block, size = [], 0
    yield _Keys.joined(block)


def _planes() -> np.ndarray:
    samples = int(_VECTOR_SECONDS * _VECTOR_RATE)
    return np.random.default_rng(20260101).normal(size=(samples, _TABLES * _BITS)).astype(np.float32)


def _stretches(store: Store, recording: int) -> Iterator[tuple[int, float, np.ndarray]]:
    """(anchor channel, start in seconds, band-limited signal at `_RATE`) of every stretch that is looked at."""
    channels = store.index.channel_sets[store.index.channel_set[recording]]
    anchors = [channel for channel in _ANCHORS if channel in channels] or list(channels[:2])
    length = float(store.index.milliseconds[recording]) / 1000
    for start in np.arange(0.0, max(length - _SHORTEST, 0.0) + 1e-9, _STRETCH - _VECTOR_SECONDS):
        window = dict(store.read_window(recording, float(start), min(_STRETCH, length - start)))
        for channel in anchors:
            x = _limited(window[channel], channel)
            if x is not None:
                yield channel, float(start), x


def _limited(counts: np.ndarray, channel: int, invalid: float = _MOST_INVALID) -> np.ndarray | None:
    """int16 at the modality's rate -> float32 at `_RATE`, band-limited; None where more than a share is invalid."""
    modality = modality_of(channel)
    low, high = _BANDS.get(modality.name, _OTHER_BAND)
    if modality.rate < 2 * _OTHER_BAND[0] or len(counts) < max(_SHORTEST, _CYCLES / low) * modality.rate:
        return None
    bad = counts == INVALID
    if bad.mean() > invalid or bad.all():
        return None
    x = np.where(bad, np.median(counts[~bad]), counts).astype(np.float64)
    x = dsp.resample_poly(x, _RATE, modality.rate, padtype="line")
    y = dsp.sosfiltfilt(_band_pass(low, min(high, 0.45 * modality.rate)), x)
    return y.astype(np.float32) if np.abs(y).max() > 0 else None


@lru_cache(maxsize=64)
def _band_pass(low: float, high: float) -> np.ndarray:
    """Second-order sections at `_RATE`; their design takes longer than the filtering of ten seconds."""
    return dsp.butter(2, (low, high), "bandpass", fs=_RATE, output="sos")


def _vectors(x: np.ndarray, modality: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions of peaks, and the unit vector of the three seconds that follow each: [n, samples]."""
    slow = _BANDS.get(modality, _OTHER_BAND)[0]
    distance = max(1, int(_RATE * min(0.4 / slow, 2.0) * 0.5)) if modality in _BANDS else 1
    # the steepest moments stay where they are under gain and filters; absolute, so that polarity does not matter
    steep = np.abs(np.gradient(x))
    peaks, _ = dsp.find_peaks(steep, height=2.0 * np.median(steep) + 1e-12, distance=max(distance, _RATE // 10))
    samples = int(_VECTOR_SECONDS * _RATE)
    peaks = peaks[peaks + samples <= len(x)]
    if not len(peaks):
        return peaks, np.zeros((0, 0), np.float32)
    vectors = np.stack([x[p : p + samples] for p in peaks])[:, :: _RATE // _VECTOR_RATE]
    vectors = vectors - vectors.mean(axis=1, keepdims=True)
    return peaks, vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _sorted(keys: _Keys, table: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(keys.keys[:, table], kind="stable").astype(np.int32)
    return order, keys.keys[order, table]


def _matches(ordered: list[tuple[np.ndarray, np.ndarray]], keys: _Keys) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of the known vectors and of `keys` with an equal key, once for each table in which it is."""
    for table, (order, known) in enumerate(ordered):
        wanted = keys.keys[:, table]
        low, high = np.searchsorted(known, wanted, "left"), np.searchsorted(known, wanted, "right")
        size = np.where(high - low <= _LARGEST_BUCKET, high - low, 0)
        ends = np.cumsum(size)
        for part in np.split(np.arange(len(size)), np.flatnonzero(np.diff(ends // _PAIRS_AT_ONCE)) + 1):
            j = np.repeat(part, size[part])
            rank = np.arange(len(j)) - np.repeat(np.cumsum(size[part]) - size[part], size[part])
            yield order[low[j] + rank], j


class _Comparison:
    """Compares recordings; band-limited signals are kept for a while, since candidates come in order."""

    def __init__(self, a: Store, b: Store):
        self._stores = (a, b)
        self._limited = lru_cache(maxsize=64)(self._read)  # of nights, half a gigabyte

    def _read(self, side: int, recording: int, channel: int) -> tuple[np.ndarray, np.ndarray] | None:
        """One channel at `_RATE`, and which of its samples stand for invalid ones."""
        store = self._stores[side]
        seconds = float(store.index.milliseconds[recording]) / 1000
        counts = dict(store.read_window(recording, 0.0, seconds))[channel]
        x = _limited(counts, channel, invalid=1.0)
        if x is None:
            return None
        at = np.minimum(np.arange(len(x)) * modality_of(channel).rate // _RATE, len(counts) - 1)
        return x, counts[at] == INVALID

    def _lengths(self, first: int, second: int) -> tuple[float, float]:
        """Seconds of both recordings."""
        a, b = self._stores
        return float(a.index.milliseconds[first]) / 1000, float(b.index.milliseconds[second]) / 1000

    def __call__(self, first: int, second: int, lag: float) -> float:
        """The least correlation over the common channels, the second recording `lag` seconds late; 0.0 if unlike."""
        one, other = (
            store.index.channel_sets[store.index.channel_set[recording]]
            for store, recording in zip(self._stores, (first, second))
        )
        least, lengths = 0.0, self._lengths(first, second)
        if min(lengths[0] + min(lag, 0.0), lengths[1] - max(lag, 0.0)) < min(_COMMON, _SHARE * min(lengths)):
            return 0.0
        late, most = round(lag * _RATE), int(_STRETCH * _RATE)
        # an anchor comes first: nearly every candidate fails on it, and is done with
        for channel in sorted(set(one) & set(other), key=lambda c: (c not in _ANCHORS, c)):
            read = self._limited(0, first, channel), self._limited(1, second, channel)
            if read[0] is None or read[1] is None:
                continue
            begin = slice(max(-late, 0), max(-late, 0) + most), slice(max(late, 0), max(late, 0) + most)
            (x, lost_x), (y, lost_y) = ((signal[s], lost[s]) for (signal, lost), s in zip(read, begin))
            if max(lost_x.mean(), lost_y.mean()) > _MOST_INVALID:  # what is put in their place is alike in anyone
                continue
            found = _correlation(x[_EDGE:-_EDGE], y[_EDGE:-_EDGE])
            if found < _ENOUGH:
                return 0.0
            least = min(least or found, found)
        return least


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """The largest normalised correlation within `_SLACK` samples of slack; its sign is left out."""
    best, n = 0.0, min(len(x), len(y)) - _SLACK
    if n < _SHORTEST * _RATE:
        return 0.0
    for shift in range(-_SLACK, _SLACK + 1):
        u, v = x[max(shift, 0) : n + min(shift, 0)], y[max(-shift, 0) : n + min(-shift, 0)]
        m = min(len(u), len(v))
        u, v = u[:m] - u[:m].mean(), v[:m] - v[:m].mean()
        best = max(best, abs(float(u @ v)) / max(float(np.linalg.norm(u) * np.linalg.norm(v)), 1e-12))
    return best
