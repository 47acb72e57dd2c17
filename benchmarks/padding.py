"""Training on packed rows against training on windows padded to the longest: windows a second of the same model.

Windows of four kinds, as hospitals, wearables and sleep laboratories record them, a quarter of their tokens visible.
Padded batches hold one window a row and are as long as the longest, since a compiled step has one shape. Both sides
compute the same model (csfm_nano's sizes) on the same windows; "all pairs" is padded training as usually written, with
attention over the whole padded row. Sides take turns, in the opposite order every second round; medians are compared.
"""

import dataclasses
import statistics
import time

import numpy as np

from data_pipelines import packing, windows
from data_pipelines.rows import RowWriter, empty_batch
from data_pipelines.signals import CHANNEL_ID, CHANNELS, MODALITIES

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
SLEEP = ("EEG C3", "EEG C4", "EOG left", "EOG right", "EMG chin")
KINDS = ((LEADS, 10), (("II", "PPG"), 10), (("PPG",), 10), (SLEEP, 30))  # channels and seconds
MIXTURES = {"hospital": (0.40, 0.25, 0.20, 0.15), "wearable": (0.10, 0.20, 0.60, 0.10)}
ROUNDS, BATCHES = 6, 3
ROW, ROWS, PADDED_ROWS = 1024, 4, 16
STEP = 0.5  # seconds of a token


def run(rounds: int = ROUNDS) -> list[tuple[str, float, str, str]]:
    """(name, value, unit, note) of each figure."""
    lines = []
    for name, shares in MIXTURES.items():
        drawn = draw(shares, ROWS * ROW // 20 * BATCHES, np.random.default_rng(0))
        sides = {
            "packed": Side(*packed(drawn), "auto"),
            "padded": Side(*padded(drawn), "auto"),
            "padded, all pairs": Side(*padded(drawn), "dense"),
        }
        speed = interleaved(sides, rounds)
        longest = max(tokens_of(kind) for kind in drawn)
        limit = longest / statistics.fmean(tokens_of(kind) for kind in drawn)
        lines.append((f"{name}: packed rows", speed["packed"], "windows/s", f"T {sides['packed'].fill:.1%} full"))
        for other in ("padded", "padded, all pairs"):
            note = (
                f"goal >= 3; {speed[other]:.0f} windows/s, T {sides[other].fill:.0%} full: {limit:.1f} by tokens alone"
            )
            lines.append((f"  packed over {other}", speed["packed"] / speed[other], "x", note))
    return lines


def draw(shares: tuple[float, ...], number: int, rng) -> list[int]:
    """Kinds of windows."""
    return rng.choice(len(KINDS), number, p=shares).tolist()


def tokens_of(kind: int) -> int:
    channels, seconds = KINDS[kind]
    return 1 + round(len(channels) * seconds / STEP)


def packed(drawn: list[int]):
    """Config and batches of full rows: those of a plan over all windows, so far as they fill whole batches."""
    config = config_of(ROWS, ROW, ROW // 20)
    sizes = np.array([(tokens_of(kind), _visible(tokens_of(kind)), 1) for kind in drawn], np.int32)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, row_visible=_row_visible(sizes)))
    plan = packing.plan(sizes, windows.capacities(config.tokens, config.data), 0, 0)
    rows = [plan.row_windows[a:b] for a, b in zip(plan.row_offsets, plan.row_offsets[1:])]
    return config, batches(config, [[drawn[i] for i in row] for row in rows])


def padded(drawn: list[int]):
    """Config and batches with a window a row."""
    longest = max(map(tokens_of, drawn))
    config = config_of(PADDED_ROWS, longest, 1)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, row_visible=_visible(longest)))
    return config, batches(config, [[kind] for kind in drawn])


def _visible(tokens: int) -> int:
    return 1 + round(0.25 * (tokens - 1))


def _row_visible(sizes) -> int:
    """What the average row needs, and a little more: short windows see a larger share, for their CLS."""
    return min(ROW, -(-int(1.02 * ROW * sizes[:, 1].sum() / sizes[:, 0].sum()) // 8) * 8)


def config_of(rows: int, row_tokens: int, row_windows: int):
    """csfm_nano's model for these sensors, tokens of half a second."""
    from csfm_jax import config as configs

    nano = configs.load("csfm_nano")
    modalities = ("ecg", "ppg", "eeg", "eog", "emg")
    patch = nano.tokens.patch | {name: round(STEP * MODALITIES[name].rate) for name in modalities}
    mask = dataclasses.replace(nano.data.mask, keep_signal=0.25, weights={"random": 1.0})
    data = dataclasses.replace(nano.data, rows=rows, row_tokens=row_tokens, row_windows=row_windows, mask=mask)
    tokens = dataclasses.replace(nano.tokens, modalities=modalities, patch=patch, text_length=0)
    return dataclasses.replace(nano, tokens=tokens, data=data)


def batches(config, rows: list[list[int]]) -> list:
    """The first BATCHES batches of rows, each row the kinds of its windows; noise in place of signals."""
    made, rng, size = [], np.random.default_rng(1), config.data.rows
    for begin in range(0, min(len(rows) - size + 1, BATCHES * size), size):
        batch = empty_batch(size, windows.capacities(config.tokens, config.data), config.tokens)
        for place, row in enumerate(rows[begin : begin + size]):
            writer = RowWriter(batch, place, config.tokens, config.data.mask, rng)
            for number, kind in enumerate(row):
                writer.add(_noise(kind, rng), np.zeros(0, np.int32), number)
        made.append(batch)
    return made


def _noise(kind: int, rng) -> list:
    channels, seconds = KINDS[kind]
    blocks = []
    for name in channels:
        number = CHANNEL_ID[name]
        rate = MODALITIES[CHANNELS[number].modality].rate
        blocks.append(((number,), rng.normal(size=(1, seconds * rate)).astype(np.float32)))
    return blocks


class Side:
    """A compiled step with its batches on the device.

    Attributes:
        fill: share of T that holds tokens. windows: of a turn, which is a step with each batch.
    """

    def __init__(self, config, made: list, attention: str):
        import jax

        from csfm_jax import sharding
        from csfm_jax.training.optimizer import learning_rate, make_optimizer
        from csfm_jax.training.state import blueprint
        from csfm_jax.training.step import make_train_step

        config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, attention=attention))
        mesh = sharding.make_mesh(config.mesh)
        optimizer = make_optimizer(config.optimizer, config.training.steps)
        plan = blueprint(config, optimizer, mesh)
        self.fill = float(np.mean([batch.channel != 0 for batch in made]))
        self.windows = int(sum((batch.window >= 0).sum() for batch in made))
        with sharding.use(mesh):
            self._batches = jax.device_put(made, sharding.batch_sharding(mesh))
            step = make_train_step(plan, optimizer, learning_rate(config.optimizer, config.training.steps), config)
            self._step = step.lower(plan.abstract, self._batches[0]).compile()
            self._state = plan.initial()

    def step(self) -> float:
        """The loss after a step with each batch."""
        for batch in self._batches:
            self._state, metrics = self._step(self._state, batch)
        return metrics.fetch().loss

    def turn(self) -> float:
        """Seconds of a step with each batch."""
        began = time.perf_counter()
        self.step()
        return time.perf_counter() - began


def interleaved(sides: dict[str, Side], rounds: int) -> dict[str, float]:
    """Windows a second of each side, by its median turn; the first turn of each is not counted."""
    seconds = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            seconds[name].append(sides[name].turn())
    return {name: sides[name].windows / statistics.median(found[1:]) for name, found in seconds.items()}
