"""Recording: what every reader returns and everything downstream takes."""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np


class Channel(NamedTuple):
    """One sensor's samples in physical units.

    Attributes:
        name: as recorded ("MLII", "PLETH"); `signals.standard_name` maps it to the vocabulary.
        rate: Hz, its own.
        unit: as recorded ("mV", "uV", "NU", "mmHg", ...).
        signal: float32 [samples], NaN where invalid.
        start: seconds after the recording's beginning.
        derived: computed from other channels of the recording, not measured.
    """

    name: str
    rate: float
    unit: str
    signal: np.ndarray
    start: float = 0.0
    derived: bool = False

    @property
    def seconds(self) -> float:
        return len(self.signal) / self.rate


@dataclass(frozen=True)
class Event:
    """Something that the source says about a moment or a stretch: a beat, a sleep stage, an apnoea.

    Attributes:
        time: seconds after the recording's beginning. seconds: how long it lasts, 0 for a moment.
        code: of a fixed set that the format or the dataset defines ("N", "V", "Sleep stage 2"); never free text, which
            may name a person.
    """

    time: float
    seconds: float
    code: str


@dataclass(frozen=True)
class Recording:
    """Channels recorded together from one subject.

    Attributes:
        channels: in the file's order; rates, units and starts may differ.
        subject: id within the source; hashed before anything is written. Equal for all recordings of one person.
        study: id of the recording within the source.
        source: the dataset's name.
        report: free text, or None.
        labels: name -> value; multi-label classes are 0/1 under "group/CLASS" ("superclass/NORM"), NaN = not labelled.
        split: "train", "validation", "test", or "" where the source has no official split.
        mains: powerline frequency of the place of recording in Hz, or None if not known.
        events: in order of time.
        comments: free text lines of the file's header; datasets read labels from them, and nothing else keeps them.
    """

    channels: tuple[Channel, ...]
    subject: str
    study: str
    source: str
    report: str | None = None
    labels: dict[str, float] = field(default_factory=dict)
    split: str = ""
    mains: float | None = None
    events: tuple[Event, ...] = ()
    comments: tuple[str, ...] = field(default=(), repr=False)

    @property
    def seconds(self) -> float:
        """From the first channel's first sample to the last channel's last one."""
        return max((c.start + c.seconds for c in self.channels), default=0.0)

    def until(self, seconds: float) -> "Recording":
        """The recording up to a moment: later samples, channels and events are left out, events under way end there."""
        kept = (
            c._replace(signal=c.signal[: max(0, math.ceil((seconds - c.start) * c.rate - 1e-6))]) for c in self.channels
        )
        events = (replace(e, seconds=min(e.seconds, seconds - e.time)) for e in self.events if e.time < seconds)
        return replace(self, channels=tuple(c for c in kept if len(c.signal)), events=tuple(events))
