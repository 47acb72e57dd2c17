"""Frame tokens: one token = all channels of a modality at one instant, for backbones that need all leads at once.

A frame is made of the channel tokens of its instant, so both layouts hold the same samples, normalised alike and absent
alike. Of a modality with C channels (`windows.frame_channels`) and patch n, `patches` of a token holds C x n values,
sample by sample ([n, C], row after row: a window's frames joined end to end are its [time, C] array), then C presence
flags. A channel that has no valid patch at that instant, or was not recorded, has zeros and the flag 0: the flag says
"absent", never the zeros. Where no channel is there, there is no frame. A frame's `channel` is the modality's first
channel, which stands for the modality here (`batch.MODALITY_OF` needs no ids of its own for it).
"""

from collections.abc import Iterable, Iterator

import numpy as np

from data_pipelines.batch import MODALITY_OF, MODALITY_ROW
from data_pipelines.config import TokenConfig
from data_pipelines.signals import MODALITIES
from data_pipelines.windows import frame_channels


def join(
    channel_tokens: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], tokens: TokenConfig
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A window's channel tokens -> its frames, modality by modality in the config's order, ascending in time.

    Args:
        channel_tokens: of one window, as `rows.signal_tokens` yields them: channel ids int32 [k], patches float32
            [k, n], centre times float32 [k] in seconds.
        tokens: what is read.

    Yields:
        For each modality that is there: channel ids int32 [k], patches float32 [k, C x n + C], times float32 [k].
    """
    parts: dict[int, list] = {}
    for channel, patches, time in channel_tokens:
        modality = MODALITY_OF[channel]
        for row in np.unique(modality):  # a run holds all channels of one rate and patch: ECG and PPG, say
            mine = modality == row
            parts.setdefault(int(row), []).append((channel[mine], patches[mine], time[mine]))
    for name in tokens.modalities:
        if found := parts.get(MODALITY_ROW[name]):
            yield _frames(found, name, tokens)


def _frames(parts, name, tokens):
    patch, channels = tokens.patch[name], frame_channels(tokens, name)
    seconds = patch / MODALITIES[name].rate
    column = np.zeros(channels[-1] + 1, np.int32)
    column[list(channels)] = np.arange(len(channels))
    # the centre of the k-th patch is (k + 1/2) patches from the start
    placed = [(column[channel], (time / seconds).astype(np.int32), patches) for channel, patches, time in parts]
    count = 1 + max(int(instant.max()) for _, instant, _ in placed)
    values = np.zeros((count, patch, len(channels)), np.float32)
    there = np.zeros((count, len(channels)), bool)
    for at, instant, patches in placed:
        values[instant, :, at] = patches
        there[instant, at] = True
    some = there.any(axis=1).nonzero()[0]
    frames = np.concatenate([values[some].reshape(len(some), -1), there[some].astype(np.float32)], axis=1)
    time = ((some + 0.5) * seconds).astype(np.float32)
    return np.full(len(some), channels[0], np.int32), frames, time
