"""What goes into an encoder in use and what comes out: windows, embeddings, and plain arrays made into channels."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from csfm_jax.models.encoder import Encoded
from data_pipelines.errors import BadInput
from data_pipelines.recording import Recording
from data_pipelines.signals import TEXT


class Window(NamedTuple):
    """A stretch of one recording, ready to be cut into tokens.

    Attributes:
        start: seconds from the recording's beginning.
        channels: (channel id, samples [n] at its modality's rate, `preprocess.INVALID` where absent) each.
    """

    start: float
    channels: list[tuple[int, np.ndarray]]


@dataclass(frozen=True)
class Embedding:
    """What an encoder says about one recording.

    Attributes:
        pooled: [windows, D] float32, one vector a window.
        tokens: [n, D] float32, one vector a token, CLS and text tokens among them; windows one after the other.
        channel: n names ("CLS", "II", "PPG", "TEXT"). time: [n] float32, seconds from the recording's start to the
            patch's centre (index of a text token, window's start for CLS). window: [n] int, row of `pooled`.
        starts: [windows] float32, seconds from the recording's start. seconds: length of a window.
        report: one dict a given channel: "name", "channel" (standard name), "status" ("kept", "dropped"), "reason",
            "done" (what was resampled and filtered), "invalid" (share of samples); see `preprocess.PreparedRecording`.
    """

    pooled: np.ndarray
    tokens: np.ndarray
    channel: tuple[str, ...]
    time: np.ndarray
    window: np.ndarray
    starts: np.ndarray
    seconds: float
    report: list[dict]

    @property
    def embedding(self) -> np.ndarray:
        """[D], the mean of `pooled` over the windows: one vector for the whole recording."""
        return self.pooled.mean(axis=0)


def window_of(encoded: Encoded, row: int, window: Window) -> tuple:
    """(window, pooled [D], channel ids, times, tokens [n, D]) of a row that holds one window."""
    there = encoded.segment[row] > 0
    channel = encoded.channel[row][there]
    time = encoded.time[row][there] + np.where(channel == TEXT, 0, window.start)
    return (
        window,
        encoded.pooled[row, 0],
        channel,
        time.astype(np.float32),
        encoded.tokens[row][there].astype(np.float32),
    )


def given_channels(signal, rate, channels, unit, mains) -> tuple[list[tuple], float | None]:
    """The arguments of `embed` as those of `preprocess.prepare`."""
    if isinstance(signal, Recording):
        return [(c.name, c.rate, c.unit, c.start, c.signal) for c in signal.channels], mains or signal.mains
    if rate is None or channels is None:
        raise BadInput("embed", "no rate or no channel names", "both, for a plain array", "give rate= and channels=")
    if isinstance(channels, str):
        channels = [channels]
    try:
        rows = [np.asarray(row, np.float32) for row in signal]
    except (TypeError, ValueError):
        rows = []
    if len(rows) != len(channels) or not rows or any(row.ndim != 1 for row in rows):
        found = f"{len(channels)} channel names for a signal of shape {np.shape(signal) if rows else '?'}"
        raise BadInput("signal", found, "[channels, samples], one name a row", "transpose it or name every row")
    rates = [rate] * len(rows) if np.ndim(rate) == 0 else list(rate)
    units = [unit] * len(rows) if isinstance(unit, str) else list(unit)
    for name, values in (("rate", rates), ("unit", units)):
        if len(values) != len(rows):
            raise BadInput(
                name, f"{len(values)} values for {len(rows)} channels", "one, or one a channel", "complete it"
            )
    if not all(np.isfinite(r) and r > 0 for r in rates):
        raise BadInput("rate", "a rate of 0 or less", "Hz above 0", "correct the rate")
    return [(n, float(r), u, 0.0, row) for n, r, u, row in zip(channels, rates, units, rows)], mains
