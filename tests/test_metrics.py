"""Metrics are sums over sums, and each step stands in a file once."""

import json
import socket
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from csfm_jax.training.board import Board
from csfm_jax.training.metrics import (
    BatchFacts,
    Interval,
    Log,
    averages,
    batch_facts,
    drop_lines_after,
    interval_from,
    interval_values,
)
from csfm_jax.training.packed import pack
from csfm_jax.training.step import StepMetrics
from data_pipelines.batch import TokenBatch
from data_pipelines.signals import CHANNEL_ID, CLS, TEXT


def step(loss, tokens, *, made=True, skipped=0):
    sums, counts = {"mae/ecg": loss * tokens, "rmse/ecg": 4.0 * tokens, "loss/ppg": 0.0}, {}
    counts = {"mae/ecg": tokens, "rmse/ecg": tokens, "loss/ppg": 0.0}
    return StepMetrics(loss, 2.0, 1e-3, made, 0, skipped, 2.0, sums, counts, tokens, tokens // 2, 3, -3)


FACTS = BatchFacts({"ecg": 1, "ecg+ppg": 3}, planned=40.0, tokens=30, waited=0.5, position=(0, 0))


def test_averages_weigh_by_count_and_roots_come_last():
    interval = Interval()
    interval.add(step(1.0, 10), FACTS)
    interval.add(step(4.0, 30), FACTS)
    values = interval.values(row_tokens=50, row_visible=25, rows=1)
    assert values["mae/ecg"] == pytest.approx((10 + 120) / 40)  # the mean of means would be 2.5
    assert values["rmse/ecg"] == 2.0 and values["loss/ppg"] is None and values["loss"] == 2.5
    assert values["fill/tokens"] == 0.4 and values["fill/visible"] == 0.4
    assert values["sensors"] == {"ecg": 0.25, "ecg+ppg": 0.75} and values["missing"] == 0.25
    assert values["windows_digest"] == "fffffffa"  # -3 and -3, modulo 2**32


def test_a_bad_step_counts_but_does_not_poison_the_average():
    interval = Interval()
    interval.add(step(1.0, 10), FACTS)
    interval.add(step(float("nan"), 10, made=False, skipped=1), FACTS)
    values = interval.values(50, 25, 1)
    assert values["loss"] == 1.0 and values["mae/ecg"] == 1.0 and values["skipped"] == 1
    alone = Interval()
    alone.add(step(float("inf"), 10, made=False, skipped=1), FACTS)
    json.dumps(alone.values(50, 25, 1), allow_nan=False)  # stays JSON


def test_an_interval_survives_a_checkpoint_exactly():
    interval = Interval()
    interval.add(step(0.1, 7), FACTS)
    back = interval_from(json.loads(json.dumps(interval_values(interval))))
    for one in (interval, back):
        one.add(step(0.3, 9), FACTS)
    assert back == interval


def test_a_figure_that_is_no_number_stands_as_null(tmp_path):
    with Log(tmp_path, done=0, steps=9, write=True) as log:
        log.write("validation", 3, {"loss": float("nan"), "mae": float("inf"), "rmse": 0.5, "sensors": {"ecg": 1.0}})
    line = json.loads((tmp_path / "validation.jsonl").read_text())
    assert line == {"step": 3, "loss": None, "mae": None, "rmse": 0.5, "sensors": {"ecg": 1.0}}


def test_lines_reach_tensorboard(tmp_path):
    with Log(tmp_path, done=0, steps=9, write=True) as log:
        log.write("metrics", 1, {"loss": 2.0, "nothing": None, "sensors": {"ecg": 1.0}, "windows_digest": "0a"})
        log.write("metrics", 2, {"loss": 1.0})
    (events,) = (tmp_path / "tensorboard").iterdir()
    written = events.read_bytes()
    assert b"sensors/ecg" in written and written.count(b"loss") == 2
    assert b"nothing" not in written and b"digest" not in written  # what is no number is not drawn


def test_a_full_disk_is_an_error_of_the_one_who_writes_scalars(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1.7e9)
    (tmp_path / f"events.out.tfevents.1700000000.{socket.gethostname()}").symlink_to("/dev/full")
    threads, board = threading.active_count(), Board(tmp_path, 1)
    with pytest.raises(OSError, match="No space left"):
        board.add(1, {"loss": 1.0})
    assert threading.active_count() == threads  # of which nobody would hear


def test_nothing_counted_is_none():
    assert averages({"mae/ecg": 0.0}, {"mae/ecg": 0.0}) == {"mae/ecg": None}


def test_what_a_program_packs_comes_back_whole():
    def program(x):
        return pack(
            StepMetrics(x, 2 * x, 1e-3, x > 0, jnp.int32(2**31 - 1), 0, x, {"b": 3 * x, "a": x}, {}, 7, 8, 9, 1)
        )

    found = jax.jit(program)(jnp.float32(0.1)).fetch()
    loss = float(np.float32(0.1))
    assert found == StepMetrics(
        loss, 2 * loss, float(np.float32(1e-3)), True, 2**31 - 1, 0, loss, {"b": float(np.float32(0.3)), "a": loss}, {},
        7, 8, 9, 1,
    )  # fmt: skip
    assert isinstance(found.made, bool) and isinstance(found.tokens, int)


def test_windows_are_counted_by_the_sensors_that_they_really_have():
    lead, pulse = CHANNEL_ID["V3"], CHANNEL_ID["PPG"]
    channel = np.array([[CLS, lead, lead, CLS, lead, pulse, TEXT, 0], [CLS, pulse, CLS, CHANNEL_ID["II"], 0, 0, 0, 0]])
    segment = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 2, 2, 0, 0, 0, 0]])
    window = np.array([[5, 6, -1], [8, 9, -1]])
    fields = dict.fromkeys(TokenBatch._fields)
    batch = TokenBatch(**fields | {"channel": channel, "segment": segment, "window": window})
    facts = batch_facts(batch, planned_fill=0.75, waited=0.1, position=(2, 8))
    assert facts.sensors == {"ecg": 2, "ppg": 1, "ecg+ppg": 1}
    assert (facts.planned, facts.tokens) == (12.0, 11)
    empty = batch._replace(window=np.full((2, 3), -1), channel=0 * channel, segment=0 * segment)
    assert batch_facts(empty, 0.75, 0.0, (2, 8)) == BatchFacts(
        {}, 0.0, 0, 0.0, (2, 8)
    )  # the rows that end an epoch weigh nothing


def test_lines_after_a_step_and_cut_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    drop_lines_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    drop_lines_after(tmp_path / "absent.jsonl", 2)
