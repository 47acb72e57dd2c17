"""Exports from and to object stores, and what else reads a checkpoint there."""

import jax
import numpy as np
import pytest
from flax import nnx
from object_stores import Fault, fake_s3, s3_bucket
from small_checkpoints import toy_config, write_checkpoint

from csfm_jax import encoding
from csfm_jax.cli import main
from csfm_jax.evaluation import calibrated
from csfm_jax.export import golden
from csfm_jax.training import record
from data_pipelines import storage, storage_errors
from data_pipelines.errors import BadInput

for _package in ("s3fs", "moto", "flask", "flask_cors"):
    pytest.importorskip(_package, reason=f"no {_package}: object stores are not tested")

RUN, OUT = "s3://bucket/run", "s3://bucket/exports/toy"


@pytest.fixture
def s3(monkeypatch, tmp_path):
    with fake_s3() as server, s3_bucket(server, monkeypatch, tmp_path) as made:
        yield made


@pytest.fixture
def run(s3, tmp_path, monkeypatch):
    """A checkpoint here, and the same at RUN; golden inputs, which are compiled for, are left out of exports."""
    monkeypatch.setattr(golden, "cases", lambda tokens, window: {})
    local = write_checkpoint(tmp_path / "run", toy_config(), subjects=["a" * 16, "b" * 16])
    for name in storage.file_sizes(local):
        storage.upload(local / name, f"{RUN}/{name}")
    return local


def content(place) -> dict[str, bytes]:
    return {name: storage.read_bytes(storage.join(place, name)) for name in storage.file_sizes(place)}


def export(checkpoint, output) -> int:
    return main(["export", f"--checkpoint={checkpoint}", f"--output={output}"])


def test_a_checkpoint_there_is_loaded_as_one_here(run):
    for load in (encoding.load, lambda path: encoding.load_objective(path)[1]):
        here, there = load(run), load(RUN)
        one, two = (nnx.to_pure_dict(nnx.state(x.encoder, nnx.Param)) for x in (here, there))
        jax.tree.map(np.testing.assert_array_equal, one, two)
        assert there.provenance == here.provenance | {"path": f"{RUN}/checkpoints/3"}
        assert record.trained_on(there.provenance) == record.trained_on(here.provenance)
    storage.write_bytes(f"{RUN}/{record.SUBJECTS}", b"another list")
    with pytest.raises(BadInput, match=f"{RUN}/{record.SUBJECTS}"):
        record.trained_on(there.provenance)


def test_a_calibration_there_lies_beside_its_step(run):
    step = f"{RUN}/checkpoints/3"
    assert calibrated.read(step) is None
    of = calibrated.Step.of(step)
    assert of == calibrated.Step.of(run / "checkpoints" / "3")
    made = calibrated.Calibrated(
        step=of.number, weights=of.digest, task="t", labels=("a",), exclusive=False, temperature=(1.5,),
        thresholds=(0.25,), rule="f1", specificity=0.95, recordings=3, positives=(1,), figures={"brier": [0.25, 0.125]},
    )  # fmt: skip
    assert calibrated.write(made, step) == f"{RUN}/checkpoints/calibration-3.json"
    assert calibrated.read(step) == made and record.trained_on(encoding.load(RUN).provenance).complete


def test_an_export_there_is_the_export_here(run, s3, tmp_path, capsys):
    assert export(run, tmp_path / "out") == 0
    s3.faults += [Fault("PUT /bucket/exports/toy/model", cut=0)]
    assert export(RUN, OUT) == 0
    assert "check a copy of it with" in capsys.readouterr().out
    assert content(OUT) == content(tmp_path / "out")
    puts = [line.split()[1] for line in s3.requests if line.startswith("PUT")]
    assert puts[-1].endswith("/manifest.json")


def test_only_an_export_is_replaced_and_half_of_one_is_none(run, s3, tmp_path, capsys, monkeypatch):
    storage.write_bytes(f"{OUT}/notes.txt", b"keep")
    assert export(RUN, OUT) == 2 and f"{OUT}: found something that is no export" in capsys.readouterr().err
    storage.delete_tree(OUT)
    assert export(RUN, OUT) == 0
    whole = content(OUT)
    storage.write_bytes(f"{OUT}/of-an-earlier-version.py", b"")
    s3.faults.append(Fault("PUT /bucket/exports/toy/preprocess.py", 100, 403))
    assert export(RUN, OUT) == 2
    assert not storage.exists(f"{OUT}/manifest.json")  # what is half replaced is no export
    s3.faults.clear()
    assert export(RUN, OUT) == 0 and content(OUT) == whole
    capsys.readouterr()
    monkeypatch.setitem(storage_errors.TRIES, "s3", 1)
    s3.faults.append(Fault("GET /bucket/exports/toy/manifest.json", 3, 503))  # says nothing of what is there
    assert export(RUN, OUT) == 2 and "found HTTP 503" in capsys.readouterr().err
