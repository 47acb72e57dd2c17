"""Tasks that predict signals: what a batch of them holds, what is learned, written and measured, and what is refused."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_checkpoints import toy_config, write_checkpoint
from small_stores import LEADS, write_store

from csfm_jax import cli, tasks
from csfm_jax.commands import finetune
from csfm_jax.tasks.resolve import read_stores, read_tokens, resolve
from csfm_jax.training import checkpoint
from data_pipelines.loader import evaluation_batches
from data_pipelines.preprocess import INVALID, PreparedRecording
from data_pipelines.signals import CHANNEL_ID, modality_of
from data_pipelines.store_writer import StoredRecording

PEOPLE = ("", "toy")
SPLITS = ("train", "train", "train", "validation", "test", "test")


def beating(number, names, seconds=8.0, split=None):
    """Heart beats of a rate and a size of the recording's own in all channels, lead k (k + 1) times as tall as lead I."""
    rng = np.random.default_rng(number)
    hertz, size = rng.uniform(0.9, 1.8), rng.uniform(0.5, 2.0)
    samples, channels = [], sorted(CHANNEL_ID[name] for name in names)
    for channel in channels:
        modality = modality_of(channel)
        time = np.arange(round(seconds * modality.rate)) / modality.rate
        phase = (hertz * time + 0.3) % 1
        if modality.name == "ecg":
            wave = 400 * size * (channel + 1) * np.exp(-((((phase - 0.5) / hertz) / 0.03) ** 2))
            wave = wave - wave.mean()
        else:
            wave = 1000 * np.sin(2 * np.pi * phase)
        samples.append(np.rint(wave + rng.normal(0, 3, len(time))).astype(np.int16))
    made = PreparedRecording(np.array(channels, np.int32), samples, seconds, [])
    split = split or SPLITS[number % 6]
    return StoredRecording(f"{number:016x}", f"{number + 10**6:016x}", split, made, None, {})


def cohort(folder, recordings=24):
    """Twelve leads; I, II and PPG; PPG alone, in turn."""
    kinds = (LEADS, ("I", "II", "PPG"), ("PPG",))
    made = [beating(n, kinds[(n // 6) % 3]) for n in range(recordings)]
    return write_store(folder / "beating", made, name="beating")


def configured(task, store, *more, base=None):
    """The config of a fine-tuning, with what the store says."""
    words = ["--config.data.window.seconds=4.0", "--config.data.rows=2", *more]
    config = finetune.recipe(base or toy_config(), tasks.get(task), "stores", words, scratch=False)
    return finetune.with_rows(resolve(config, [store]).adapted(config), [store])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    cohort(folder / "stores")
    write_checkpoint(folder / "toy", toy_config(), people=PEOPLE)
    return folder


def words(place, workdir, task, *more):
    settings = {
        "--checkpoint": place / "toy", "--task": task, "--workdir": workdir, "--store": place / "stores",
        "--config.training.steps": 6, "--config.training.log_every": 1, "--config.training.save_every": 3,
        "--config.training.eval_every": 6, "--config.data.rows": 2, "--config.data.window.seconds": 4.0,
    }  # fmt: skip
    settings |= dict(word.split("=", 1) for word in more)
    return ["finetune", "--unchecked-subjects", *(f"{name}={value}" for name, value in settings.items())]


def test_thin(place, tmp_path, capsys):
    assert cli.main(words(place, tmp_path / "run", "lead_to_twelve")) == 0
    print(capsys.readouterr().out)
    out = tmp_path / "predicted"
    assert (
        cli.main(
            [
                "predict",
                f"--checkpoint={tmp_path / 'run'}",
                f"--store={place / 'stores'}",
                f"--output={out}",
                "--unchecked-subjects",
            ]
        )
        == 0
    )
    print(capsys.readouterr().out)
    print(pq.read_table(out / "recordings.parquet").to_pandas())
