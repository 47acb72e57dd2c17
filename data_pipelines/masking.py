"""What is hidden from the encoder and what the objective predicts, for one window at a time.

Structure hides first (whole channels, blocks of time, whole modalities); random hiding then goes on down to the
budget. If structure hid more than the budget allows, nothing is un-hidden. Text is hidden at random in every
strategy: the structured ones are about sensors.
"""

from typing import NamedTuple

import numpy as np

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
    modality: np.ndarray,
    is_text: np.ndarray,
    config: MaskConfig,
    rng: np.random.Generator,
    strategy: str | None = None,
) -> Masked:
    """Masks one window.

    Args:
        channel: int [n], channel ids of the window's signal and text tokens, CLS left out.
        time: float [n], seconds; ignored for text.
        modality: int [n], small numbers from 0 on that tell signal modalities apart; ignored for text.
        is_text: bool [n].
        config: budgets, weights and structure.
        rng: source of all randomness; the same state gives the same mask.
        strategy: one of `STRATEGIES`; None draws one by `config.weights`.

    Returns:
        `Masked`; at least one signal token stays visible where there is any. A strategy that cannot leave anything
        (one channel, one block, one modality) falls to "random".
    """
    strategy = draw_strategy(config, rng) if strategy is None else strategy
    n_text = int(np.count_nonzero(is_text))
    n_signal = len(channel) - n_text
    # Python's round is np.rint; on single numbers it is twenty times faster than `signal_budget`
    signal_stays = max(1, round(config.keep_signal * n_signal)) if n_signal else 0
    hidden = None
    if strategy != "random":
        kind = {"channel": channel, "modality": modality}.get(strategy)
        if kind is None:  # blocks of time
            kind = np.floor_divide(time, config.block_seconds).astype(np.int64)
        hidden = _some_kinds(kind, ~is_text, config.structured, rng)
        strategy = "random" if hidden is None else strategy
    order = rng.random(len(channel), dtype=np.float32)
    if hidden is not None:
        order[hidden] = 2.0  # beyond every drawn number: never among those that stay
    if n_text == 0:
        visible = _smallest(order, signal_stays)
    else:
        visible = np.zeros(len(channel), bool)
        signal = ~is_text
        visible[signal] = _smallest(order[signal], signal_stays)
        visible[is_text] = _smallest(order[is_text], round(config.keep_text * n_text))
    if hidden is not None:
        visible &= ~hidden
    target = np.ones(len(channel), bool) if config.target == "all" else ~visible
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
    """True at the `budget` smallest entries."""
    chosen = np.zeros(len(order), bool)
    if budget >= len(order):
        chosen[:] = True
    elif budget > 0:
        chosen[np.argpartition(order, budget - 1)[:budget]] = True
    return chosen


def _some_kinds(kind: np.ndarray, signal: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray | None:
    """Signal tokens of a random share of their kinds (0, 1, ...), at least one and never all; None if there is one."""
    kinds = np.flatnonzero(np.bincount(kind[signal]))  # `np.unique` and `np.isin` sort: five times as slow
    if len(kinds) < 2:
        return None
    chosen = np.zeros(int(kind.max()) + 1, bool)
    chosen[rng.permutation(kinds)[: min(max(1, round(share * len(kinds))), len(kinds) - 1)]] = True
    return signal & chosen[kind]


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
