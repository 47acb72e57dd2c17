"""A fine-tuned checkpoint exported with its head: PyTorch says of raw recordings what JAX says, by label."""

import dataclasses
import hashlib
import itertools
import json
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
from small_checkpoints import task_config, toy_params, write_checkpoint
from test_export import pytorch, run

from csfm_jax.cli import main
from csfm_jax.evaluation import calibrated
from csfm_jax.evaluation.fine_tuned import FineTuned
from csfm_jax.export import golden
from csfm_jax.training import checkpoint
from data_pipelines.config import WindowConfig
from data_pipelines.windows import fixed_starts

torch = pytest.importorskip("torch")

RHYTHM, RATE = "simulated_rhythm", "simulated_heart_rate"
VARIANTS = {  # by head
    "linear": task_config(RHYTHM),
    "attention": task_config(RATE, head="attention", trainable="lora", lora_rank=2),
    "average": task_config(RHYTHM, head="average"),
    "mixture": task_config(RHYTHM, depth=2, head="mixture", trainable="lora", lora_rank=2),
    "alarm": task_config("cinc2015_false_alarm"),  # from 290 s on
    "exclusive": task_config("cinc2017_rhythm"),
}
FEW, all_cases = ("one_lead", "ecg_ppg_text"), golden.cases
CHANNELS = ["V2", "PPG", "II", "EEG C4-A1"]


def signal(seconds, seed=0):
    """Four channels at 200 Hz, one of which no model here knows; the second window of 4 s has a hole."""
    x = np.random.default_rng(seed).standard_normal((4, int(seconds * 200))).astype(np.float32)
    x[0, 900:1300] = np.nan
    return x


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """name -> (the model as JAX has it, LoRA beside its kernels, and its exported folder)."""
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("task")
            params = toy_params(VARIANTS[name])
            if name == "mixture":  # a gate that is sure of one layer would hide mistakes
                gate = {part: params["head"][part] for part in ("gate", "last")}
                params["head"] |= jax.tree.map(lambda x: np.float32(0.2) * x, gate)
            workdir = write_checkpoint(folder / "run", VARIANTS[name], params=params)
            step = checkpoint.find_step(workdir)
            if name == "linear":
                told = dict(step=3, weights=calibrated.Step.of(step).digest, task=RHYTHM, exclusive=False)
                labels = VARIANTS[name].adaptation.labels
                figures = {"brier": [0.4, 0.2], "calibration_error": [0.3, 0.1]}
                fitted = calibrated.Calibrated(
                    **told, labels=labels, temperature=(2.5, 0.4), thresholds=(0.31, float("nan")), rule="youden",
                    specificity=0.95, recordings=12, positives=(6, 4), figures=figures,
                )  # fmt: skip
                calibrated.write(fitted, step)
                lines = [{"step": s, "validation/macro_auroc": a} for s, a in ((2, 0.75), (3, 0.875), (4, 0.99))]
                (workdir / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            with pytest.MonkeyPatch.context() as patch:
                # what takes time is compiling for each of them
                patch.setattr(golden, "cases", lambda *a: {n: c for n, c in all_cases(*a).items() if n in FEW})
                assert main(["export", f"--checkpoint={workdir}", f"--output={folder / 'out'}"]) == 0
            made[name] = FineTuned.load(workdir), folder / "out"
        return made[name]

    return of


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("seconds, windows", [(44, 11), (9, 8)])  # as many as cover it; eight that overlap
def test_every_head_agrees_from_raw_signals_on(name, exported, seconds, windows):
    model, folder = exported(name)
    module = pytorch(folder)
    differences = module.selfcheck(folder)
    assert differences.keys() == {*FEW, *(f"{case}, task" for case in FEW)}
    assert max(differences.values()) <= 1e-5
    task = module.CSFMTask.from_folder(folder)
    before = model.config.data.window.begin
    x = signal(before + seconds)
    found, expected = task.predict(x, 200, CHANNELS), model.tell(x, 200, CHANNELS)
    windows = 8 if before else windows  # the stretch before an alarm ends there
    assert found.scores.shape == expected.scores.shape == (windows, len(model.outputs))
    np.testing.assert_allclose(found.scores.numpy(), expected.scores, rtol=1e-5, atol=1e-5)
    assert tuple(found.values) == tuple(expected.values) == model.outputs
    unit = model.config.adaptation.scale or (1.0,)
    for label, value in expected.values.items():
        assert abs(found.values[label] - value) <= 1e-5 * unit[0]
    assert found.decisions == expected.decisions
    pulse = "kept" if "ppg" in model.task.sensors else "dropped"
    assert [told["status"] for told in found.report] == ["kept", pulse, "kept", "dropped"]
    # windows differ, or their mean would show nothing
    assert np.ptp(expected.scores, axis=0).min() > 1e-3


def test_the_windows_of_a_task_are_those_of_a_store(exported):
    _, folder = exported("linear")
    encoder = pytorch(folder).CSFMTask.from_folder(folder).encoder
    for length, seconds in itertools.product((9.8, 9.6, 9.0, 8.6, 2.5, 2.4), (7.3, 9.6, 10.0, 10.1, 30.0, 299.96)):
        encoder.config_dict |= {"window_seconds": length, "minimum_seconds": 0.1}
        for begin, end in ((0.0, 0.0), (2.53, 9.0)):
            task = {"begin": begin, "end": end, "crops": 8, "most_windows": 20}
            window = WindowConfig(length, 0.1, 20, False, 8, begin, end)
            starts = [start for start, _ in encoder._windows([], seconds, task)]
            np.testing.assert_array_equal(starts, fixed_starts(window, seconds)[0])


def test_calibration_goes_with_it(exported):
    model, folder = exported("linear")
    task = pytorch(folder).CSFMTask.from_folder(folder)
    found = task.predict(signal(9), 200, CHANNELS)
    plain = found.scores.double().sigmoid().mean(0).numpy()
    expected = 1 / (1 + np.exp(-np.log(plain / (1 - plain)) / np.array([2.5, 0.4])))
    np.testing.assert_allclose(list(found.values.values()), expected, atol=1e-6)
    first = model.outputs[0]
    assert found.calibrated and found.decisions == {first: bool(expected[0] >= 0.31)}  # the other has no threshold
    plain = exported("average")[1]
    other = pytorch(plain).CSFMTask.from_folder(plain).predict(signal(9), 200, CHANNELS)
    assert not other.calibrated and other.decisions == {}
    card = (folder / "README.md").read_text()
    for told in ("rhythm/irregular, rate/fast", "macro_auroc 0.875", "brier 0.4000, then 0.2000", "2.5, 0.4", "youden"):
        assert told in card, told
    assert "calibrated probability" in card and "Hidden" not in card and "0.99" not in card
    assert "not calibrated" in (plain / "README.md").read_text()


def test_every_parameter_of_the_head_is_used(exported):
    for name in ("mixture", "attention"):
        model, folder = exported(name)
        module = pytorch(folder)
        wanted = model.tell(signal(5), 200, CHANNELS).scores
        names = [n for n, _ in module.CSFMTask.from_folder(folder).named_parameters() if n.startswith("head.")]
        assert len(names) == (12 if name == "mixture" else 7)
        for changed in names:
            task = module.CSFMTask.from_folder(folder)
            with torch.no_grad():
                dict(task.named_parameters())[changed].mul_(1.5)
            assert np.abs(task.predict(signal(5), 200, CHANNELS).scores.numpy() - wanted).max() > 1e-5, changed


def test_the_folder_stands_alone_and_a_wrong_head_shows(exported, tmp_path):
    folder = shutil.copytree(exported("mixture")[1], tmp_path / "out")
    done = run(folder / "csfm_torch.py", "--selfcheck")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("agrees") == 4
    module = pytorch(exported("mixture")[1])
    files = json.loads((folder / "manifest.json").read_text())["files"]
    with np.load(folder / "golden.npz") as arrays:
        changed = {name: arrays[name].copy() for name in arrays.files}
    changed["one_lead/values"][0] += 1e-3
    np.savez(folder / "golden.npz", **changed)
    hashed = hashlib.sha256((folder / "golden.npz").read_bytes()).hexdigest()
    files["golden.npz"] = {"size": (folder / "golden.npz").stat().st_size, "sha256": hashed}
    (folder / "manifest.json").write_text(module.manifest_text(files))
    done = run(folder / "csfm_torch.py", "--selfcheck")
    assert done.returncode == 1 and done.stdout.count("DIFFERS") == 1 and "one_lead, task" in done.stdout


def test_transformers_load_the_head(exported, tmp_path):
    pytest.importorskip("transformers")
    model, folder = exported("attention")
    code = """
import sys, numpy as np
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
x = np.load(sys.argv[1] + "/golden.npz")
print(model.predict(x["one_lead/signal"], 500, ["II"]).values["heart_rate"] - x["one_lead/values"][0])
"""
    done = run("-c", code, folder, env={"HF_HOME": str(tmp_path / "cache")})
    assert abs(float(done.stdout)) <= 12e-5, done.stderr


@pytest.mark.parametrize("task", ["mitdb_beats", "sleep_edf_stages"])
def test_a_task_of_stretches_is_refused_by_name(task, tmp_path, capsys):
    workdir = write_checkpoint(tmp_path / "run", task_config(task))
    assert main(["export", f"--checkpoint={workdir}", f"--output={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"csfm export: {workdir}: found ") and task in said and "csfm predict" in said


def test_what_is_no_task_is_refused_by_name(exported, tmp_path, capsys):
    module = pytorch(exported("linear")[1])
    task = module.CSFMTask.from_folder(exported("linear")[1])
    with pytest.raises(module.Refused, match="no channel that can be used"):
        task.predict(signal(5)[3:], 200, ["EEG C4-A1"])
    with pytest.raises(module.Refused, match="expected 2 s or more"):
        task.predict(signal(1), 200, CHANNELS)
    config = json.loads((exported("linear")[1] / "config.json").read_text())
    module.CSFMEncoder(config)  # an encoder alone needs no task
    baseline = dataclasses.replace(
        VARIANTS["linear"], backbone=dataclasses.replace(VARIANTS["linear"].backbone, name="net1d")
    )
    capsys.readouterr()
    with mock.patch("csfm_jax.training.checkpoint.restore_params", lambda path: (baseline, {}, {})):
        workdir = exported("linear")[1].parent / "run"
        assert main(["export", f"--checkpoint={workdir}", f"--output={tmp_path / 'out'}"]) == 2
    assert "the backbone net1d, a supervised baseline" in capsys.readouterr().err
