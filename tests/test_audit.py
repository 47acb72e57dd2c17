"""`csfm audit`: what happens to signals, medians under case weights, ratios with a known answer, and the command."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_checkpoints import toy_config, write_checkpoint
from small_stores import LEADS, recording, write_store

from csfm_jax import cli, encoding
from csfm_jax.evaluation import invariance, moved, perturbations, raw_recordings, study_results
from csfm_jax.evaluation.invariance import BETWEEN, OF_PATIENT
from csfm_jax.evaluation.moved import AS_IT_IS, LATER, Moved
from data_pipelines import preprocess
from data_pipelines.datasets import Entry, Source
from data_pipelines.errors import BadInput
from data_pipelines.prepare_shard import study_of
from data_pipelines.preprocess import get_spec
from data_pipelines.recording import Channel, Recording
from data_pipelines.signals import CHANNEL_ID
from data_pipelines.store import open_stores
from data_pipelines.subjects import PUBLIC_KEY

SPEC = get_spec("csfm-jax")
RNG = np.random.default_rng(0)


def wave(rate, seconds=4.0, hertz=5.0):
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def prepared(channels):
    made = preprocess.prepare(channels, spec=SPEC)
    return [samples.astype(float) for samples in made.samples]


SIGNALS = [("II", 250.0, "mV", 0.0, wave(250)), ("RESP", 25.0, "a.u.", 0.0, wave(25, hertz=0.5)),
           ("ABP", 125.0, "mmHg", 0.0, 90 + 20 * wave(125, hertz=1.0))]  # fmt: skip


@pytest.mark.parametrize("one", perturbations.of_signals(SIGNALS, SPEC), ids=lambda one: one.name)
def test_preprocessing_undoes_what_it_is_for(one):
    """An ECG at 5 Hz comes out as it would have: nothing is left of wander, mains and rates but rounding."""
    before, after = prepared(SIGNALS), prepared(one.change(SIGNALS, np.random.default_rng(1)))
    assert len(before) == len(after) == 3
    for a, b in zip(before, after):
        middle = slice(len(a) // 5, -len(a) // 5)  # filters ring at the ends of so short a signal
        a, b = (preprocess.normalise(x.astype(np.int16)[middle]) for x in (a, b))
        assert np.corrcoef(a, b)[0, 1] > 0.99, one.name
    assert one.kind == "gain" or any(np.abs(x[4] - y[4]).max() > 0.1 if len(x[4]) == len(y[4]) else True
                                     for x, y in zip(SIGNALS, one.change(SIGNALS, RNG)))  # fmt: skip


def test_wander_is_added_where_it_is_removed():
    """Of a breath, a pressure, or an EEG with a corner of 0.3 Hz it would be signal."""
    more = [*SIGNALS, ("PPG", 250.0, "a.u.", 0.0, wave(250)), ("EEG C3-M2", 200.0, "uV", 0.0, wave(200)),
            ("SpO2", 1.0, "%", 0.0, wave(1)), ("what is this", 250.0, "gallons", 0.0, wave(250))]  # fmt: skip
    changed = perturbations.wander(more, RNG, SPEC, 1.0)
    assert [a[0] for a, b in zip(more, changed) if not np.array_equal(a[4], b[4])] == ["II", "PPG"]
    assert not any(one.kind == "wander" for one in perturbations.of_signals(SIGNALS[1:], SPEC))


def test_a_rate_keeps_gaps_where_they_are():
    signal = wave(250)
    signal[250:500] = np.nan
    ((_, rate, _, _, out),) = perturbations.sampled([("II", 250.0, "mV", 0.0, signal)], RNG, hertz=100.0)
    assert rate == 100.0 and len(out) == 400
    assert np.isnan(out[101:199]).all() and not np.isnan(out[:99]).any() and not np.isnan(out[201:]).any()
    assert np.abs(out[10:90] - wave(100)[10:90]).max() < 0.02


def test_losses_leave_something():
    found = {one.name: one.without for one in perturbations.losses([CHANNEL_ID[c] for c in ("I", "II", "V1", "PPG")])}
    assert set(found) == {"without I", "without II", "without V1", "without limb leads", "without chest leads",
                          "I alone", "II alone", "I and II alone", "without ECG", "without PPG"}  # fmt: skip
    assert found["I alone"] == {CHANNEL_ID["II"], CHANNEL_ID["V1"]}
    assert found["without ECG"] == {CHANNEL_ID[c] for c in ("I", "II", "V1")}
    assert [one.name for one in perturbations.losses([CHANNEL_ID["II"]])] == []


def test_medians_and_shares_are_those_of_repeated_cases():
    values, rows = np.array([5.0, 1.0, 3.0, 2.0, 9.0]), np.array([0, 1, 2, 3, 3])
    weights = np.array([[1, 1, 1, 1], [2, 0, 3, 1], [0, 0, 0, 4], [0, 0, 0, 0]], np.float32)
    found = invariance.Median(values, rows)(weights)
    for one, drawn in zip(found[:3], weights):
        repeated = np.sort(np.repeat(values, drawn[rows].astype(int)))
        assert one == repeated[(len(repeated) - 1) // 2]
    assert np.isnan(found[3])
    pairs = np.array([[0, 1], [1, 2], [2, 3]])
    assert invariance.Median(np.array([1.0, 2.0, 3.0]), pairs)(weights)[1] == 3.0  # 2*0, 0*3, 3*1
    shares = invariance.Share(values > 2, rows)(weights)
    np.testing.assert_allclose(shares[:3], [0.6, 6 / 7, 0.5])
    assert np.isnan(shares[3])


def test_a_patient_drawn_twice_brings_his_pairs_twice():
    """Were a pair of one patient's weighed by the product of two counts, he would bring them four times."""
    one, _ = known(0.0, patients=3)
    subject = np.array([0, 0, 0, 1, 1, 2])  # 3 pairs, 1 and none
    lines = invariance._quantities(invariance.Standardised(one, np.arange(6), subject), invariance._pairs(
        subject, {}, np.arange(6), 0))  # fmt: skip
    name, _, quantities, pairs = next(line for line in lines if line[0] == OF_PATIENT)
    assert len(pairs) == 4
    values = np.array([2.0, 3.0, 4.0, 1.0])  # the second patient's is the smallest: drawn twice, he is no majority
    median = invariance.Median(values, quantities["cosine"].rows)
    for drawn in ([1, 2, 0], [1, 3, 0], [1, 4, 0], [2, 1, 5]):
        repeated = np.sort(np.repeat(values, np.array(drawn)[subject[pairs[:, 0]]]))
        weights = np.array([drawn], np.float32)[:, subject]
        assert median(weights)[0] == repeated[(len(repeated) - 1) // 2]


def known(shift, patients=30):
    """Embeddings of two recordings a patient, near one another; "moved" by `shift` deviations of patients."""
    rng = np.random.default_rng(3)
    subject = np.repeat(np.arange(patients), 2)
    of_patient = rng.normal(size=(patients, 40))
    values = of_patient[subject] + 0.01 * rng.normal(size=(2 * patients, 40))
    rows = np.arange(2 * patients)
    away = (
        shift * np.sqrt(40) * (direction := rng.normal(size=values.shape)) / np.linalg.norm(direction, axis=1)[:, None]
    )
    every = {AS_IT_IS: values, LATER: values, "moved": values + away}
    return Moved({name: "gain" for name in every}, dict.fromkeys(every, rows), every), subject


def lines_of(models, subject, groups=None):
    found = invariance.measure(models, subject, groups or {}, replicates=40, seed=0)
    return {word: {line.name: line for line in lines} for word, lines in found.items()}


def test_ratios_with_a_known_answer():
    near, subject = known(0.1)
    far, _ = known(3.0)
    found = lines_of({"near": near, "far": far}, subject, {"classes": (subject % 3 == 0)[:, None].astype(float)})
    # two patients are sqrt(2) deviations apart in every dimension
    ratio = found["near"]["moved"].figures["euclidean_ratio"]
    assert ratio.low <= ratio.point <= ratio.high and ratio.point == pytest.approx(0.1 / np.sqrt(2), rel=0.05)
    assert found["far"]["moved"].figures["euclidean_ratio"].point == pytest.approx(3 / np.sqrt(2), rel=0.05)
    assert found["near"]["moved"].figures["cosine_retrieval"].point == 1.0
    assert found["near"][LATER].figures["cosine_ratio"].point == pytest.approx(0, abs=1e-9)
    assert found["near"][OF_PATIENT].figures["euclidean_ratio"].high < 0.02
    assert found["near"][BETWEEN].figures["cosine_ratio"].point == 1.0
    assert found["near"][BETWEEN].cases == 60 * 59 // 2 - 30 and found["near"][BETWEEN].patients == 30
    labels = found["near"]["two patients of equal classes"], found["near"]["two patients of other classes"]
    assert labels[0].cases + labels[1].cases == found["near"][BETWEEN].cases
    assert not found["near"]["moved"].differences
    less = found["far"]["moved"].differences["euclidean_ratio"]
    assert less.low > 1.5 and less.point == pytest.approx(2.9 / np.sqrt(2), rel=0.05)


def test_standardising_makes_scales_equal():
    """A dimension in other units moves no ratio."""
    plain, subject = known(0.5)
    stretched = Moved(plain.kind, plain.rows, {n: v * np.linspace(1, 1e4, 40) for n, v in plain.values.items()})
    found = lines_of({"a": plain, "b": stretched}, subject)
    for figure in ("cosine_ratio", "euclidean_ratio"):
        a, b = (found[word]["moved"].figures[figure].point for word in "ab")
        assert a == pytest.approx(b, rel=1e-6)


def test_too_few_patients_are_refused():
    one, subject = known(0.1, patients=2)
    with pytest.raises(BadInput, match="2 patients"):
        invariance.measure({"a": one}, subject, {}, 10, 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    made = []
    for number in range(7):
        names = (*LEADS[:3], "PPG") if number % 2 else ("I", "II")
        labels = {"superclass/A": float(number % 3 == 0), "age": 40.0 + number}
        made.append(recording(number, names, 6.0, "test" if number < 6 else "train", None, labels))
    write_store(folder / "stores", [*made, recording(50, ("II",), 3.0, "test")], name="toy")
    write_checkpoint(folder / "toy", toy_config(), people=("", "other"))
    return folder


def test_the_command(place, capsys, monkeypatch):
    monkeypatch.setattr(perturbations, "RATES", (100.0,))
    workdir = place / "audit"
    words = [f"--models=linear:{place / 'toy'},random:{place / 'toy'}", f"--store={place / 'stores'}",
             f"--workdir={workdir}", "--labels=superclass/*", "--bootstrap=20"]  # fmt: skip
    assert cli.main(["audit", *words]) == 2 and "--unchecked-subjects" in capsys.readouterr().err
    assert cli.main(["audit", "--unchecked-subjects", *words]) == 0
    table = pq.read_table(workdir / "results.parquet")
    assert table.column_names == list(study_results.COLUMNS)
    rows = table.to_pylist()
    points = {(r["figure"], r["label"]): r for r in rows if r["model"].startswith("linear") and not r["against"]}
    # 6 test recordings of 6 s; the one of 3 s holds no two windows
    assert points["cosine", "gain 2"]["cases"] == 6 and points["cosine", "without PPG"]["cases"] == 3
    assert points["euclidean_ratio", "gain 2"]["point"] < 0.02 and points["cosine_retrieval", "gain 2"]["point"] == 1
    assert points["euclidean_ratio", "without II"]["point"] > 0.1
    assert points["cosine_ratio", "two patients of other superclass/*"]["cases"] == 8
    assert any(r["against"].startswith("linear") for r in rows if r["model"].startswith("random"))
    page, out = (workdir / "report.html").read_text(), capsys.readouterr().out
    assert "windows of 3 s" in page and "Lost leads" in page and "1 recordings were too short" in page
    for subject in open_stores(str(place / "stores"))[0].index.subject:
        assert subject.decode() not in page + out


@pytest.mark.parametrize(
    "words, named",
    [
        (["--labels=age"], "a label with values"),
        (["--seconds=5"], "no recording of 10 s"),
        (["--seconds=0.5"], "at least"),
        (["--models=finetuned:{toy}"], "fine-tune it first"),
        (["--key-file=none"], "without --source"),
        (["--bootstrap=0"], "1 or more"),
        (["--split=validation"], "no validation recording"),
    ],
)
def test_refusals(place, words, named, capsys):
    given = [f"--models=linear:{place / 'toy'}", f"--store={place / 'stores'}", f"--workdir={place / 'refused'}"]
    words = [word.format(toy=place / "toy") for word in words]
    assert cli.main(["audit", "--unchecked-subjects", *given, *words]) == 2
    assert named in capsys.readouterr().err and not (place / "refused").exists()


def test_windows_beyond_a_time_table_are_refused(place):
    """A table of 4 rows of half a second; a network that has none reads what it likes."""
    encoder, stores = encoding.load(str(place / "toy")), open_stores(str(place / "stores"))
    sizes = dataclasses.replace(encoder.config.encoder, position_steps=4)
    short = SimpleNamespace(known=encoder.known, config=dataclasses.replace(encoder.config, encoder=sizes))
    with pytest.raises(BadInput, match="at most 2 s"):
        moved.choose(stores, "test", {"a": encoder, "b": short}, 5, 2.5, 0)
    assert moved.choose(stores, "test", {"b": short}, 5, 2.0, 0).seconds == 2.0
    other = dataclasses.replace(short.config, backbone=dataclasses.replace(short.config.backbone, name="s4"))
    free = SimpleNamespace(known=encoder.known, config=other)
    assert moved.choose(stores, "test", {"b": free}, 5, 3.0, 0).seconds == 3.0


def test_an_embedding_that_is_not_finite_is_an_error(place, monkeypatch):
    encoder, stores = encoding.load(str(place / "toy")), open_stores(str(place / "stores"))
    monkeypatch.setattr(moved, "_pooled", lambda encoder, windows: [np.full(24, np.nan)] * len(windows))
    with pytest.raises(BadInput, match="not finite"):
        moved.embed({"linear:toy": encoder}, stores, moved.choose(stores, "test", {"a": encoder}, 1, 2.0, 0))


class Published(Source):
    """Recordings at 500 Hz that stores of the name "toy" were made from."""

    name = "toy"
    mains = 60.0

    def entries(self):
        return [Entry(f"person {n}", f"study {n}", "test", f"{n}") for n in range(3)]

    def read(self, entry):
        leads = tuple(Channel(name, 500.0, "mV", wave(500, 10)) for name in ("I", "II"))
        return Recording(leads, entry.subject, entry.study, self.name, mains=60.0)


def test_recordings_themselves_are_found_by_their_hashes(tmp_path, monkeypatch):
    source = Published(tmp_path)
    monkeypatch.setattr(raw_recordings, "open_sources", lambda where: [source])
    made = []
    for number, entry in enumerate(source.entries()):
        one = recording(number, ("II",), 10.0, "test")
        made.append(dataclasses.replace(one, study=study_of(source, PUBLIC_KEY, entry)))
    store = write_store(tmp_path / "store", made, name="toy")
    chosen = moved.Chosen(np.zeros(3, int), np.arange(3), 2.0, 0)
    monkeypatch.setitem(store.manifest, "key", raw_recordings.fingerprint(PUBLIC_KEY))
    read = raw_recordings.reader("there", None, [store], chosen)
    channels, mains = read(store, 1, 4.0)
    assert mains == 60.0 and [(c[0], c[1], len(c[4])) for c in channels] == [("I", 500.0, 2000), ("II", 500.0, 2000)]
    monkeypatch.setitem(store.manifest, "plan", {"derived leads": True, "channel names": ""})
    channels, _ = read(store, 1, 4.0)
    assert [(c[0], len(c[4])) for c in channels[2:]] == [(lead, 2000) for lead in ("III", "aVR", "aVL", "aVF")]
    assert np.allclose(channels[3][4], -channels[0][4])  # aVR is -(I + II) / 2
    monkeypatch.setitem(store.manifest, "plan", {"derived leads": False, "channel names": "a hash"})
    with pytest.raises(BadInput, match="names of its own"):
        raw_recordings.reader("there", None, [store], chosen)
    monkeypatch.setitem(store.manifest, "plan", {})
    monkeypatch.setitem(store.manifest, "key", "another")
    with pytest.raises(BadInput, match="another key"):
        raw_recordings.reader("there", None, [store], chosen)
