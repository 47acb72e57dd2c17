"""Which channels and modalities a model knows: lookups from a batch's channel ids, fixed when the model is built."""

import functools
from dataclasses import dataclass

import numpy as np

from data_pipelines.config import TokenConfig
from data_pipelines.signals import CHANNELS, CSFM_CHANNELS


@dataclass(frozen=True)
class Vocabulary:
    """The model's slice of the channel vocabulary. Hashable, as jit wants of static parts.

    Attributes:
        channels: channel ids in the order of the embedding's rows.
        modalities: names, in the config's order. patches: samples of one token of each.
        text_length, text_vocabulary: as in `TokenConfig`.
    """

    channels: tuple[int, ...]
    modalities: tuple[str, ...]
    patches: tuple[int, ...]
    text_length: int
    text_vocabulary: int

    @classmethod
    def of(cls, tokens: TokenConfig) -> "Vocabulary":
        every = tuple(c.id for c in CHANNELS if c.modality in tokens.modalities)
        return cls(
            channels=CSFM_CHANNELS if tokens.channels == "csfm" else every,
            modalities=tuple(tokens.modalities),
            patches=tuple(tokens.patch[m] for m in tokens.modalities),
            text_length=tokens.text_length,
            text_vocabulary=tokens.text_vocabulary if tokens.text_length else 0,
        )

    @property
    def longest_patch(self) -> int:
        return max(self.patches)

    @functools.cached_property
    def row_of_channel(self) -> np.ndarray:
        """[channel ids] row of the channel embedding; one past the end for ids that the model does not know."""
        rows = np.full(len(CHANNELS), len(self.channels), np.int32)
        rows[list(self.channels)] = np.arange(len(self.channels))
        return rows

    @functools.cached_property
    def modality_of_channel(self) -> np.ndarray:
        """[channel ids] index into `modalities`; -1 for PAD, CLS, TEXT and modalities that the model does not know."""
        index = {m: i for i, m in enumerate(self.modalities)}
        return np.array([index.get(c.modality, -1) for c in CHANNELS], np.int32)
