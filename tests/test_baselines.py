"""Classical features of real recordings against what is known of them, and trees on data with a known answer."""

import functools

import numpy as np
import pytest
from small_stores import recording, write_store

import data_pipelines
from csfm_jax.baselines import classical, feature_table, trees
from csfm_jax.evaluation import metrics
from csfm_jax.evaluation.probes import Cases
from data_pipelines.errors import BadInput
from data_pipelines.prepare_shard import prepare_recording
from data_pipelines.preprocess import INVALID
from data_pipelines.signals import CHANNEL_ID
from data_pipelines.store_writer import StoredRecording

COLUMN = {name: i for i, name in enumerate(classical.FEATURES)}
PTBXL = ("00001", "00003", "00008")


def _stored(path, number):
    prepared, _ = prepare_recording(data_pipelines.read(path), spec="csfm-jax")
    return StoredRecording(f"{number:016x}", f"{number + 99:016x}", "train", prepared)


@pytest.fixture(scope="module")
def real(shared_data, tmp_path_factory):
    """Three PTB-XL recordings, two of BIDMC (eight minutes: ECG, PPG, respiration), and one that is noise."""
    paths = [shared_data / f"ptbxl/records500/00000/{name}_hr" for name in PTBXL]
    paths += [shared_data / "bidmc/bidmc02", shared_data / "bidmc/bidmc07"]
    noise = recording(9, ("II", "PPG", "RESP", "SpO2"), 10.0)
    folder = tmp_path_factory.mktemp("classical")
    return write_store(folder / "real", [*(_stored(p, i) for i, p in enumerate(paths)), noise], "real")


@pytest.fixture(scope="module")
def measured(real):
    return feature_table.feature_table([real], seconds=60.0)


def _of(table, row):
    return {name: float(table.values[row, i]) for name, i in COLUMN.items()}


def test_features_of_real_ecgs_are_those_of_a_heart(measured):
    assert measured.values.shape == (6, len(classical.FEATURES)) and measured.values.dtype == np.float32
    for row in range(3):
        found = _of(measured, row)
        assert 40 < found["ecg/slowest"] <= found["ecg/rate"] <= found["ecg/fastest"] < 150
        assert 60 < found["ecg/qrs_ms"] < 200 and 250 < found["ecg/qt_ms"] < 550
        assert found["ecg/MeanNN"] == pytest.approx(60000 / found["ecg/rate"], rel=0.15)
        assert all(0.02 < found[f"{lead}/r"] - found[f"{lead}/s"] < 5 for lead in classical.LEADS)
        assert found["aVR/s"] < -found["aVR/r"] and found["II/r"] > 0.1  # aVR looks at the heart from behind
        assert -90 <= found["ecg/axis"] <= 120
        assert np.isnan(found["ppg/rate"]) and np.isnan(found["spo2/mean"])


def test_rates_agree_with_the_monitor(measured, shared_data):
    for row, name in ((3, "02"), (4, "07")):
        lines = (shared_data / f"bidmc/bidmc_{name}_Numerics.csv").read_text().splitlines()[1:61]
        numbers = [[float(v) if v.strip() not in ("", "NaN") else np.nan for v in line.split(",")] for line in lines]
        heart, pulse, breaths = np.nanmedian(np.array(numbers)[:, 1:4], axis=0)
        found = _of(measured, row)
        assert found["ecg/rate"] == pytest.approx(heart, abs=3) and found["ppg/rate"] == pytest.approx(pulse, abs=3)
        assert found["resp/rate"] == pytest.approx(breaths, abs=3)
        assert found["ppg/amplitude"] > 0.5 and 50 < found["ppg/rise_ms"] < 500
        assert found["resp/depth"] > 0.5


def test_noise_gives_nothing_worse_than_nan(measured):
    assert not np.isinf(measured.values).any()
    assert np.isfinite(_of(measured, 5)["spo2/mean"])


def test_workers_measure_the_same(real, measured):
    again = feature_table.feature_table([real], workers=1, seconds=60.0)
    assert np.array_equal(again.values, measured.values, equal_nan=True)
    assert (again.failures, again.recording.tolist()) == (measured.failures, list(range(6)))


def _sensors(store, row, seconds=60.0):
    return feature_table.sensors_of(store, row, seconds)


def test_what_is_invalid_is_not_measured(real, measured):
    sensors = _sensors(real, 3)
    samples = sensors["II"].samples.copy()
    samples[2500:5000] = np.nan  # ten seconds off
    samples[7000:7450] = np.nan  # and less than two: no longer than a pause of a heart might be
    gap = sensors | {"II": classical.Sensor(samples, 250)}
    found = dict(zip(classical.FEATURES, classical.measure(gap).values))
    whole = _of(measured, 3)
    assert found["ecg/rate"] == pytest.approx(whole["ecg/rate"], abs=2)
    assert found["ecg/slowest"] > 60
    nothing = {name: classical.Sensor(np.full_like(s.samples, np.nan), s.rate) for name, s in sensors.items()}
    empty = classical.measure(nothing)
    assert np.isnan(empty.values).all() and empty.failed == ()
    assert np.isnan(classical.measure({}).values).all()


def test_an_algorithm_that_raises_costs_its_own_features_only(real, monkeypatch):
    class Broken:
        def __getattr__(self, name):
            if name == "ppg_findpeaks":
                raise IndexError("of another library")
            return getattr(whole, name)

    whole = classical._neurokit()
    monkeypatch.setattr(classical, "_neurokit", lambda: Broken())
    found = classical.measure(_sensors(real, 3, 20.0))
    assert found.failed == ("ppg",) and np.isnan(found.values[COLUMN["ppg/rate"]])
    assert np.isfinite(found.values[[COLUMN["ecg/rate"], COLUMN["resp/rate"]]]).all()


def test_short_and_empty_recordings_are_measured_as_nothing(tmp_path):
    short = recording(1, classical.LEADS, 0.8)
    for samples in short.prepared.samples[:6]:
        samples[:] = INVALID
    store = write_store(tmp_path / "s", [short, recording(2, ("EEG C3",), 5.0)], "s")
    assert CHANNEL_ID["EEG C3"] in store.index.channel_sets[store.index.channel_set[1]]
    table = feature_table.feature_table([store])
    assert np.isnan(table.values[:, COLUMN["ecg/rate"]]).all()


def test_stores_of_another_preprocessing_are_refused(real):
    class Other:
        spec, path = type("Spec", (), {"name": "csfm-published"}), "elsewhere"

    with pytest.raises(BadInput, match="csfm-published"):
        feature_table.feature_table([real, Other()])


@pytest.fixture
def few_trees(monkeypatch):
    monkeypatch.setattr(trees, "TREES", 60)
    monkeypatch.setattr(trees, "_UNCHECKED_TREES", 30)


def _cases(seed, n, truth):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6))
    made = truth(x, rng.normal(size=n))
    x[rng.random(x.shape) < 0.1] = np.nan
    return Cases(x, made)


def test_trees_find_what_is_not_linear_and_nothing_else(few_trees):
    def truth(x, e):
        both = (x[:, 0] * x[:, 1] + 0.2 * e > 0).astype(float)
        return np.stack([both, (e > 0).astype(float), np.zeros(len(x))], axis=1)

    train, validation, test = (_cases(s, n, truth) for s, n in ((0, 400), (1, 200), (2, 300)))
    train.labels[:9] = np.nan
    validation.labels[:, 1] = np.nan
    found = trees.labels(train, validation, test)
    assert metrics.auroc(found.scores[:, 0], test.labels[:, 0] > 0.5)[0] > 0.8
    assert np.all(found.scores[:, 2] == 0) and found.trees.tolist()[1:] == [30, 0]
    assert 0 < found.validation[0] < np.log(2) and np.isnan(found.validation[1:]).all()
    flipped = trees.labels(train, validation, Cases(test.features, 1 - test.labels))
    assert np.array_equal(found.scores, flipped.scores)  # chosen without the test labels


def test_trees_of_exclusive_classes(few_trees):
    def truth(x, e):
        return np.digitize(np.nan_to_num(x[:, 0]) + 0.2 * e, (-0.5, 0.5)).astype(float)[:, None] * 2  # 0, 2, 4

    train, validation, test = (_cases(s, n, truth) for s, n in ((0, 300), (1, 150), (2, 200)))
    validation.labels[0] = 1  # a class that no train case has
    train.labels[0] = np.nan
    found = trees.classes(train, validation, test, number=5)
    assert (found.scores.argmax(1) == test.labels[:, 0]).mean() > 0.7
    assert np.isneginf(found.scores[:, [1, 3]]).all()
    assert np.exp(found.scores).sum(1) == pytest.approx(np.ones(200))
    alone = trees.classes(Cases(train.features, np.full((300, 1), 2.0)), validation, test, number=5)
    assert (alone.scores.argmax(1) == 2).all()


def test_trees_of_values_answer_in_the_labels_unit(few_trees):
    def truth(x, e):
        return np.stack([70 + 10 * np.abs(np.nan_to_num(x[:, 0])) + e, np.full(len(x), 5.0)], axis=1)

    train, validation, test = (_cases(s, n, truth) for s, n in ((0, 400), (1, 200), (2, 300)))
    train.labels[3, 0] = np.nan
    found = trees.values(train, validation, test)
    assert metrics.r2(found.scores[:, 0], test.labels[:, 0])[0] > 0.5
    assert np.all(found.scores[:, 1] == 5.0)


def test_the_best_size_by_validation_is_taken(monkeypatch):
    monkeypatch.setattr(trees, "TREES", 20)
    parts = [
        _cases(s, 120, lambda x, e: (np.prod(x[:, :3], axis=1) + 0.3 * e > 0).astype(float)[:, None]) for s in range(3)
    ]
    both, alone = trees.labels(*parts), []
    for leaves in trees.LEAVES:
        monkeypatch.setattr(trees, "LEAVES", (leaves,))
        alone.append(trees.labels(*parts).validation[0])
    assert alone[0] != alone[1] and both.validation[0] == min(alone)


def test_recordings_of_which_nothing_is_measured_are_refused_by_name(few_trees):
    nothing = Cases(np.full((30, 4), np.nan), np.arange(30.0)[:, None] % 2)
    for fit in (trees.labels, trees.values, functools.partial(trees.classes, number=2)):
        with pytest.raises(BadInput, match="features of the train recordings: found none measured"):
            fit(nothing, nothing, nothing)


def test_a_small_train_set_still_splits(few_trees):
    train, validation, test = (
        _cases(s, n, lambda x, e: (np.nan_to_num(x[:, :1]) > 0).astype(float)) for s, n in ((0, 24), (1, 60), (2, 200))
    )
    found = trees.labels(train, validation, test)
    assert metrics.auroc(found.scores[:, 0], test.labels[:, 0] > 0.5)[0] > 0.8
