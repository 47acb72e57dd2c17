"""Do two stores share people? By subject where hashes can be compared, by signal in any case.

A signal's fingerprint must survive another sampling rate, other filters, a gain and a shift. Each stretch is brought to
one band and one rate; wherever it has a peak, the three seconds that follow are one vector, which therefore does not
know where the recording began. Vectors of near-equal direction fall into one bucket of a hash of random hyperplanes
(Charikar 2002), so that finding candidates is a sort and not a comparison of all pairs; every candidate is then
compared over its whole common length, on every channel that both have.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

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
_LARGEST_BUCKET = 256  # what so many stretches share (a flat line, a pacemaker's beat) tells nothing
_STRETCH, _EVERY = 20.0, 60.0  # seconds that are looked at, from so many seconds on again
_SHORTEST = 5.0  # seconds in common
_SLACK = 10  # samples by which two peaks may lie apart
_VOTES, _LAGS = 3, 4  # peaks and tables that must agree on a lag; lags that are tried
_EDGE = 50  # samples at both ends where filters of different beginnings differ
_ENOUGH = 0.97


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
    same = a.digest == b.digest
    keys_a = _keys(a, progress)
    keys_b = keys_a if same else _keys(b, progress)
    hits: dict[tuple[int, int], dict[int, list[float]]] = {}
    for table in range(_TABLES):
        for i, j in _matches(keys_a, keys_b, table):
            first, second = int(keys_a.recording[i]), int(keys_b.recording[j])
            if same and first >= second:
                continue
            lag = float(keys_b.time[j] - keys_a.time[i])
            hits.setdefault((first, second), {}).setdefault(round(lag * _RATE / _SLACK), []).append(lag)
    compare = _Comparison(a, b)
    pairs = []
    for (first, second), votes in sorted(hits.items()):
        # a steady rhythm fits at every beat: the true lag is where most peaks agree
        likely = sorted((v for v in votes.values() if len(v) >= _VOTES), key=len, reverse=True)[:_LAGS]
        tried = [(compare(first, second, lag), lag) for lag in (float(np.median(v)) for v in likely)]
        best = max(tried, default=(0.0, 0.0))
        if best[0] >= _ENOUGH:
            pairs.append(Pair(first, second, *best))
    return pairs


@dataclass(frozen=True)
class _Keys:
    """One row a vector: the recording, seconds from its start to the peak, the anchor channel, a key a table."""

    recording: np.ndarray
    time: np.ndarray
    channel: np.ndarray
    keys: np.ndarray


def _keys(store: Store, progress) -> _Keys:
    rows: list[tuple[int, int, np.ndarray, np.ndarray]] = []
    planes = _planes()
    weights = (1 << np.arange(_BITS)).astype(np.int64)
    for recording in range(len(store.index)):
        for channel, start, x in _stretches(store, recording):
            peaks, vectors = _vectors(x, modality_of(channel).name)
            if len(peaks):
                bits = (vectors @ planes).reshape(len(peaks), _TABLES, _BITS) > 0
                rows.append((recording, channel, start + peaks / _RATE, bits @ weights))
        progress(1)
    if not rows:
        return _Keys(np.zeros(0, np.int32), np.zeros(0), np.zeros(0, np.int16), np.zeros((0, _TABLES), np.int64))
    counts = [len(times) for _, _, times, _ in rows]
    return _Keys(
        np.repeat(np.array([r[0] for r in rows], np.int32), counts), np.concatenate([r[2] for r in rows]),
        np.repeat(np.array([r[1] for r in rows], np.int16), counts), np.concatenate([r[3] for r in rows]),
    )  # fmt: skip


def _planes() -> np.ndarray:
    samples = int(_VECTOR_SECONDS * _VECTOR_RATE)
    return np.random.default_rng(20260101).normal(size=(samples, _TABLES * _BITS)).astype(np.float32)


def _stretches(store: Store, recording: int) -> Iterator[tuple[int, float, np.ndarray]]:
    """(anchor channel, start in seconds, band-limited signal at `_RATE`) of every stretch that is looked at."""
    channels = store.index.channel_sets[store.index.channel_set[recording]]
    anchors = [channel for channel in _ANCHORS if channel in channels] or list(channels[:2])
    length = float(store.index.milliseconds[recording]) / 1000
    for start in np.arange(0.0, max(length - _SHORTEST, 0.0) + 1e-9, _EVERY):
        window = dict(store.read_window(recording, float(start), min(_STRETCH, length - start)))
        for channel in anchors:
            x = _limited(window[channel], channel)
            if x is not None:
                yield channel, float(start), x


def _limited(counts: np.ndarray, channel: int) -> np.ndarray | None:
    """int16 at the modality's rate -> float32 at `_RATE`, band-limited; None where much is invalid."""
    modality = modality_of(channel)
    if modality.rate < 2 * _OTHER_BAND[0] or len(counts) < _SHORTEST * modality.rate:
        return None
    bad = counts == INVALID
    if bad.mean() > 0.2:
        return None
    x = np.where(bad, np.median(counts[~bad]), counts).astype(np.float64)
    x = dsp.resample_poly(x, _RATE, modality.rate, padtype="line")
    low, high = _BANDS.get(modality.name, _OTHER_BAND)
    sections = dsp.butter(2, (low, min(high, 0.45 * modality.rate)), "bandpass", fs=_RATE, output="sos")
    y = dsp.sosfiltfilt(sections, x)
    return y.astype(np.float32) if np.abs(y).max() > 0 else None


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


def _matches(a: _Keys, b: _Keys, table: int) -> Iterator[tuple[int, int]]:
    """Pairs of rows with equal channel and key in one table."""
    key_a = a.keys[:, table] | a.channel.astype(np.int64) << _BITS
    key_b = b.keys[:, table] | b.channel.astype(np.int64) << _BITS
    order = np.argsort(key_b, kind="stable")
    ordered = key_b[order]
    low, high = np.searchsorted(ordered, key_a, "left"), np.searchsorted(ordered, key_a, "right")
    for i in np.flatnonzero((high > low) & (high - low <= _LARGEST_BUCKET)):
        for j in order[low[i] : high[i]]:
            yield int(i), int(j)


class _Comparison:
    """Compares whole recordings; band-limited signals are kept for a while, since candidates come in order."""

    def __init__(self, a: Store, b: Store):
        self._stores = (a, b)
        self._limited = lru_cache(maxsize=4096)(self._read)

    def _read(self, side: int, recording: int, channel: int) -> np.ndarray | None:
        """The first minute at most of one channel, at `_RATE`."""
        store = self._stores[side]
        seconds = min(float(store.index.milliseconds[recording]) / 1000, _EVERY + _STRETCH)
        return _limited(dict(store.read_window(recording, 0.0, seconds))[channel], channel)

    def __call__(self, first: int, second: int, lag: float) -> float:
        """The least correlation over the common channels, the second recording `lag` seconds late; 0.0 if unlike."""
        one, other = (
            store.index.channel_sets[store.index.channel_set[recording]]
            for store, recording in zip(self._stores, (first, second))
        )
        least = 0.0
        # an anchor comes first: nearly every candidate fails on it, and is done with
        for channel in sorted(set(one) & set(other), key=lambda c: (c not in _ANCHORS, c)):
            x, y = self._limited(0, first, channel), self._limited(1, second, channel)
            if x is None or y is None:
                continue
            late = round(lag * _RATE)
            found = _correlation(x[max(-late, 0) + _EDGE : -_EDGE], y[max(late, 0) + _EDGE : -_EDGE])
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
