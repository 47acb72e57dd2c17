"""Small configs and hand-made packed batches for the model tests."""

import dataclasses

import jax
import numpy as np
from flax import nnx

from csfm_jax.config import Config
from csfm_jax.models.config import DecoderConfig, EncoderConfig
from data_pipelines.batch import TokenBatch
from data_pipelines.config import DataConfig, TokenConfig
from data_pipelines.signals import CHANNEL_ID, CLS, TEXT, modality_of


def small_config(**encoder) -> Config:
    """Width 32, depth 2; ECG (patch 25 = 0.1 s) and respiration (patch 10 = 0.4 s), 6 words of text."""
    patch = {**TokenConfig().patch, "ecg": 25, "resp": 10}
    return Config(
        tokens=TokenConfig(modalities=("ecg", "resp"), patch=patch, text_length=6, text_vocabulary=50),
        data=DataConfig(row_tokens=96, row_visible=64, row_windows=4),
        encoder=EncoderConfig(**{"width": 32, "depth": 2, "heads": 2, "head_dim": 16, "mlp": 48, **encoder}),
        decoder=DecoderConfig(width=24, depth=2, heads=2, head_dim=8, mlp=32),
    )


def built(make) -> tuple[nnx.GraphDef, nnx.State]:
    """A module's two parts, initialised as one compiled function: op by op takes ten times as long."""
    graphdef, _ = nnx.split(nnx.eval_shape(make))
    return graphdef, jax.jit(lambda: nnx.state(make()))()


@dataclasses.dataclass
class Window:
    """One window's tokens, CLS first: channel, time, text [n], patches [n, P], visible and target bool [n]."""

    channel: np.ndarray
    time: np.ndarray
    text: np.ndarray
    patches: np.ndarray
    visible: np.ndarray
    target: np.ndarray

    def take(self, order: np.ndarray) -> "Window":
        return Window(*(getattr(self, f.name)[order] for f in dataclasses.fields(self)))


def window(config: Config, channels: list[str], steps: int, words: int, rng, keep: float = 1.0) -> Window:
    """A random window: `steps` tokens of each channel, then `words` text tokens; a share `keep` visible."""
    channel, time = [CLS], [0.0]
    for name in channels:
        kind = modality_of(name)
        seconds = config.tokens.patch[kind.name] / kind.rate
        channel += [CHANNEL_ID[name]] * steps
        time += [(i + 0.5) * seconds for i in range(steps)]
    channel, time = channel + [TEXT] * words, time + list(range(words))
    channel, n = np.array(channel, np.int32), len(channel)
    longest = max(config.tokens.patch[m] for m in config.tokens.modalities)
    patches = rng.standard_normal((n, longest)).astype(np.float32)
    for i, c in enumerate(channel):
        kind = modality_of(int(c))
        patches[i, config.tokens.patch[kind.name] if kind else 0 :] = 0
    text = np.where(channel == TEXT, rng.integers(1, 40, n), 0).astype(np.int32)
    visible = rng.random(n) < keep
    visible[0] = True
    return Window(channel, np.array(time, np.float32), text, patches, visible, ~visible)


def pack(config: Config, rows: list[list[Window]]) -> TokenBatch:
    """Windows in rows, one after the other, with the config's capacities."""
    b, t, v, s = len(rows), config.data.row_tokens, config.data.row_visible, config.data.row_windows
    longest = max(config.tokens.patch[m] for m in config.tokens.modalities)
    batch = TokenBatch(
        patches=np.zeros((b, t, longest), np.float32),
        channel=np.zeros((b, t), np.int32),
        segment=np.zeros((b, t), np.int32),
        time=np.zeros((b, t), np.float32),
        text=np.zeros((b, t), np.int32),
        visible=np.full((b, v), t, np.int32),
        target=np.zeros((b, t), bool),
        labels=np.zeros((b, s, 0), np.float32),
        token_labels=np.full((b, t), -1, np.int32),
        window=np.full((b, s), -1, np.int32),
    )
    for row, windows in enumerate(rows):
        at = 0
        for number, one in enumerate(windows):
            place = (row, slice(at, at + len(one.channel)))
            for name in ("patches", "channel", "time", "text", "target"):
                getattr(batch, name)[place] = getattr(one, name)
            batch.segment[place], batch.window[row, number] = number + 1, number
            at += len(one.channel)
        seen = np.flatnonzero(np.concatenate([w.visible for w in windows])) if windows else []
        assert at <= t and len(seen) <= v, "the test's row is too small"
        batch.visible[row, : len(seen)] = seen
    return batch
