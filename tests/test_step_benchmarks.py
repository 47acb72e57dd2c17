"""Benchmarks of the training step: both sides do the same work, and figures are what they say."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from benchmarks import overheads, padding, saving, torch_step
from csfm_jax.models import flops
from data_pipelines.signals import CHANNELS


def windows_in(batches) -> Counter:
    """How often each number of tokens stands in a window."""
    found = Counter()
    for batch in batches:
        for row in batch.segment:
            found.update(np.bincount(row)[1:].tolist())
    return found


def test_both_sides_train_on_the_same_kinds_of_windows():
    drawn = [0, 1, 2, 3] * 16
    config, rows = padding.packed(drawn)
    assert np.mean([batch.channel != 0 for batch in rows]) > 0.85
    for batch in rows:
        held = (batch.visible < padding.ROW).sum(axis=1)
        assert (held <= config.data.row_visible).all() and (batch.target.sum(axis=1) + held).tolist() == (
            batch.channel != 0
        ).sum(axis=1).tolist()
    assert set(windows_in(rows)) == {241, 41, 21, 301}
    config, rows = padding.padded(drawn)
    assert config.data.row_tokens == 301 and config.data.row_visible == 76 and config.data.row_windows == 1
    kinds = windows_in(rows)
    assert sum(kinds.values()) == padding.BATCHES * padding.PADDED_ROWS and kinds[301] == kinds[21] > 0
    of_sleep = rows[0].channel[3][1:]
    assert {CHANNELS[i].name for i in of_sleep} == set(padding.SLEEP)


def test_pytorch_multiplies_what_our_model_does():
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    config = torch_step.config_of(2, "float32")
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, width=64, depth=2, mlp=128))
    with FlopCounterMode(display=False) as counter:
        loss = torch_step._torch(config, torch_step.packed_rows(config))()
    assert 0.5 < loss < 3.0  # of noise of variance 1
    # PyTorch's counter leaves attention out on CPU, and our model has a head for PPG, too
    attention = sum(
        4 * part.depth * tokens**2 * part.heads * part.head_dim
        for part, tokens in ((config.encoder, 61), (config.decoder, 241))
    )
    ppg = 2 * 241 * config.decoder.width * 125
    ours = flops.count(config).train - 3 * (attention + ppg)
    assert counter.get_total_flops() == pytest.approx(ours * config.data.rows, rel=0.01)
    assert torch.isfinite(torch.tensor(loss))


def test_saving_counts_copies_and_orders_pairs(tmp_path):
    found = saving._measure(tmp_path, parameters=1200, pairs=2)
    assert found["size"] == 3 * 12 * 10 * 10 * 4 + 4  # parameters, two moments, a counter
    assert len(found["extra"]) == len(found["blocked"]) == 2
    values = [3.0, -1.0, 0.5, 0.7, 0.2, 9.0]
    made = {
        "blocked": [0.05],
        "extra": values,
        "peak": [8.0, 4.0],
        "plain": [1.0],
        "whole": [2.0],
        "size": 4,
        "copy": 1,
    }
    lines = {name.strip(): (value, note) for name, value, _, note in saving._lines(made)}
    assert lines["the save and the next 20 steps, beyond as many without"] == (0.6, "median of 6 pairs; 0.20 to 3.00")
    assert lines["memory beyond the state while saving"][0] == 2.0


def test_wall_time_follows_from_what_was_lost():
    line = {"goodput": 0.75, "lost_seconds/data": 4.0, "lost_seconds/start": 1.0, "loss": 3.0}
    assert overheads._wall(line) == 20.0
