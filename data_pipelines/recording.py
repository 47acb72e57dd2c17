"""Recording: what every reader returns and everything downstream takes."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Channel:
    """One sensor's samples in physical units.

    Attributes:
        name: as recorded ("MLII", "PLETH"); `signals.standard_name` maps it to the vocabulary.
        rate: Hz, its own.
        unit: as recorded ("mV", "uV", "NU", "mmHg", ...).
        signal: float32 [samples], NaN where invalid.
        start: seconds after the recording's beginning.
    """

    name: str
    rate: float
    unit: str
    signal: np.ndarray
    start: float = 0.0

    @property
    def seconds(self) -> float:
        return len(self.signal) / self.rate


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
    """

    channels: tuple[Channel, ...]
    subject: str
    study: str
    source: str
    report: str | None = None
    labels: dict[str, float] = field(default_factory=dict)
    split: str = ""
    mains: float | None = None

    @property
    def seconds(self) -> float:
        """From the first channel's first sample to the last channel's last one."""
        return max((c.start + c.seconds for c in self.channels), default=0.0)
