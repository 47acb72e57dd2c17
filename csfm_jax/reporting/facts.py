"""What a store's report says, as plain numbers: gathered from manifest, index, tables and a sample of its windows."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from data_pipelines.preprocess import INVALID
from data_pipelines.quality import SEGMENT_SECONDS
from data_pipelines.signals import CHANNELS, modality_of
from data_pipelines.store import SPLITS, Store

_SAMPLED = 200  # recordings whose amplitudes are looked at
_DRAWN = 3  # windows of each kind
_WORDS = {
    "English": "the with and of normal is in rhythm otherwise left right",
    "German": "und der die das mit nicht normales lagetyp linkstyp ekg sonst",
    "Swedish": "och med för inte normalt vänster höger ej samt",
    "French": "le la les des avec rythme normal gauche droite pas",
    "Spanish": "el la los con ritmo izquierdo derecho sin del",
    "Portuguese": "com ritmo do da dos sem dentro esquerdo direito",
}


@dataclass(frozen=True)
class Drawn:
    """A window to draw: the recording's row, its start in seconds, and its quality (0 to 1; None = not measured)."""

    recording: int
    start: float
    quality: float | None


@dataclass(frozen=True)
class Facts:
    """One store's figures.

    Attributes:
        store: itself, for drawing. hours: modality -> hours. splits: split -> (recordings, subjects).
        seconds: [recordings]. rates: modality -> {Hz as recorded: channels}.
        names: rows of the manifest's channel table. missing: channel -> share of its samples that is invalid.
        amplitude: channel -> (5th, 50th, 95th percentile over recordings of the range that holds 98 % of a window's
            samples), in `unit` of the channel's modality.
        quality: modality -> [n] scores of channel segments. wrong: modality -> {measure: mean}.
        labels: label -> (positive, labelled) for classes; continuous: label -> (5th, 50th, 95th percentile, labelled).
        reports: how many; words: [reports] lengths; languages: language -> share.
        typical, worst: windows to draw.
    """

    store: Store
    hours: dict[str, float]
    splits: dict[str, tuple[int, int]]
    seconds: np.ndarray
    rates: dict[str, dict[str, int]]
    names: list[dict]
    missing: dict[str, float]
    amplitude: dict[str, tuple[float, float, float]]
    quality: dict[str, np.ndarray]
    wrong: dict[str, dict[str, float]]
    labels: dict[str, tuple[int, int]]
    continuous: dict[str, tuple[float, float, float, int]]
    reports: int
    words: np.ndarray
    languages: dict[str, float]
    typical: list[Drawn]
    worst: list[Drawn]


def gather(store: Store) -> Facts:
    """Reads a store's tables, and windows of at most `_SAMPLED` recordings."""
    index, measured = store.index, store.quality()
    hours: Counter = Counter()
    for number, channels in enumerate(index.channel_sets):
        length = float(index.seconds[index.channel_set == number].sum(dtype=np.float64)) / 3600
        hours.update({modality: length for modality in {modality_of(c).name for c in channels}})
    splits = {
        split: (int((index.split == i).sum()), len(np.unique(index.subject[index.split == i])))
        for i, split in enumerate(SPLITS)
    }
    labels, continuous = _labels(store)
    texts = [text for text in store.reports() if text]
    missing, quality, wrong = _quality(measured)
    typical, worst = _windows(store, measured)
    return Facts(
        store, dict(hours), splits, np.asarray(index.seconds), store.manifest.get("rates", {}),
        store.manifest.get("channels", []), missing, _amplitudes(store), quality, wrong, labels, continuous, len(texts),
        np.array([len(text.split()) for text in texts], int), _languages(texts), typical, worst,
    )  # fmt: skip


def _labels(store):
    classes, continuous = {}, {}
    for name, values in sorted(store.labels().items()):
        there = values[np.isfinite(values)]
        if not len(there):
            continue
        if np.isin(there, (0, 1)).all():
            classes[name] = (int(there.sum()), len(there))
        else:
            continuous[name] = (*(float(p) for p in np.percentile(there, (5, 50, 95))), len(there))
    return classes, continuous


def _quality(measured):
    missing, quality, wrong = {}, {}, {}
    for channel in np.unique(measured["channel"]):
        rows = measured["channel"] == channel
        missing[CHANNELS[channel].name] = float(measured["missing"][rows].mean() / 255)
        quality.setdefault(modality_of(int(channel)).name, []).append(rows)
    for modality, parts in quality.items():
        rows = np.any(parts, axis=0)
        quality[modality] = measured["quality"][rows] / 255
        names = ("missing", "flat", "clipped", "powerline", "baseline", "implausible")
        wrong[modality] = {name: float(measured[name][rows].mean() / 255) for name in names}
    return missing, quality, wrong


def _amplitudes(store):
    index = store.index
    chosen = np.random.default_rng(0).permutation(len(index))[:_SAMPLED]
    spans: dict[str, list[float]] = {}
    for recording in chosen:
        seconds = min(10.0, float(index.milliseconds[recording]) / 1000)
        for channel, counts in store.read_window(int(recording), 0.0, seconds):
            good = counts[counts != INVALID]
            if len(good) > 10:
                low, high = np.percentile(good, (1, 99))
                spans.setdefault(CHANNELS[channel].name, []).append((high - low) * modality_of(channel).step)
    return {name: tuple(np.percentile(values, (5, 50, 95))) for name, values in spans.items()}


def _languages(texts):
    found: Counter = Counter()
    sets = {language: set(words.split()) for language, words in _WORDS.items()}
    for text in texts:
        words = re.findall(r"[^\W\d_]+", text.lower())
        scores = {language: sum(word in known for word in words) for language, known in sets.items()}
        best = max(scores, key=scores.get)
        found[best if scores[best] else "not told"] += 1
    return {language: n / len(texts) for language, n in found.most_common()}


def _windows(store, measured) -> tuple[list[Drawn], list[Drawn]]:
    """Windows of middling quality, and the worst ones that still hold a signal, each of another recording."""
    index = store.index
    if not len(measured["quality"]):
        rows = np.linspace(0, len(index) - 1, _DRAWN).astype(int)
        return [Drawn(int(row), 0.0, None) for row in rows], []
    counts = np.maximum(-(-np.asarray(index.milliseconds) // (1000 * SEGMENT_SECONDS)), 1)
    first = np.concatenate([[0], np.cumsum(counts)])
    cell = first[measured["recording"]] + measured["segment"]
    number = np.maximum(np.bincount(cell, minlength=first[-1]), 1)
    mean = np.bincount(cell, measured["quality"], first[-1]) / number / 255
    absent = np.bincount(cell, measured["missing"], first[-1]) / number / 255
    recording = np.repeat(np.arange(len(index)), counts)
    start = (np.arange(first[-1]) - first[recording]) * SEGMENT_SECONDS
    # each recording gives one window of each kind
    order = np.lexsort((mean + 9 * (absent > 0.5), recording))
    lowest = order[np.unique(recording[order], return_index=True)[1]]
    ranked = lowest[np.argsort(mean[lowest], kind="stable")]
    ranked = ranked[absent[ranked] <= 0.5]

    def drawn(cells):
        return [Drawn(int(recording[c]), float(start[c]), float(mean[c])) for c in cells]

    middle = np.linspace(len(ranked) * 0.4, len(ranked) * 0.9, _DRAWN).astype(int) if len(ranked) else []
    return drawn(ranked[np.unique(np.minimum(middle, len(ranked) - 1))]), drawn(ranked[:_DRAWN])
