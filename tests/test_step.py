"""The training step: the same on 1 and 8 devices, proof against NaN, with dropout that depends on (seed, step) alone.

Run as a script with runs (overrides of the config), it prints the losses and gradients of a few steps of each (as
JSON) for the first tests.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils

from csfm_jax import config as config_lib
from csfm_jax import sharding
from csfm_jax.training.optimizer import learning_rate, make_optimizer
from csfm_jax.training.state import TrainState, blueprint
from csfm_jax.training.step import make_eval_step, make_train_step, to_global
from data_pipelines.batch import TokenBatch, windows_digest
from data_pipelines.signals import CHANNEL_ID, CLS, TEXT

ROWS, TOKENS, VISIBLE, WINDOWS, PATCH, WORDS = 8, 48, 20, 4, 25, 6

VALUES = {
    "tokens": {"modalities": ["ecg", "ppg"], "text_length": WORDS, "text_vocabulary": 50},
    "data": {"rows": ROWS, "row_tokens": TOKENS, "row_visible": VISIBLE, "row_windows": WINDOWS},
    "encoder": {"width": 32, "depth": 2, "heads": 8, "head_dim": 4, "mlp": 64, "dropout": 0.1},
    "decoder": {"width": 16, "depth": 1, "heads": 8, "head_dim": 4, "mlp": 32},
    "optimizer": {"learning_rate": 3e-3, "warmup_steps": 2},
    "training": {"steps": 20},
}


def fake_batch(seed: int) -> TokenBatch:
    """Rows of windows with different sensors and lengths, so that no device's share weighs like another's."""
    rng = np.random.default_rng(seed)
    batch = TokenBatch(
        patches=np.zeros((ROWS, TOKENS, PATCH), np.float32),
        channel=np.zeros((ROWS, TOKENS), np.int32),
        segment=np.zeros((ROWS, TOKENS), np.int32),
        time=np.zeros((ROWS, TOKENS), np.float32),
        text=np.zeros((ROWS, TOKENS), np.int32),
        visible=np.full((ROWS, VISIBLE), TOKENS, np.int32),
        target=np.zeros((ROWS, TOKENS), bool),
        labels=np.zeros((ROWS, WINDOWS, 0), np.float32),
        token_labels=np.full((ROWS, TOKENS), -1, np.int32),
        window=np.full((ROWS, WINDOWS), -1, np.int32),
    )
    for row in range(ROWS - 1):  # the last row stays empty, as at an epoch's end
        at = 0
        for window in range(rng.integers(1, WINDOWS + 1)):
            channel, words = rng.choice([CHANNEL_ID["II"], CHANNEL_ID["PPG"]]), rng.integers(0, 3)
            patches = rng.integers(3, 9)
            here = slice(at, at + 1 + patches + words)
            batch.channel[row, here] = [CLS, *[channel] * patches, *[TEXT] * words]
            batch.segment[row, here] = window + 1
            batch.window[row, window] = row * WINDOWS + window
            batch.time[row, here] = [0, *(0.05 + 0.1 * np.arange(patches)), *range(words)]
            batch.text[row, here] = [0] * (1 + patches) + list(rng.integers(1, 50, words))
            batch.patches[row, at + 1 : at + 1 + patches] = rng.normal(size=(patches, PATCH))
            batch.target[row, here] = batch.channel[row, here] != CLS
            at = here.stop
        seen = np.sort(np.flatnonzero((batch.channel[row] == CLS) | (rng.random(TOKENS) < 0.2) & batch.target[row]))
        seen = seen[:VISIBLE]
        batch.visible[row, : len(seen)] = seen
        batch.target[row, seen] = False
    return batch


class Run:
    """A run on fake batches, on all devices there are.

    Args:
        first: its initial state, on the host; None makes it. overrides: of `VALUES`.
    """

    def __init__(self, first: TrainState | None = None, **overrides):
        self.config = config_lib.from_dict(VALUES | overrides)
        rate = learning_rate(self.config.optimizer, self.config.training.steps)
        self.optimizer = make_optimizer(self.config.optimizer, self.config.training.steps)
        self.mesh = sharding.make_mesh(self.config.mesh)
        self.plan = blueprint(self.config, self.optimizer, self.mesh)
        self.state = self.plan.initial() if first is None else jax.tree.map(self._placed, first, self.plan.shardings)
        self.step_function = make_train_step(self.plan, self.optimizer, rate, self.config)
        if jax.process_count() == 1:
            self._first = jax.tree.map(np.array, self.state)

    def _placed(self, value: np.ndarray, sharding) -> jax.Array:
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    def begin(self) -> "Run":
        """Back to step 0, with what is compiled kept."""
        self.state = jax.tree.map(jax.device_put, self._first, self.plan.shardings)
        return self

    def step(self, batch: TokenBatch):
        number, parts = sharding.rows_share(self.mesh)
        local = TokenBatch(*(np.split(field, parts)[number] for field in batch))
        with sharding.use(self.mesh):
            self.state, metrics = self.step_function(self.state, to_global(local, self.mesh))
        return metrics.fetch()


def leaves(tree) -> dict[str, np.ndarray]:
    whole = multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else tree
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(whole)}


def first_moments(run) -> dict[str, np.ndarray]:
    """After one step from zero, the first moments are the clipped gradients up to a factor."""
    return leaves(next(s for s in run.state.optimizer if isinstance(s, optax.ScaleByAdamState)).mu)


def trace(run: Run, steps: int = 5) -> dict:
    losses, digests = [], []
    for number in range(steps):
        metrics = run.step(fake_batch(number))
        losses.append(metrics.loss)
        digests.append(metrics.windows_digest)
        if number == 0:
            gradients = {name: value.ravel().tolist() for name, value in first_moments(run).items()}
    whole = all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(run.state.params))
    seen = {"losses": losses, "digests": digests}
    return {"devices": jax.device_count(), **seen, "gradients": gradients, "whole": whole}


@pytest.fixture(scope="module")
def compiled():
    return Run()


@pytest.fixture
def run(compiled):
    return compiled.begin()


@pytest.fixture(scope="module")
def one_device(compiled):
    return trace(compiled.begin())


MESHES = {
    "data": {},
    "fsdp": {"data": 1, "fsdp": -1},
    "tensor": {"data": 1, "tensor": -1},
    "fsdp x tensor": {"data": 1, "fsdp": -1, "tensor": 2},
    "replica x fsdp": {"replica": 2, "data": 1, "fsdp": -1},
}
ACROSS = ("data", "fsdp", "tensor")  # meshes of the two processes


def traced_elsewhere(runs: list[dict], processes: int = 1, devices: int = 8) -> list[dict]:
    """The traces of runs (overrides of the config) on as many devices, which as many processes share."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices // processes),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, __file__, json.dumps(runs), address, str(processes), str(number)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(processes)
    ]  # fmt: skip
    ended = [process.communicate(timeout=500) for process in started]
    for process, (_, err) in zip(started, ended):
        assert process.returncode == 0, err[-2000:]
        assert "rematerialization" not in err  # what the compiler says when it replicates activations
    return [json.loads(line) for line in ended[0][0].splitlines()[-len(runs) :]]


WHOLE = {"encoder": VALUES["encoder"] | {"dropout": 0.0}}  # dropout is drawn for each part
IN_PARTS = WHOLE | {"training": VALUES["training"] | {"accumulate": 2}, "mesh": MESHES["fsdp x tensor"]}


@pytest.fixture(scope="module")
def eight_devices():
    traced = traced_elsewhere([*({"mesh": mesh} for mesh in MESHES.values()), IN_PARTS])
    return dict(zip([*MESHES, "in parts"], traced, strict=True))


@pytest.fixture(scope="module")
def two_processes():
    traced = traced_elsewhere([{"mesh": MESHES[name]} for name in ACROSS], processes=2, devices=2)
    return dict(zip(ACROSS, traced, strict=True))


@pytest.mark.parametrize("mesh", MESHES)
def test_eight_devices_give_the_losses_and_gradients_of_one(one_device, eight_devices, mesh):
    eight = eight_devices[mesh]
    assert (one_device["devices"], eight["devices"]) == (1, 8)
    assert eight["whole"] == (mesh == "data")  # with fsdp and tensor axes, parameters really are split
    assert_equal(one_device, eight)


@pytest.mark.parametrize("mesh", ACROSS)
def test_two_processes_give_the_losses_and_gradients_of_one(one_device, two_processes, mesh):
    two = two_processes[mesh]
    assert (two["devices"], two["whole"]) == (2, mesh == "data")
    assert_equal(one_device, two)


def assert_equal(one: dict, other: dict) -> None:
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-5)
    assert other["digests"] == one["digests"] and len(set(one["digests"])) > 1
    assert other["gradients"].keys() == one["gradients"].keys()
    for name, gradient in one["gradients"].items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(other["gradients"][name], gradient, atol=1e-5 * scale + 1e-9, err_msg=name)


def test_training_lowers_the_loss_and_counts_what_it_saw(run):
    batch = fake_batch(0)
    first = run.step(batch)
    for _ in range(12):
        last = run.step(batch)
    assert last.loss < 0.9 * first.loss
    assert first.tokens == (batch.channel > 0).sum() and first.windows == (batch.window >= 0).sum()
    assert first.visible == (batch.visible < TOKENS).sum()
    assert first.windows_digest == windows_digest(batch.window)
    assert first.counts["loss/ecg"] + first.counts["loss/ppg"] + first.counts["loss/text"] == batch.target.sum()
    np.testing.assert_allclose(first.learning_rate, 1.5e-3)


def test_a_digest_tells_which_windows_there_are_and_not_where():
    rng = np.random.default_rng(0)
    numbers = np.append(rng.permutation(50), [-1] * 14).astype(np.int32)
    whole = int(windows_digest(np.arange(50))) % 2**32
    assert int(windows_digest(rng.permutation(numbers).reshape(4, 16))) % 2**32 == whole
    assert sum(int(windows_digest(part)) for part in numbers.reshape(4, 16)) % 2**32 == whole
    # one lost, another repeated in its place, and two of which the sum stays
    for changed in ([1, *range(1, 50)], [*range(49)], [*range(48), 47, 50], [*range(50), 0]):
        assert int(windows_digest(np.array(changed))) % 2**32 != whole


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(run):
    good = fake_batch(0)
    poisoned = good._replace(patches=np.where(good.target[..., None], np.nan, good.patches).astype(np.float32))
    run.step(good)
    before = leaves((run.state.params, run.state.optimizer))
    seen = [run.step(poisoned), run.step(poisoned)]
    after = leaves((run.state.params, run.state.optimizer))
    assert [(bool(m.made), int(m.bad), int(m.skipped)) for m in seen] == [(False, 1, 1), (False, 2, 2)]
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    back = run.step(good)
    assert (bool(back.made), int(back.bad), int(back.skipped), int(run.state.step)) == (True, 0, 2, 4)
    assert np.isfinite(back.loss)
    moved = leaves((run.state.params, run.state.optimizer))
    assert any((moved[name] != value).any() for name, value in before.items())


@pytest.fixture(scope="module")
def watched(compiled):
    """Spikes are skipped, parameters averaged: one program for both tests."""
    return Run(training=VALUES["training"] | {"spike": 5.0, "ema": 0.25})


def test_a_spike_is_skipped_and_the_usual_norm_stands(watched):
    run, good = watched.begin(), fake_batch(0)
    usual = run.step(good).usual_norm
    loud = good._replace(patches=good.patches * np.float32(30))
    before = leaves(run.state.params)
    spike = run.step(loud)
    assert np.isfinite(spike.loss) and spike.gradient_norm > 5 * usual
    assert (bool(spike.made), int(spike.bad), spike.usual_norm) == (False, 1, usual)
    for name, value in leaves(run.state.params).items():
        np.testing.assert_array_equal(before[name], value, err_msg=name)
    assert run.step(good).made


def test_a_batch_that_teaches_nothing_moves_nothing(watched):
    """Momentum and decay would move the parameters without it, and its norm of 0 would make spikes of all others."""
    run, good = watched.begin(), fake_batch(0)
    usual = run.step(good).usual_norm
    before = leaves((run.state.params, run.state.optimizer, run.state.average))
    nothing = run.step(good._replace(target=np.zeros_like(good.target)))
    assert nothing.gradient_norm == 0 and not nothing.made
    assert (int(nothing.bad), int(nothing.skipped), nothing.usual_norm) == (0, 1, usual)
    for name, value in leaves((run.state.params, run.state.optimizer, run.state.average)).items():
        np.testing.assert_array_equal(before[name], value, err_msg=name)
    assert run.step(good).made


def test_the_average_follows_the_parameters_and_skipped_steps_leave_it(watched):
    run, good = watched.begin(), fake_batch(0)
    poisoned = good._replace(patches=np.where(good.target[..., None], np.nan, good.patches).astype(np.float32))
    expected, updates = leaves(run.state.params), 0
    for batch, made in ((good, True), (poisoned, False), (good, True), (good, True), (good, True)):
        run.step(batch)
        if made:
            decay = min(0.25, (1 + updates) / (10 + updates))  # 0.1, 0.18, 0.25, 0.25
            expected = {n: decay * expected[n] + (1 - decay) * v for n, v in leaves(run.state.params).items()}
            updates += 1
        for name, value in leaves(run.state.average).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-7, err_msg=name)
    assert run.state.weights is run.state.average and run.state.average["encoder"] is not run.state.params["encoder"]
    placed = run.plan.shardings
    assert placed.average == placed.params


def test_without_an_average_the_state_holds_none(run):
    assert run.state.average is None and run.state.weights is run.state.params


def test_dropout_depends_on_seed_and_step_alone(run):
    batch = fake_batch(0)
    first = run.step(batch).loss
    assert run.begin().step(batch).loss == first
    run.begin().state = run.state._replace(step=jax.device_put(np.int32(5), run.plan.shardings.step))
    assert run.step(batch).loss != first  # same parameters, same rows, another step


def test_evaluation_has_no_dropout_and_the_same_sums_in_any_split_of_the_rows(run):
    batch = fake_batch(3)
    with sharding.use(run.mesh):
        evaluate = make_eval_step(run.plan)
        sums, counts = jax.device_get(evaluate(run.state.params, to_global(batch, run.mesh)))
        again, _ = jax.device_get(evaluate(run.state.params, to_global(batch, run.mesh)))
        halves = []
        for part in (slice(0, 4), slice(4, 8)):
            # the last row is an empty one: four of it fill the batch up to its compiled shape
            half = TokenBatch(*(np.concatenate([field[part], np.repeat(field[-1:], 4, axis=0)]) for field in batch))
            halves.append(jax.device_get(evaluate(run.state.params, to_global(half, run.mesh))))
    assert sums == again
    for name in ("loss/ecg", "mae/ppg", "rmse/ecg", "loss/text"):
        np.testing.assert_allclose(halves[0][0][name] + halves[1][0][name], sums[name], rtol=1e-5)
        assert halves[0][1][name] + halves[1][1][name] == counts[name] > 0


def test_a_batch_in_parts_gives_the_step_of_the_whole(compiled, eight_devices):
    first = jax.tree.map(np.array, compiled.begin().state)
    assert_equal(trace(Run(first, **WHOLE)), eight_devices["in parts"])


if __name__ == "__main__":
    runs, address, processes, number = sys.argv[1:]
    if int(processes) > 1:
        jax.distributed.initialize(address, int(processes), int(number))
    first = None
    for overrides in json.loads(runs):
        run = Run(first, **overrides)
        if first is None:  # equal for all, and as long to compile as half a step
            first = jax.tree.map(np.array, multihost_utils.process_allgather(run.state, tiled=True))
        traced = trace(run)
        if jax.process_index() == 0:  # nobody reads the others' output
            print(json.dumps(traced))
