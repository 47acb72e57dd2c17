"""Which windows an epoch consists of, and how many tokens each will have: a function of index, config, seed, epoch.

Starts lie on a grid of 1/25 s, on which every modality but SpO2 (1 Hz, off by half a second at most) has a sample; so
channels of different rates stay aligned. A recording that is longer than a window gives `floor(length / window)`
of them, at most `most_per_recording`: with random starts, window i of n starts anywhere in the i-th n-th of the
possible starts, so that an epoch covers the whole recording and epochs differ. Windows whose outputs are averaged
(`window.crops`) may overlap: begun at different parts of a token, they say more than one.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from data_pipelines import masking
from data_pipelines.batch import MODALITY_OF, MODALITY_ROW
from data_pipelines.config import DataConfig, TokenConfig, WindowConfig
from data_pipelines.errors import BadInput
from data_pipelines.quality import window_quality
from data_pipelines.signals import CSFM_CHANNELS, MODALITIES
from data_pipelines.store import SPLITS

GRID = 25  # starts per second


@dataclass(frozen=True)
class EpochWindows:
    """An epoch's window table, one row a window, ordered by store and recording.

    Attributes:
        store: int16, position in the list of stores. recording: int32, row of that store's index.
        start: float64, seconds, a multiple of 1 / GRID (float32 would lose the grid after three days).
        seconds: float32, length.
        signal_tokens, text_tokens: int32, upper bounds. tokens: with CLS. visible: what may stay visible, with CLS.
        group: int32, ascending; windows of one group share a row.
        skipped: what was passed over -> how many: recordings that gave no window, windows by their quality.
    """

    store: np.ndarray
    recording: np.ndarray
    start: np.ndarray
    seconds: np.ndarray
    signal_tokens: np.ndarray
    text_tokens: np.ndarray
    visible: np.ndarray
    group: np.ndarray
    skipped: dict[str, int]

    def __len__(self) -> int:
        return len(self.store)

    @property
    def tokens(self) -> np.ndarray:
        return self.signal_tokens + self.text_tokens + np.int32(1)

    def sizes(self) -> np.ndarray:
        """int32 [windows, 3]: tokens, visible tokens, 1; what `packing.plan` takes where groups are single windows."""
        sizes = np.ones((len(self), 3), np.int32)
        sizes[:, 0], sizes[:, 1] = self.tokens, self.visible
        return sizes

    def group_starts(self) -> np.ndarray:
        """int64 [groups + 1]: the first window of each group, and the number of windows."""
        first = np.flatnonzero(np.diff(self.group, prepend=-1))
        return np.append(first, len(self))


def samples_in(seconds, rate: int):
    """Samples of a stretch, rounded half up in float64: the one rule for planning and reading."""
    return np.floor(np.asarray(seconds, np.float64) * rate + 0.5).astype(np.int64)


def used_channels(tokens: TokenConfig) -> np.ndarray:
    """bool [channel vocabulary]: what `tokens.modalities` and `tokens.channels` let in.

    Raises:
        BadInput: an unknown modality, channel set or patch length.
    """
    if not tokens.modalities or len(set(tokens.modalities)) < len(tokens.modalities):
        raise BadInput(
            "config.tokens.modalities", "none, or one of them twice", "different ones of " + ", ".join(MODALITIES),
            "correct the config",
        )  # fmt: skip
    for name in tokens.modalities:
        if name not in MODALITIES:
            raise BadInput("config.tokens.modalities", repr(name), "some of " + ", ".join(MODALITIES), "correct it")
        if tokens.patch.get(name, 0) < 1:
            raise BadInput(
                f"config.tokens.patch.{name}",
                "no length" if name not in tokens.patch else str(tokens.patch[name]),
                "one sample or more",
                f"set it, for example to {MODALITIES[name].patch}",
            )
    if tokens.channels not in ("all", "csfm"):
        raise BadInput("config.tokens.channels", repr(tokens.channels), '"all" or "csfm"', "correct the config")
    if tokens.layout not in ("channel", "frame"):
        raise BadInput("config.tokens.layout", repr(tokens.layout), '"channel" or "frame"', "correct the config")
    wanted = np.isin(MODALITY_OF, [MODALITY_ROW[name] for name in tokens.modalities])
    if tokens.channels == "csfm":
        wanted &= np.isin(np.arange(len(wanted)), CSFM_CHANNELS)
    return wanted


def capacities(tokens: TokenConfig, data: DataConfig) -> tuple[int, int, int]:
    """(T, V, S) of a row; `row_visible` 0 becomes the least V that can never bind."""
    # beyond its share of T a window may show: its CLS, one signal token at least, half a text token of rounding, and
    # the text that is kept more willingly than signals
    spare = tokens.text_length * max(0.0, data.mask.keep_text - data.mask.keep_signal) + 0.5 * (tokens.text_length > 0)
    free = np.ceil(data.mask.keep_signal * data.row_tokens + data.row_windows * (2 + spare))
    return data.row_tokens, data.row_visible or min(int(free), data.row_tokens), data.row_windows


def row_length(longest: int, row_windows: int = 1) -> int:
    """Tokens of a row that has to hold windows of up to `longest` tokens: the next multiple of 32.

    Few lengths, so that recordings of one kind share a compiled program, and little padding: attention kernels that
    want multiples of 128 pad for themselves, and the other layers need not. Where several windows may share a row it
    has 128 at least, so that short ones do.
    """
    return max(-(-int(longest) // 32) * 32, 128 if row_windows > 1 else 0)


def check(tokens: TokenConfig, data: DataConfig) -> None:
    """Refuses configs that no store can satisfy; `masking.check` does the masks.

    Raises:
        BadInput: naming the field.
    """
    used_channels(tokens)
    least = {"rows": 1, "row_tokens": 2, "row_visible": 0, "row_windows": 1, "seed": 0, "workers": 0}
    bounds = [(f"data.{name}", getattr(data, name), bound) for name, bound in least.items()]
    for name, value, bound in [*bounds, ("tokens.text_length", tokens.text_length, 0)]:
        if value < bound:
            raise BadInput(f"config.{name}", str(value), f"{bound} or more", "correct the config")
    if not 0 <= data.quality_minimum < 1:
        raise BadInput("config.data.quality_minimum", f"{data.quality_minimum:g}", "0 to below 1", "correct the config")
    data.augment.check("config.data.augment")
    window = data.window
    if not np.isfinite(window.seconds):
        raise BadInput("config.data.window.seconds", f"{window.seconds:g}", "a length", "correct the config")
    if not 0 < window.minimum_seconds <= window.seconds:
        raise BadInput(
            "config.data.window.minimum_seconds",
            f"{window.minimum_seconds:g}",
            f"above 0 and at most window.seconds ({window.seconds:g})",
            "correct the config",
        )
    if window.begin < 0 or (window.end and window.end - window.begin < window.minimum_seconds):
        found = f"{window.begin:g} to {window.end:g} s"
        expected = f"0 or later, and {window.minimum_seconds:g} s or more (minimum_seconds) up to an end"
        raise BadInput("config.data.window.begin", found, expected, "correct the config")
    if window.crops < 0:
        raise BadInput("config.data.window.crops", str(window.crops), "0 or more", "correct the config")
    if window.most_per_recording < 1:
        raise BadInput("config.data.window.most_per_recording", str(window.most_per_recording), "1 or more", "raise it")
    for name, weight in data.weights.items():
        if not 0 <= weight < np.inf:
            raise BadInput(f"config.data.weights.{name}", f"{weight:g}", "0 or more", "correct the config")


def epoch_windows(
    stores,
    tokens: TokenConfig,
    data: DataConfig,
    split: str,
    epoch: int,
    text_counts: list[np.ndarray] | None = None,
    taken: list[np.ndarray] | None = None,
) -> EpochWindows:
    """The windows of one epoch.

    Args:
        stores: `store.Store`s; only `.name`, `.index` and, if the config asks for it, `.quality()` are used.
        tokens, data: what is read and how much of it.
        split: "train", "validation" or "test"; windows of other subjects never appear.
        epoch: with `data.seed`, decides starts and the fractional part of mixture weights.
        text_counts: for each store, int [recordings], text tokens of each report (0 = none). None plans
            `tokens.text_length` for every recording that has a report.
        taken: for each store, bool [recordings], which are read; None = all.

    Raises:
        BadInput: no window at all, or a mixture weight for a store that is not there.
    """
    check(tokens, data)
    if unknown := set(data.weights) - {store.name for store in stores}:
        raise BadInput(
            f"config.data.weights.{min(unknown)}",
            "a weight for a store that is not read",
            "names of " + ", ".join(sorted({store.name for store in stores})),
            "correct the name or remove the weight",
        )
    skipped = {"recordings shorter than the minimum": 0, "recordings without a channel of the config": 0}
    skipped |= {} if taken is None else {"recordings without a label": 0}
    skipped |= {"windows of too little quality": 0, "windows not drawn, by their quality": 0}
    parts = []
    for position, store in enumerate(stores):
        counts = None if text_counts is None else text_counts[position]
        weight = data.weights.get(store.name, 1.0)
        if weight == 0:
            continue
        ours = store.index.split == SPLITS.index(split)
        if taken is not None:
            skipped["recordings without a label"] += int(np.count_nonzero(ours & ~taken[position]))
            ours = ours & taken[position]
        tables = _store_windows(store.index, position, weight, tokens, data, ours, epoch, counts, skipped)
        if split == "train" and (data.quality_minimum or data.quality_weight):  # evaluation leaves nothing out
            tables = _good_enough(store, tables, data, epoch, position, skipped)
        parts += tables
    columns = [np.concatenate(column) if parts else np.zeros(0) for column in zip(*parts)]
    if not parts or not len(columns[0]):
        raise BadInput(
            "config.data",
            f"no window of {split} subjects ({', '.join(f'{n} {what}' for what, n in skipped.items())})",
            "at least one",
            "check the stores with `csfm data`, data.weights, data.window.minimum_seconds and tokens.modalities",
        )
    store, recording, start, seconds, signal, text = columns
    visible = masking.signal_budget(signal, data.mask) + masking.text_budget(text, data.mask) + np.int32(1)
    for position, one in enumerate(stores):
        if hasattr(one, "given_index"):  # `pairs.Pairs`: what is given is seen, and nothing else
            here = np.flatnonzero(store == position)
            lengths = np.zeros(len(one.index), np.float32)
            lengths[recording[here]] = seconds[here]
            visible[here] = signal_tokens(one.given_index, lengths, tokens)[recording[here]] + 1
    group = np.arange(len(store), dtype=np.int32)
    return EpochWindows(store, recording, start, seconds, signal, text, visible, group, skipped)


def _store_windows(index, position, weight, tokens, data, ours, epoch, text_counts, skipped):
    """One table (store, recording, start, seconds, signal tokens, text tokens) for each pass over the store."""
    window = data.window
    milliseconds = _usable_milliseconds(index, window)
    seconds = (milliseconds / 1000).astype(np.float32)
    long_enough = seconds >= np.float32(window.minimum_seconds)
    length = np.minimum(seconds, np.float32(window.seconds))
    signal = signal_tokens(index, length, tokens)
    skipped["recordings shorter than the minimum"] += int(np.count_nonzero(ours & ~long_enough))
    skipped["recordings without a channel of the config"] += int(np.count_nonzero(ours & long_enough & (signal == 0)))
    taken = np.flatnonzero(ours & long_enough & (signal > 0)).astype(np.int32)
    each = _windows_of(milliseconds[taken], window)
    if not tokens.text_length:
        text = np.zeros(len(seconds), np.int32)
    elif text_counts is None:
        text = np.where(index.has_report, tokens.text_length, 0).astype(np.int32)
    else:
        text = np.minimum(text_counts, tokens.text_length).astype(np.int32)
    row = np.repeat(np.arange(len(taken), dtype=np.int32), each)
    rank = np.arange(len(row), dtype=np.int32) - np.repeat((np.cumsum(each) - each).astype(np.int32), each)
    tables = []
    for turn in range(int(np.ceil(weight))):
        rng = np.random.Generator(np.random.PCG64([0x517A, data.seed, epoch, position, turn]))
        chosen, which = row, rank
        if turn + 1 > weight:  # the fractional last pass
            some = np.sort(rng.permutation(len(row))[: round((weight - turn) * len(row))])
            chosen, which = row[some], rank[some]
        recording = taken[chosen]
        start = _starts(milliseconds[recording], each[chosen], which, window, rng)
        start += np.ceil(window.begin * GRID) / GRID
        tables.append(
            (
                np.full(len(recording), position, np.int16),
                recording,
                start,
                length[recording],
                signal[recording],
                text[recording],
            )
        )
    return tables


def _usable_milliseconds(index, window) -> np.ndarray:
    """int64 [recordings]: of the stretch that windows may lie in; integers, as float32 cannot say those of days."""
    last = np.asarray(index.milliseconds, np.int64)
    if window.end:
        last = np.minimum(last, int(window.end * 1000))
    return np.maximum(0, last - int(np.ceil(window.begin * GRID) * 1000 / GRID))


def _good_enough(store, tables, data, epoch, position, skipped):
    """The tables without windows of too little quality, or with windows drawn by it."""
    measured = store.quality()
    rows = measured["recording"], measured["segment"], measured["quality"]
    kept = []
    for turn, table in enumerate(tables):
        _, recording, start, seconds, _, _ = table
        score = window_quality(*rows, store.index.milliseconds, recording, start, seconds)
        taken = score >= data.quality_minimum
        skipped["windows of too little quality"] += int(np.count_nonzero(~taken))
        if data.quality_weight:
            rng = np.random.Generator(np.random.PCG64([0x9A11, data.seed, epoch, position, turn]))
            drawn = rng.random(len(score), dtype=np.float32) < score
            skipped["windows not drawn, by their quality"] += int(np.count_nonzero(taken & ~drawn))
            taken &= drawn
        kept.append(tuple(column[taken] for column in table))
    return kept


def _windows_of(milliseconds: np.ndarray, window: WindowConfig) -> np.ndarray:
    """int32 [recordings]: windows in usable stretches of so many milliseconds."""
    lengths = milliseconds / 1000 / window.seconds
    each = np.floor(lengths + 1e-6)
    if window.crops and not window.random_start:
        # of a stretch that is longer than a window by some grid points, no start is taken twice
        spare = np.floor((milliseconds / 1000 - window.seconds) * GRID + 1e-6)
        each = np.minimum(np.maximum(window.crops, np.ceil(lengths - 1e-6)), spare + 1)
    return np.clip(each, 1, window.most_per_recording).astype(np.int32)


def _starts(milliseconds, each, rank, window, rng):
    """float64 starts on the grid, never so late that the window would leave the recording."""
    seconds = np.asarray(milliseconds) / 1000  # float32 would miss points of the grid
    length = np.minimum(seconds, window.seconds)
    spare = (seconds - length) * GRID
    last = np.maximum(0, np.floor(spare + 1e-6))  # grid point that a start may take
    if window.random_start:
        step = (rank + rng.random(len(rank))) / each * (last + 1)
    elif window.crops:
        step = rank * np.maximum(0, spare) / np.maximum(1, each - 1) + 1e-6
    else:
        step = rank * length * GRID + 1e-6
    return np.minimum(np.floor(step), last) / GRID


def fixed_starts(window: WindowConfig, seconds: float) -> tuple[np.ndarray, float]:
    """Starts [n] and length, both seconds, of the windows that a recording of so many seconds has in an epoch whose
    starts are not random."""
    fixed = dataclasses.replace(window, random_start=False)
    begin = np.ceil(window.begin * GRID) / GRID
    usable = (min(seconds, window.end or seconds) - begin) * 1000
    each = _windows_of(np.full(1, usable), fixed)
    return begin + _starts(usable, each, np.arange(each[0]), fixed, None), min(window.seconds, usable / 1000)


def signal_tokens(index, seconds: np.ndarray, tokens: TokenConfig) -> np.ndarray:
    """int32 [recordings]: tokens of a window of the given length, if every sample is valid."""
    wanted = used_channels(tokens)
    total = np.zeros(len(seconds), np.int32)
    for name in tokens.modalities:
        row = MODALITY_ROW[name]
        in_set = [sum(MODALITY_OF[c] == row and wanted[c] for c in channels) for channels in index.channel_sets]
        of_recording = np.asarray(in_set, np.int32)[index.channel_set] if in_set else 0
        if tokens.layout == "frame":  # all channels of an instant are one token
            of_recording = np.minimum(of_recording, 1)
        per_channel = samples_in(seconds, MODALITIES[name].rate) // tokens.patch[name]
        total += of_recording * per_channel.astype(np.int32)
    return total


def frame_channels(tokens: TokenConfig, modality: str) -> tuple[int, ...]:
    """Channel ids of a modality that the config lets in, ascending: the columns of its frames."""
    return tuple(np.flatnonzero(used_channels(tokens) & (MODALITY_OF == MODALITY_ROW[modality])).tolist())


def longest_patch(tokens: TokenConfig) -> int:
    """P: values of the longest token among the modalities that are read; of frames, samples and presence flags."""
    if tokens.layout == "frame":
        return max((tokens.patch[name] + 1) * len(frame_channels(tokens, name)) for name in tokens.modalities)
    return max(tokens.patch[name] for name in tokens.modalities)
