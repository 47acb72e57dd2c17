"""What is hidden from the encoder and what the objective predicts, for one window at a time.

Structure hides first (whole channels, blocks of time, whole modalities); random hiding then goes on down to the
budget. If structure hid more than the budget allows, nothing is un-hidden. Text is hidden at random in every
strategy: the structured ones are about sensors.
"""

from typing import NamedTuple

import numpy as np

from data_pipelines.batch import MODALITY_OF
from data_pipelines.config import MaskConfig, TokenConfig
from data_pipelines.errors import BadInput

STRATEGIES = ("random", "channel", "time", "modality")


class Masked(NamedTuple):
    """visible: bool [n], seen by the encoder. target: bool [n], predicted. strategy: the one that was applied."""

    visible: np.ndarray
    target: np.ndarray
    strategy: str


def signal_budget(signal_tokens, config: MaskConfig):
    """Signal tokens that stay visible, at least one; monotone, so that a bound on tokens bounds it too."""
    return np.maximum(1, np.rint(config.keep_signal * np.asarray(signal_tokens))).astype(np.int32)


def text_budget(text_tokens, config: MaskConfig):
    """Text tokens that stay visible."""
    return np.rint(config.keep_text * np.asarray(text_tokens)).astype(np.int32)


def hide(
    channel: np.ndarray,
    time: np.ndarray,
    n_text: int,
    config: MaskConfig,
    rng: np.random.Generator,
    strategy: str | None = None,
) -> Masked:
    """Masks one window: its n signal tokens, then its text tokens; CLS is left out.

    Args:
        channel: int [n], channel ids of the signal tokens.
        time: float [n], seconds.
        n_text: number of text tokens.
        config: budgets, weights and structure.
        rng: source of all randomness; the same state gives the same mask.
        strategy: one of `STRATEGIES`; None draws one by `config.weights`.

    Returns:
        `Masked`; at least one signal token stays visible where there is any. A strategy that cannot leave anything
        (one channel, one block, one modality) falls to "random".
    """
    strategy = draw_strategy(config, rng) if strategy is None else strategy
    n = len(channel)
    hidden = None
    if strategy != "random":
        hidden = _some_kinds(_kinds(strategy, channel, time, config), config.structured, rng)
        strategy = "random" if hidden is None else strategy
    # the generator's own words, two draws in each: half the time of drawing floats
    order = rng.bit_generator.random_raw((n + n_text + 1) // 2).view(np.uint32)[: n + n_text]
    if hidden is not None:
        order[:n][hidden] = np.iinfo(np.uint32).max  # the last to stay
    visible = np.zeros(n + n_text, bool)
    # Python's round is np.rint; on single numbers it is twenty times faster than `signal_budget`
    visible[_smallest(order[:n], max(1, round(config.keep_signal * n)))] = True
    if n_text:
        visible[n + _smallest(order[n:], round(config.keep_text * n_text))] = True
    if hidden is not None:
        visible[:n] &= ~hidden
    target = np.ones(n + n_text, bool) if config.target == "all" else ~visible
    return Masked(visible, target, strategy)


def draw_strategy(config: MaskConfig, rng: np.random.Generator) -> str:
    """One of `STRATEGIES`, by weight."""
    positive = [(name, config.weights[name]) for name in STRATEGIES if config.weights.get(name, 0.0) > 0]
    if len(positive) == 1:  # saves the draw in the commonest case
        return positive[0][0]
    threshold = rng.random() * sum(weight for _, weight in positive)
    for name, weight in positive:
        threshold -= weight
        if threshold < 0:
            return name
    return positive[-1][0]


def _smallest(order: np.ndarray, budget: int) -> np.ndarray:
    """Where the `budget` smallest entries stand."""
    if budget >= len(order):
        return np.arange(len(order))
    return np.argpartition(order, budget)[:budget]


def _kinds(strategy: str, channel: np.ndarray, time: np.ndarray, config: MaskConfig) -> np.ndarray:
    """What each signal token goes with in a structured strategy: small integers from 0 on."""
    if strategy == "channel":
        return channel
    if strategy == "modality":
        return MODALITY_OF[channel]
    return np.floor_divide(time, config.block_seconds).astype(np.int64)


def _some_kinds(kind: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray | None:
    """Tokens of a random share of their kinds (0, 1, ...), at least one and never all; None if there is one."""
    kinds = np.flatnonzero(np.bincount(kind))  # `np.unique` and `np.isin` sort: five times as slow
    if len(kinds) < 2:
        return None
    chosen = np.zeros(int(kind.max()) + 1, bool)
    chosen[rng.permutation(kinds)[: min(max(1, round(share * len(kinds))), len(kinds) - 1)]] = True
    return chosen[kind]


def check(config: MaskConfig, tokens: TokenConfig) -> None:
    """Refuses masks that hide nothing or everything, and strategies that do not exist.

    Raises:
        BadInput: naming the field, before anything is read.
    """
    ratios = [("keep_signal", config.keep_signal), ("structured", config.structured)]
    if tokens.text_length:
        ratios.append(("keep_text", config.keep_text))
    for name, value in ratios:
        if not 0 < value < 1:
            raise BadInput(
                f"config.data.mask.{name}",
                f"{value:g}",
                "a share above 0 and below 1",
                "0.25 keeps a quarter; to see everything, embed instead of train",
            )
    for name, weight in config.weights.items():
        if name not in STRATEGIES or not weight >= 0:
            raise BadInput(
                f"config.data.mask.weights.{name}",
                f"weight {weight:g}",
                "weights of 0 or more for " + ", ".join(STRATEGIES),
                "correct the config",
            )
    if not sum(config.weights.values()) > 0:
        raise BadInput(
            "config.data.mask.weights", "no weight above 0", "a weight above 0 for one strategy", "set random to 1"
        )
    if config.target not in ("hidden", "all"):
        raise BadInput("config.data.mask.target", repr(config.target), '"hidden" or "all"', "correct the config")
    if not config.block_seconds > 0:
        raise BadInput(
            "config.data.mask.block_seconds", f"{config.block_seconds:g}", "seconds above 0", "correct the config"
        )
