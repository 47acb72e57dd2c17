"""Validation, embeddings and predictions on eight devices are what they are on one, every window counted once.

Run as a script with a folder of stores, it prints both (as JSON) on the devices there are.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from small_checkpoints import toy_config, toy_params

from csfm_jax import encoding, objectives, sharding
from csfm_jax.config import Config, MeshConfig, ObjectiveConfig
from csfm_jax.evaluation import features, layers, translated
from csfm_jax.evaluation.fine_tuned import FineTuned
from csfm_jax.models.encoder import Encoder
from csfm_jax.spread import OverDevices
from csfm_jax.tasks.config import AdaptationConfig
from csfm_jax.tasks.resolve import resolve
from csfm_jax.training.optimizer import make_optimizer
from csfm_jax.training.state import blueprint
from csfm_jax.training.validation import Validation
from data_pipelines import windows
from data_pipelines.config import WindowConfig
from data_pipelines.loader import pack_windows
from data_pipelines.preprocess import get_spec
from data_pipelines.signals import CHANNEL_ID
from data_pipelines.store import open_stores

ROWS = 8
PARTS: dict[str, list[int]] = {}  # of a network, into how many devices' parts its results come


@contextlib.contextmanager
def watched(network: str):
    """Writes down `PARTS` of every batch."""
    run, parts = OverDevices._run, PARTS.setdefault(network, [])

    def watching(self, batch):
        batch, found = run(self, batch)
        first = jax.tree.leaves(found)[0]
        parts.append(first.size // first.addressable_shards[0].data.size)
        return batch, found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OverDevices, "_run", watching)
        yield


def config_of(devices: int) -> Config:
    """Rows that hold a window or two, so that eight of them are more than the last batch needs."""
    config = toy_config(dropout=0.0)
    config = dataclasses.replace(config, tokens=dataclasses.replace(config.tokens, text_length=0))
    short = WindowConfig(seconds=2.0)
    data = dataclasses.replace(config.data, window=short, rows=ROWS, row_tokens=64, row_visible=64, row_windows=2)
    mesh = MeshConfig() if devices == 1 else MeshConfig(data=2, fsdp=4)
    training = dataclasses.replace(config.training, eval_batches=1000, steps=3000)
    return dataclasses.replace(config, data=data, mesh=mesh, training=training)


def measured(stores: list, config: Config) -> dict:
    """Validation's figures, all batches of it, with parameters split over the mesh."""
    mesh = sharding.make_mesh(config.mesh)
    plan = blueprint(config, make_optimizer(config.optimizer, config.training.steps), mesh)
    params = jax.tree.map(jax.device_put, toy_params(config), plan.shardings.params)
    with tempfile.TemporaryDirectory() as plans, sharding.use(mesh):
        return Validation(config, plan, stores, Path(plans), mesh).measure(params)


def embedded(stores: list, config: Config) -> dict:
    params = toy_params(config)["encoder"]
    network = encoding.with_params(lambda: Encoder(config.encoder, config.tokens, rngs=nnx.Rngs(0)), params, "toy")
    encoder = encoding.LoadedEncoder(config, network, get_spec("csfm-jax"))
    with watched("embeddings"):
        found = list(features.embed_stores(encoder, stores, "train"))
    with watched("layers"):
        means = layers.layer_means(encoder, stores, config.data.window)
    seen = [[int(s), int(r), float(t)] for some in found for s, r, t in zip(some.store, some.recording, some.start)]
    vectors = np.concatenate([some.pooled for some in found])
    order = sorted(range(len(seen)), key=seen.__getitem__)
    return {
        "windows": [seen[i] for i in order],
        "vectors": vectors[order].tolist(),
        "batches": [len(some.store) for some in found],
        "rows": encoder.batch_shape(24)["rows"],
        "odd": odd_rows(encoder),
        "layers": sorted(([*map(float, window)], layer.tolist()) for window, layer in means.items()),
    }


def odd_rows(encoder: encoding.LoadedEncoder) -> list:
    """Embeddings of a batch whose three rows no devices divide: five windows."""
    rng = np.random.default_rng(0)
    given = [[(CHANNEL_ID["II"], rng.normal(size=500).astype(np.float32))] for _ in range(5)]
    batches = pack_windows(given, encoder.config.tokens, rows=3, row_tokens=64, row_windows=2)
    ((ids, vectors),) = encoder.embed_batches(batches)
    return [vectors[np.argsort(ids)].tolist(), sorted(ids.tolist())]


def fine_tuned(stores: list, config: Config, task: str, objective: str) -> FineTuned:
    """A network of a task, in batches of three rows, which no devices divide."""
    data = dataclasses.replace(config.data, rows=3)
    adaptation = AdaptationConfig(task=task, head="attention")
    config = dataclasses.replace(config, data=data, objective=ObjectiveConfig(objective), adaptation=adaptation)
    config = resolve(config, stores).adapted(config)
    made = encoding.with_params(lambda: objectives.build(config, rngs=nnx.Rngs(0)), toy_params(config), "toy")
    return FineTuned(config, made, get_spec("csfm-jax"), {})


def predicted(stores: list, config: Config) -> dict:
    with watched("predictions"):
        found = fine_tuned(stores, config, "simulated_rhythm", "supervised").predict(stores, "train")
    model = fine_tuned(stores, config, "ppg_to_ecg", "translation")
    with watched("signals"):
        recordings = list(translated.translate(model, stores, "validation", blind=True))
    signals = [(int(r.recording), r.start.tolist(), r.signals["II"].predicted.tolist()) for r in recordings]
    return {"predictions": {name: column.tolist() for name, column in found._asdict().items()}, "signals": signals}


def main(folder: str) -> None:
    config, stores = config_of(jax.device_count()), open_stores(folder, "size")
    found = {"devices": jax.device_count(), "validation": measured(stores, config)}
    print(json.dumps(found | embedded(stores, config) | predicted(stores, config) | {"parts": PARTS}))


@pytest.fixture(scope="module")
def one_and_eight(tiny_stores) -> list[dict]:
    found = []
    for devices in (1, 8):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        done = subprocess.run(
            [sys.executable, __file__, str(tiny_stores)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert [run["devices"] for run in found] == [1, 8]
    return found


def test_validation_measures_the_same_on_any_mesh(one_and_eight):
    one, eight = (run["validation"] for run in one_and_eight)
    assert one.keys() == eight.keys() and len(one) > 30
    for name, value in one.items():
        assert eight[name] == pytest.approx(value, rel=1e-5), name
    assert one["validation/random/tokens/ecg"] > 0  # per batch: exact in both, see above


def test_embeddings_are_the_same_and_every_window_is_embedded_once(one_and_eight, tiny_stores):
    one, eight = one_and_eight
    config = config_of(1)
    table = windows.epoch_windows(
        open_stores(str(tiny_stores), "size"), config.tokens, dataclasses.replace(config.data, weights={}), "train", 0
    )
    for run in one_and_eight:
        assert len({tuple(window) for window in run["windows"]}) == len(run["windows"]) == len(table)
        assert len(run["batches"]) > 1 and run["batches"][-1] < max(run["batches"])  # the last batch is not full
    assert eight["rows"] % 8 == 0
    assert one["windows"] == eight["windows"]
    np.testing.assert_allclose(eight["vectors"], one["vectors"], rtol=1e-4, atol=1e-5)
    assert one["odd"][1] == eight["odd"][1] == list(range(5))  # empty rows that fill a batch up are no windows
    np.testing.assert_allclose(eight["odd"][0], one["odd"][0], rtol=1e-4, atol=1e-5)


def test_every_network_runs_on_all_devices(one_and_eight):
    for run in one_and_eight:
        assert {name: set(parts) for name, parts in run["parts"].items()} == dict.fromkeys(
            ("embeddings", "layers", "predictions", "signals"), {run["devices"]}
        )


def test_predictions_of_a_task_are_the_same_and_every_recording_has_one(one_and_eight, tiny_stores):
    one, eight = (run["predictions"] for run in one_and_eight)
    (store,) = open_stores(str(tiny_stores), "size")
    assert one["recording"] == eight["recording"] == np.flatnonzero(store.index.split == 0).tolist()
    assert one["windows"] == eight["windows"] and sum(one["windows"]) > 2 * len(one["windows"])
    assert one["labels"] == eight["labels"] and np.std(one["values"]) > 0.01
    np.testing.assert_allclose(eight["values"], one["values"], rtol=0, atol=1e-6)


def test_predicted_signals_and_layers_are_the_same(one_and_eight):
    one, eight = (run["signals"] for run in one_and_eight)
    assert len(one) == len(eight) > 1
    for (recording, start, signal), (other, start_, signal_) in zip(one, eight):
        assert (recording, start) == (other, start_) and len(start) > 3 and np.std(signal) > 0
        np.testing.assert_allclose(signal_, signal, rtol=1e-5, atol=1e-6)
    one, eight = (run["layers"] for run in one_and_eight)
    assert [key for key, _ in one] == [key for key, _ in eight] and len(one) > 3
    np.testing.assert_allclose([m for _, m in eight], [m for _, m in one], rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    main(sys.argv[1])
