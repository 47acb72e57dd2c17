"""Tasks that predict signals: what a batch holds, what is learned, written and measured, and what is refused."""

import dataclasses
import shutil

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from flax import nnx
from small_checkpoints import task_config, toy_config, write_checkpoint
from small_stores import write_store
from test_train import lines

from csfm_jax import cli, tasks
from csfm_jax.commands import finetune
from csfm_jax.evaluation import label_budget, study, task_figures, translated
from csfm_jax.evaluation.cell import Settings
from csfm_jax.evaluation.fine_tuned import FineTuned
from csfm_jax.models import config as model_config
from csfm_jax.models import flops
from csfm_jax.tasks.resolve import read_stores, read_tokens, resolve
from csfm_jax.tasks.task import MEASURED, Task
from csfm_jax.training import checkpoint, initial
from data_pipelines.augment import AugmentConfig
from data_pipelines.config import TokenConfig
from data_pipelines.errors import BadInput
from data_pipelines.loader import evaluation_batches
from data_pipelines.preprocess import INVALID, PreparedRecording
from data_pipelines.signals import CHANNEL_ID, modality_of
from data_pipelines.store_writer import StoredRecording

PEOPLE = ("", "toy")
SPLITS = ("train", "train", "train", "validation", "test", "test")
KINDS = (("I", "II", "V1"), ("I", "II", "PPG"), ("PPG",))


def beating(number, names, seconds=8.0, split=None):
    """Beats of a rate and a size of the recording's own in all channels; II is twice as tall as I, V1 three times."""
    rng = np.random.default_rng(number)
    hertz, size = rng.uniform(0.9, 1.8), rng.uniform(0.5, 2.0)
    samples, channels = [], sorted(CHANNEL_ID[name] for name in names)
    for channel in channels:
        modality = modality_of(channel)
        time = np.arange(round(seconds * modality.rate)) / modality.rate
        phase = (hertz * time + 0.3) % 1
        wave = 1000 * np.sin(2 * np.pi * phase)
        if modality.name == "ecg":
            wave = np.exp(-((((phase - 0.5) / hertz) / 0.03) ** 2))
            wave = 400 * size * min(channel, 3) * (wave - wave.mean())
        samples.append(np.rint(wave + rng.normal(0, 3, len(time))).astype(np.int16))
    if "V1" in names and number % 4 == 0:
        samples[-1][:1000] = INVALID  # the first window of a target
    made = PreparedRecording(np.array(channels, np.int32), samples, seconds, [])
    return StoredRecording(f"{number:016x}", f"{number + 10**6:016x}", split or SPLITS[number % 6], made, None, {})


def configured(task, store, *more, base=None):
    """The config of a fine-tuning, with what the store says."""
    words = ["--config.data.window.seconds=4.0", "--config.data.rows=2", *more]
    config = finetune.recipe(base or toy_config(), tasks.get(task), "stores", words, scratch=False)
    return finetune.with_rows(resolve(config, [store]).adapted(config), [store])


def batches(config, store, folder, split="test"):
    """Every batch of a split, as validation and prediction read it."""
    read = read_stores(config, [store]), read_tokens(config), config.data, split
    return list(evaluation_batches(*read, plans_dir=folder, hide=False, label_names=config.adaptation.labels))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    made = [beating(n, KINDS[(n // 6) % 3]) for n in range(36)]
    store = write_store(folder / "stores" / "beating", made, name="beating")
    write_checkpoint(folder / "toy", toy_config(), people=PEOPLE)
    return folder, store


def test_inputs_are_visible_targets_hidden_and_the_unit_comes_back(place, tmp_path):
    _, store = place
    config = configured("lead_to_twelve", store, "--config.data.row_tokens=512")
    assert config.adaptation.labels == ("II", "V1") and config.data.row_visible < config.data.row_tokens
    assert resolve(config, [store]).recordings == {"train": 12, "validation": 4, "test": 8}  # not those of PPG alone
    seen = 0
    for batch in batches(config, store, tmp_path):
        for row in range(2):
            visible = batch.visible[row][batch.visible[row] < config.data.row_tokens]
            shown = set(batch.channel[row, visible].tolist())
            assert shown <= {CHANNEL_ID["I"], CHANNEL_ID["CLS"]} and not batch.target[row, visible].any()
            assert set(batch.channel[row, batch.target[row]].tolist()) <= {CHANNEL_ID["II"], CHANNEL_ID["V1"]}
            table = batch.labels[row]
            for slot in np.flatnonzero(batch.window[row] >= 0):
                for k, name in enumerate(("II", "V1")):
                    mine = (batch.segment[row] == slot + 1) & (batch.channel[row] == CHANNEL_ID[name])
                    if mine.any():
                        # in deviations of lead I, the one that is known
                        assert batch.patches[row, mine].std() == pytest.approx(k + 2, rel=0.1)
                        millivolts = batch.patches[row, mine] * table[slot, 2 + k] + table[slot, k]
                        assert 0.1 < millivolts.max() < 0.4 * 2 * (k + 2) + 0.1
                        seen += 1
    assert seen == 8 * 2 + 4 * 2 - 1  # windows of II and of V1, of which one is invalid


def test_what_tells_no_amplitude_is_measured_against_train_recordings(place, tmp_path):
    _, store = place
    config = configured("ppg_to_ecg", store)
    assert config.adaptation.labels == ("I", "II")  # of recordings with PPG
    (batch, *_) = batches(config, store, tmp_path)
    expected = np.array([*config.adaptation.mean, *config.adaptation.scale], np.float32)
    known = batch.window >= 0
    np.testing.assert_allclose(batch.labels[known], np.tile(expected, (known.sum(), 1)), rtol=1e-6)
    trained = [store.read_window(r, 0, 4.0) for r in np.flatnonzero(store.index.split == 0)]
    paired = [dict(x) for x in trained if [c for c, _ in x][1:] == [CHANNEL_ID["II"], CHANNEL_ID["PPG"]]]
    deviations = [x[CHANNEL_ID["II"]].std() / 1000 for x in paired]
    assert config.adaptation.scale[1] == pytest.approx(np.median(deviations), rel=0.02)


def test_few_patients_teach_signals_too(place):
    _, store = place
    config = configured("lead_to_twelve", store, "--config.adaptation.halvings=1")
    (learned,) = label_budget.among(config, read_stores(config, [store]))
    everyone, half = label_budget.patients([store], ("II", "V1"), tasks.get("lead_to_twelve"), 1, 0)
    assert (len(everyone), len(half)) == (12, 6) and set(half) < set(everyone)
    assert set(store.index.subject[learned]) == set(half)
    assert config.adaptation.scale != configured("lead_to_twelve", store).adaptation.scale  # what the few say


def test_what_is_added_is_the_windows_own_and_the_target_stays_clean(place, tmp_path):
    _, store = place
    config = configured("denoise_ecg", store)
    (pairs,) = read_stores(config, [store])
    noisy = [pairs.read_pair(1, 0.0, 4.0, np.random.default_rng(s)) for s in (0, 0, 1)]
    np.testing.assert_array_equal(noisy[0].given[0][1], noisy[1].given[0][1])
    assert np.abs(noisy[0].given[0][1] - noisy[2].given[0][1]).max() > 10
    clean, given = dict(store.read_window(1, 0.0, 4.0)), dict(zip(*noisy[0].given[0]))
    labels = [CHANNEL_ID[name] for name in config.adaptation.labels]
    for (channel,), values in noisy[0].asked:
        mean, deviation = (noisy[0].reference[labels.index(channel) + at] for at in (0, len(labels)))
        np.testing.assert_allclose((values[0] * deviation + mean) * 1000, clean[channel], atol=1e-2)
        assert deviation == pytest.approx(np.std(given[channel]) / 1000, rel=1e-3)  # known where the truth is not
    # a window's noise is its own, whoever its neighbours in the row are
    alone = dataclasses.replace(config, data=dataclasses.replace(config.data, row_windows=1))
    found = batches(config, store, tmp_path / "a"), batches(alone, store, tmp_path / "b")
    first = [
        {float(b.patches[row][b.visible[row][1]].sum()) for b in some for row in range(2) if b.window[row, 0] >= 0}
        for some in found
    ]
    assert first[0] <= first[1]
    target, real = found[0][0].target, found[0][0].channel > 0
    assert 0 < target.sum() <= (real & ~target).sum()  # a clean twin of every noisy token, and CLS


def words(place, workdir, task, *more):
    settings = {
        "--checkpoint": place / "toy", "--task": task, "--workdir": workdir, "--store": place / "stores",
        "--config.training.steps": 4, "--config.training.log_every": 1, "--config.training.save_every": 2,
        "--config.training.eval_every": 4, "--config.data.rows": 2, "--config.data.window.seconds": 4.0,
    }  # fmt: skip
    settings |= dict(word.split("=", 1) for word in more)
    return ["finetune", "--unchecked-subjects", *(f"{name}={value}" for name, value in settings.items())]


@pytest.fixture(scope="module")
def finished(place):
    """A run of one lead to the others."""
    workdir = place[0] / "run"
    assert cli.main(words(place[0], workdir, "lead_to_twelve")) == 0
    return workdir


def test_encoder_and_decoder_go_on_from_the_checkpoint_and_a_stopped_run_goes_on(place, finished, tmp_path):
    written = lines(finished)
    assert len(written) == 4 and {"loss/lead_to_twelve", "mae/II", "mae/V1"} <= set(written[0])
    assert written[-1]["loss/lead_to_twelve"] < written[0]["loss/lead_to_twelve"]
    config, params, run = checkpoint.restore_params(finished)
    assert run["initial"]["step"] == 3 and config.objective.name == "translation"
    before = checkpoint.restore_params(place[0] / "toy")[1]
    for part in ("encoder", "decoder"):
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before[part], params[part])
        largest = max(jax.tree.leaves(moved))
        assert 0 < largest < 0.02  # four steps of 1e-4 away from where pretraining ended
    again = shutil.copytree(finished, tmp_path / "again")
    shutil.rmtree(again / "checkpoints" / "4")
    (again / "checkpoints" / "4.manifest.json").unlink()
    assert cli.main(words(place[0], again, "lead_to_twelve")) == 0
    jax.tree.map(np.testing.assert_array_equal, checkpoint.restore_params(again)[1], params)


def test_inputs_tell_and_targets_do_not_and_measures_are_those_of_the_signals(place, finished, tmp_path):
    model = FineTuned.load(finished)
    batch = batches(model.config, place[1], tmp_path)[0]
    graphdef, state = nnx.split(model.objective)
    signals, values = jax.device_get(translated._apply(graphdef, state, batch))
    assert model.objective.target_counts(batch)["loss/lead_to_twelve"] == batch.target.sum() * 125
    inputs_alone = np.where((batch.channel == CHANNEL_ID["I"])[..., None], batch.patches, 0.0)
    blind = jax.device_get(translated._apply(graphdef, state, batch._replace(patches=inputs_alone)))[0]
    np.testing.assert_array_equal(blind.predicted[batch.target], signals.predicted[batch.target])
    other = jax.device_get(translated._apply(graphdef, state, batch._replace(patches=-batch.patches)))[0]
    assert np.abs(other.predicted - signals.predicted)[batch.target].max() > 1e-3  # of a decoder that knows little
    values, compared = values.reshape(*batch.window.shape, 2, len(MEASURED)), 0
    for row, slot in zip(*np.nonzero(batch.window >= 0)):
        for k, name in enumerate(("II", "V1")):
            mine = (batch.segment[row] == slot + 1) & (batch.channel[row] == CHANNEL_ID[name]) & batch.target[row]
            if not mine.any():
                assert np.isnan(values[row, slot, k]).all()
                continue
            p, r = (x[row, mine].ravel() for x in signals)
            expected = (np.abs(p - r).mean(), np.square(p - r).mean(), np.corrcoef(p, r)[0, 1])
            np.testing.assert_allclose(values[row, slot, k, :3], expected, rtol=2e-3, atol=1e-4)
            compared += 1
    assert compared


def test_predicted_signals_are_files_and_figures_are_those_of_validation(place, finished, tmp_path, capsys):
    given = ["predict", f"--checkpoint={finished}", f"--store={place[0] / 'stores'}", "--unchecked-subjects"]
    assert cli.main([*given, "--split=validation", f"--output={tmp_path / 'made'}"]) == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    shown = {name: float(value) for name, value in told}
    held_out = lines(finished, "validation")[-1]
    for name in ("correlation", "mean_absolute_error/V1", "root_mean_square_error/II"):
        assert shown[name] == pytest.approx(held_out[f"validation/{name}"], abs=2e-4)
    table = pq.read_table(tmp_path / "made" / "recordings.parquet").to_pandas()
    assert len(table) == 4 and set(table.windows) == {2} and 0 <= shown["heart_rate_found"] <= 1
    store = place[1]
    for row in table.itertuples():
        with np.load(tmp_path / "made" / f"recording-{row.number:06d}.npz") as file:
            arrays = dict(file)
        (at,) = np.flatnonzero(store.index.study == row.recording.encode())
        assert str(arrays["unit/II"]) == "mV" and arrays["start"].tolist() == [0.0, 4.0]
        truth = dict(store.read_window(int(at), 4.0, 4.0))[CHANNEL_ID["II"]] / 1000
        np.testing.assert_allclose(arrays["recorded/II"][1], truth, atol=1e-4)
        error = np.abs(arrays["predicted/II"] - arrays["recorded/II"])
        assert error.mean() == pytest.approx(table["II/absolute_error"][row.number], rel=1e-3)
        if "recorded/V1" in arrays and np.isnan(arrays["recorded/V1"]).any():
            assert np.isnan(arrays["predicted/V1"][0]).all() and np.isfinite(arrays["predicted/V1"][1]).all()
    blind = ["--blind", "--split=validation", f"--output={tmp_path / 'blind'}"]
    assert cli.main([*given, *blind]) == 0 and "correlation" not in capsys.readouterr().out
    assert pq.read_table(tmp_path / "blind" / "recordings.parquet").num_rows == 4
    with np.load(tmp_path / "blind" / "recording-000003.npz") as file:  # of one that has no V1
        assert np.isfinite(file["predicted/V1"]).all() and "recorded/V1" not in file
    hashes = {s.decode() for s in (*store.index.subject, *store.index.study)}
    assert not any(h in p.name for h in hashes for p in (tmp_path / "made").iterdir())
    assert cli.main([*given, f"--output={tmp_path / 'made'}"]) == 2 and "not empty" in capsys.readouterr().err
    assert cli.main([*given, f"--output={tmp_path / 'x.npz'}"]) == 2 and "a folder" in capsys.readouterr().err
    assert cli.main(["export", f"--checkpoint={finished}", f"--output={tmp_path / 'e'}"]) == 2
    assert "predicts signals" in capsys.readouterr().err


def test_a_study_judges_signals_with_intervals_and_says_what_makes_no_sense(place, finished, tmp_path, capsys):
    given = ["evaluate", "--tasks=lead_to_twelve", f"--models={finished},trees", f"--store={place[0] / 'stores'}",
             f"--workdir={tmp_path}", "--bootstrap=50", "--unchecked-subjects"]  # fmt: skip
    assert cli.main(given) == 1
    out = capsys.readouterr().out
    assert "found a task of signals; expected classes or values, which trees predict" in out and "correlation" in out
    rows = pq.read_table(tmp_path / "results.parquet").to_pandas().set_index(["figure", "label"])
    one = rows.loc[("mean_absolute_error", "V1")]
    assert one.low <= one.point <= one.high and one.cases == 8
    assert "Pearson" in (tmp_path / "report.html").read_text()
    with pytest.raises(BadInput, match="lead_to_twelve reads is part of the task"):
        settings = Settings("", [place[1]], [], 0, True, tmp_path, 0, 0)
        study.plan(settings, "lead_to_twelve", "trees", "2", None, tmp_path / "other")


def test_the_error_of_a_heart_rate_is_in_beats_a_minute():
    """Beats at 60 and 72 a minute; a prediction without beats has no rate, a recording without them asks for none."""
    seconds, rate = np.arange(10 * modality_of("II").rate) / modality_of("II").rate, (1.0, 1.2)
    slow, fast = (np.exp(-((((hertz * seconds + 0.3) % 1 - 0.5) / hertz / 0.03) ** 2)) for hertz in rate)
    flat = np.zeros_like(slow)
    signal = translated.Signal(*(np.stack(x).astype(np.float32) for x in ([fast, flat, slow], [slow, slow, flat])))
    found = translated._rates(signal, "II")
    np.testing.assert_allclose(found[0], [12, 1], atol=0.5)
    assert np.isnan(found[1, 0]) and found[1, 1] == 0 and np.isnan(found[2]).all()


def test_figures_of_recordings_have_known_answers():
    task, outputs = tasks.get("lead_to_twelve"), tasks.get("lead_to_twelve").outputs(("II", "V1"))
    values = np.array([[1, 4, 0.5, 3, 1, np.nan, np.nan, np.nan, np.nan, np.nan], [3, 16, 0.9, 5, 0, 2, 9, 0.2, 1, 1]])
    labels = np.array([[1, np.nan], [1, 1]])
    found = task_figures.all_of(task, outputs, values, labels, (values, labels), ()).under(np.array([[1, 1], [3, 1]]))
    np.testing.assert_allclose(found["mean_absolute_error/II"], [2, 1.5])
    np.testing.assert_allclose(found["root_mean_square_error/II"], [np.sqrt(10), np.sqrt(7)])
    np.testing.assert_allclose(found["correlation/V1"], [0.2, 0.2])
    np.testing.assert_allclose(found["correlation"], [0.45, (0.6 + 0.2) / 2])
    np.testing.assert_allclose(found["heart_rate_error/II"], [4, 3.5])


def test_what_cannot_be_is_refused_by_name(place, tmp_path):
    folder, store = place
    breath = write_store(tmp_path / "ecg", [beating(n, ("I", "II"), split="train") for n in range(2)], name="ecg")
    with pytest.raises(BadInput, match="ppg"):
        configured("ppg_to_ecg", breath)
    lonely = write_store(tmp_path / "v", [beating(n, ("V1",), split="train") for n in range(2)], name="v")
    with pytest.raises(BadInput, match="no recording with I and II, .*only ecg"):
        configured("lead_to_twelve", lonely)
    with pytest.raises(BadInput, match="no train recording with inputs and targets"):
        configured("lead_to_twelve", write_store(tmp_path / "t", [beating(4, ("I", "II"))], name="t"))
    both = Task("both", "", (), "signal", inputs=("I", "II"), targets=("ecg",))
    with pytest.raises(BadInput, match="I, both an input and a target"):
        tasks.TASKS["both"] = both
        try:
            configured("both", store)
        finally:
            del tasks.TASKS["both"]
    with pytest.raises(BadInput, match="one of ecg alone; expected a model that knows the inputs of ppg_to_ecg"):
        configured("ppg_to_ecg", store, base=dataclasses.replace(toy_config(), tokens=TokenConfig(modalities=("ecg",))))


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("adaptation", {"head": "attention"}, "the decoder is what predicts lead_to_twelve"),
        ("objective", {"name": "supervised"}, '"translation" with a task'),
        ("objective", {"normalise_target": True}, "normalise_target"),
        ("adaptation", {"loss": "bce"}, "'squared', 'huber' for a signal task"),
        ("data", {"augment": AugmentConfig(shift_seconds=1.0)}, "away from their targets"),
    ],
)
def test_settings_that_do_not_fit_are_refused(place, part, values, message):
    config = configured("lead_to_twelve", place[1])
    model_config.check(config)
    assert flops.count(config).decoder > 0
    with pytest.raises(BadInput, match=message):
        model_config.check(dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **values)}))


def test_checkpoints_without_the_decoder_are_refused(place, tmp_path):
    folder, store = place
    config = configured("lead_to_twelve", store)
    taught = write_checkpoint(tmp_path / "taught", task_config("simulated_rhythm"), people=PEOPLE)
    with pytest.raises(BadInput, match="the objective 'supervised', which holds no decoder"):
        initial.read(str(taught), config, [store], None)
    wider = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, width=32))
    with pytest.raises(BadInput, match="config.decoder.width"):
        initial.read(str(folder / "toy"), wider, [store], None)
