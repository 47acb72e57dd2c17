"""Calibration beside a checkpoint: written and read as one, bound to its weights, applied by `csfm predict`."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import expit
from small_checkpoints import task_config, write_checkpoint
from small_stores import recording, write_store

from csfm_jax import cli
from csfm_jax.evaluation import calibrated
from csfm_jax.evaluation.predictions import Predictions
from csfm_jax.tasks.task import Task
from csfm_jax.training import checkpoint
from data_pipelines.errors import BadInput
from data_pipelines.subjects import PUBLIC_KEY, fingerprint

NAMES = ("a", "b", "c")
STEP = calibrated.Step(7, "ab")


def drawn(kind, n=4000, factor=3.0):
    """Predictions that are `factor` times too certain, and what was so."""
    rng = np.random.default_rng(3)
    honest = rng.normal(0, 1.5, (n, 3))
    if kind == "multiclass":
        truth = np.argmax(honest + rng.gumbel(size=honest.shape), axis=1)
        labels, said = np.eye(3)[truth], np.exp(factor * honest)
        said /= said.sum(1, keepdims=True)
    else:
        labels, said = (rng.random(honest.shape) < expit(honest)).astype(float), expit(factor * honest)
    labels[:20, 0] = np.nan
    number = np.arange(n)
    return Predictions(number, number, number, said.astype(np.float32), labels.astype(np.float32))


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_what_is_too_certain_becomes_right_and_is_called(kind):
    task, found = Task("t", "", NAMES, kind), drawn(kind)
    made = calibrated.fit(task, NAMES, found, "youden", 0.95, STEP)
    assert made.temperature == pytest.approx((3.0,) if kind == "multiclass" else (3.0,) * 3, rel=0.1)
    for name in ("brier", "calibration_error"):
        before, after = made.figures[name]
        assert after < before - 0.01
    assert made.figures["calibration_error"][1] < 0.03 and made.recordings == (3980 if kind == "multiclass" else 4000)
    assert made.positives == tuple(np.nansum(calibrated.known_labels(task, found.labels), axis=0))
    values = made.probabilities(found.values)
    called = made.decisions(values)
    if kind == "multiclass":
        np.testing.assert_array_equal(called.argmax(1), found.values.argmax(1))
        assert made.thresholds == () and made.rule == "likeliest" and (called.sum(1) == 1).all()
    else:
        assert made.thresholds == pytest.approx((0.5,) * 3, abs=0.06)
        rates = calibrated.decision_figures(task, NAMES, called, found.labels)
        positive = found.labels[:, 1] > 0.5
        assert rates["sensitivity/b"] == pytest.approx(called[positive, 1].mean())
        assert rates["specificity/b"] == pytest.approx(1 - called[~positive, 1].mean())


def test_a_label_of_one_class_gets_no_threshold_and_certainty_no_infinity():
    found = drawn("multilabel", 200)
    found.labels[:, 2], found.values[:5, 0] = 0, 1.0
    made = calibrated.fit(Task("t", "", NAMES, "multilabel"), NAMES, found, "f1", 0.95, STEP)
    assert np.isnan(made.thresholds[2]) and made.temperature[2] == 1
    values = made.probabilities(found.values)
    assert np.isfinite(values).all() and np.isnan(made.decisions(values)[:, 2]).all()
    assert np.isnan(calibrated.decision_figures(
        Task("t", "", NAMES, "multilabel"), NAMES, made.decisions(values), found.labels)["sensitivity/c"])  # fmt: skip
    found.labels[:] = 0
    with pytest.raises(BadInput, match="one class only"):
        calibrated.fit(Task("t", "", NAMES, "multilabel"), NAMES, found, "f1", 0.95, STEP)
    with pytest.raises(BadInput, match="no probabilities"):
        calibrated.fit(Task("t", "", NAMES, "regression"), NAMES, found, "f1", 0.95, STEP)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """(work directory of an untrained toy model of a task, a store of two leads with its labels)."""
    folder = tmp_path_factory.mktemp("calibrated")
    people = (fingerprint(PUBLIC_KEY), "toy")
    workdir = write_checkpoint(folder / "run", task_config("simulated_rhythm"), people=people)
    rows = []
    for i in range(36):
        labels = {"rhythm/irregular": float(i % 2), "rate/fast": float(i % 3 == 0)}
        rows.append(recording(i, ("I", "II"), 5.0, ("train", "validation", "test")[i // 12], labels=labels))
    write_store(folder / "stores" / "toy", rows, name="toy")
    return workdir, folder / "stores"


def command(name, bench, *more):
    return cli.main([name, f"--checkpoint={bench[0]}", f"--store={bench[1]}", *more])


def test_predictions_are_calibrated_once_the_checkpoint_is(bench, tmp_path, capsys):
    words = [bench, "--unchecked-subjects", f"--output={tmp_path / 'p.parquet'}"]
    assert command("predict", *words) == 0
    assert "probabilities are not calibrated" in capsys.readouterr().out
    before = pq.read_table(tmp_path / "p.parquet").to_pydict()
    assert not any(name.startswith(("uncalibrated/", "decision/")) for name in before)

    assert command("calibrate", bench, "--rule=youden", "--unchecked-subjects") == 0
    out = capsys.readouterr().out
    assert "12 validation recordings" in out and "brier/rate/fast" in out
    assert "rate/fast: 4 of 12 are positive: too few" in out
    step = checkpoint.find_step(bench[0])
    made = calibrated.read(step)
    assert (made.step, made.rule, made.labels) == (3, "youden", ("rhythm/irregular", "rate/fast"))
    assert all(after <= before + 1e-6 for name, (before, after) in made.figures.items() if name == "brier")

    assert command("predict", *words) == 0
    assert "probabilities are calibrated, fitted on 12" in (out := capsys.readouterr().out)
    table = pq.read_table(tmp_path / "p.parquet")
    told, after = json.loads(table.schema.metadata[b"csfm"]), table.to_pydict()
    assert told["calibration"]["rule"] == "youden" and len(told["calibration"]["thresholds"]) == 2
    for i, name in enumerate(made.labels):
        assert after[f"uncalibrated/{name}"] == before[f"prediction/{name}"]
        p = np.array(before[f"prediction/{name}"], np.float64)
        expected = expit(np.log(p / (1 - p)) / made.temperature[i])
        np.testing.assert_allclose(after[f"prediction/{name}"], expected, rtol=1e-5)
        assert after[f"decision/{name}"] == (expected >= made.thresholds[i]).tolist()
    shown = float(out.split("uncalibrated/brier")[1].split()[0])
    truth = np.array([after[f"label/{name}"] for name in made.labels])
    said = np.array([before[f"prediction/{name}"] for name in made.labels])
    assert shown == pytest.approx(np.square(truth - said).mean(1).mean(), abs=1e-4)

    # it is of this step's weights, whole, or nothing
    path = calibrated.path_of(step)
    content = path.read_text()
    path.write_text(content.replace('"rule": "youden"', '"rule": "f1"'))
    assert command("predict", *words) == 2 and "a changed calibration" in capsys.readouterr().err
    path.write_text(content)
    calibrated.write(dataclasses.replace(made, weights="of another run"), step)
    assert command("predict", *words) == 2 and "a calibration of other weights" in capsys.readouterr().err
    calibrated.write(made, step)
    assert path.read_text() == content
    assert checkpoint.Checkpoints(bench[0] / "checkpoints", keep=2).latest() == 3 and path.exists()  # a run goes on


def test_what_cannot_be_calibrated_is_refused(bench, tmp_path, capsys):
    rate = write_checkpoint(tmp_path / "rate", task_config("simulated_heart_rate"))
    assert command("calibrate", (rate, bench[1])) == 2
    assert "a regression task, which predicts no probabilities" in capsys.readouterr().err
    assert command("calibrate", bench, "--specificity=2") == 2
    capsys.readouterr()
    for rule in ((), ("--rule=f1",)):
        assert command("calibrate", bench, *rule, "--specificity=0.9") == 2
        assert "--specificity: found beside --rule=f1" in capsys.readouterr().err
    people = (fingerprint(PUBLIC_KEY), "toy")
    seen = [f"{i:016x}" for i in range(12, 15)]
    leaking = write_checkpoint(tmp_path / "seen", task_config("simulated_rhythm"), people=people, subjects=seen)
    assert command("calibrate", (leaking, bench[1]), "--unchecked-subjects") == 2
    assert "3 of the 12 validation subjects" in capsys.readouterr().err
