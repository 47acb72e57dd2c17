"""Datasets that are not beside the checkout, on small files in their published layouts."""

import csv
import zlib
from pathlib import Path

import numpy as np
import pytest
import wfdb

from data_pipelines.datasets import open_sources
from data_pipelines.datasets.code15 import CODE15, CODE15HDF5
from data_pipelines.datasets.echonext import EchoNext
from data_pipelines.datasets.ptbxl import PTBXL
from data_pipelines.datasets.sph import SPH
from data_pipelines.errors import BadInput

LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")


def table(path: Path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def record(path: Path, names, seconds=4, rate=250, units="mV", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    signal = np.random.default_rng(zlib.crc32(path.name.encode())).normal(size=(rate * seconds, len(names)))
    wfdb.wrsamp(
        path.name, rate, [units] * len(names), list(names), signal, fmt=["16"] * len(names),
        write_dir=str(path.parent), **options,
    )  # fmt: skip
    return signal


def only(folder):
    (source,) = open_sources(folder)
    return source


def test_mimic_iv_ecg(tmp_path):
    rows = [("10000032", "40689238"), ("10000032", "44458630"), ("10000117", "48446569")]
    paths = [f"files/p{p[:4]}/p{p}/s{s}/{s}" for p, s in rows]
    table(tmp_path / "record_list.csv", ("subject_id", "study_id", "file_name", "ecg_time", "path"),
          *((p, s, s, "2180-07-23 08:44:00", path) for (p, s), path in zip(rows, paths)))  # fmt: skip
    reports = [("Sinus rhythm", "", "Normal ECG"), ("Atrial fibrillation",), ()]
    table(tmp_path / "machine_measurements.csv",
          ("subject_id", "study_id", "cart_id", "ecg_time", *(f"report_{i}" for i in range(18)), "bandwidth"),
          *((p, s, "1", "t", *text, *[""] * (18 - len(text)), "") for (p, s), text in zip(rows, reports)))  # fmt: skip
    signal = record(tmp_path / paths[0], LEADS, rate=500)
    source = only(tmp_path)
    entries = source.entries()
    assert (source.name, source.people) == ("mimic_iv_ecg", "mimic") and len({e.subject for e in entries}) == 2
    recording = source.read(entries[0])
    assert recording.report == "Sinus rhythm; Normal ECG" and recording.mains == 60
    by_name = {c.name: c.signal for c in recording.channels}  # aVF stands before aVL in these files
    np.testing.assert_allclose(by_name["aVF"], signal[:, 4], atol=1e-3)
    assert [source.report(e) for e in entries[1:]] == ["Atrial fibrillation", None]


def test_mimic3_waveform(tmp_path):
    folder = tmp_path / "p00" / "p000020"
    first = record(folder / "3000001_0001", ("II", "PLETH"), units="mV", rate=125)
    record(folder / "3000001_0002", ("II",), rate=125)
    name = "p000020-2183-04-28-17-47"
    (folder / "3000001_layout.hea").write_text(
        "3000001_layout 2 125 0\n~ 0 200/mV 8 0 0 0 0 II\n~ 0 200/mV 8 0 0 0 0 PLETH\n"
    )
    (folder / f"{name}.hea").write_text(
        f"{name}/4 2 125 1100\n3000001_layout 0\n3000001_0001 500\n~ 100\n3000001_0002 500\n"
    )
    (tmp_path / "RECORDS-waveforms").write_text(f"p00/p000020/{name}\n")
    source = only(tmp_path)
    (entry,) = source.entries()
    assert (source.name, entry.subject, entry.study) == ("mimic3_waveform", "p000020", name)
    channels = {c.name: c.signal for c in source.read(entry).channels}
    np.testing.assert_allclose(channels["PLETH"][:500], first[:, 1], atol=1e-3)
    assert np.isnan(channels["PLETH"][500:]).all() and np.isnan(channels["II"][500:600]).all()
    assert np.isfinite(channels["II"][600:]).all()


def test_code15_as_published(tmp_path):
    h5py = pytest.importorskip("h5py", reason="the extra [formats] is not installed")
    tracings = np.zeros((2, 4096, 12), np.float32)
    tracings[:, 648:-648] = np.random.default_rng(0).normal(size=(2, 2800, 12))
    with h5py.File(tmp_path / "exams_part0.hdf5", "w") as file:
        file["tracings"], file["exam_id"] = tracings, np.array([590673, 1169160])
    table(tmp_path / "exams.csv",
          ("exam_id", "age", "is_male", "nn_predicted_age", "1dAVb", "RBBB", "LBBB", "SB", "ST", "AF", "patient_id",
           "death", "timey", "normal_ecg", "trace_file"),
          (1169160, 38, True, 40, False, False, False, False, False, True, 523632, "", 2.1, True, "exams_part0.hdf5"),
          (590673, 60, False, 40, False, True, False, False, False, False, 523632, False, 2, False, "exams_part0.hdf5"),
          (777, 60, False, 40, *[False] * 6, 1, False, 2, False, "exams_part1.hdf5"))  # fmt: skip
    source = only(tmp_path)
    entries = source.entries()
    assert [(e.subject, e.study) for e in entries] == [("523632", "1169160"), ("523632", "590673")]
    assert source.note.startswith("1 of the files")
    recording = source.read(entries[1])
    assert recording.labels["abnormality/RBBB"] == 1 and recording.labels["sex"] == 1 and recording.labels["death"] == 0
    assert recording.labels["followup_years"] > 0
    assert recording.seconds == 7 and recording.channels[0].rate == 400
    np.testing.assert_array_equal(recording.channels[3].signal, tracings[0, 648:-648, 3])


def test_who_was_not_followed_for_a_year_is_in_no_class(tmp_path):
    """Columns death and timey: years to death, or of follow-up."""
    told = [(True, 0.3), (True, 1.0), (True, 1.5), (False, 3.0), (False, 1.0), (False, 0.9), ("", ""), ("", 2.0)]
    rows = [(i, 60, True, 1, death, years, "exams_part0.hdf5") for i, (death, years) in enumerate(told)]
    (tmp_path / "exams_part0.hdf5").write_bytes(b"")
    table(tmp_path / "exams.csv", ("exam_id", "age", "is_male", "patient_id", "death", "timey", "trace_file"), *rows)
    source = CODE15HDF5(tmp_path)
    found = [source.labels(entry, None)["death_within_a_year"] for entry in source.entries()]
    np.testing.assert_array_equal(found, [1, 1, 0, 0, 0, np.nan, np.nan, np.nan])


def test_vtac(tmp_path):
    table(tmp_path / "event_labels.csv", ("record", "event", "decision"),
          ("d01", "d01_1", "True"), ("d01", "d01_2", "False"), ("e07", "e07_1", "True"))  # fmt: skip
    table(tmp_path / "benchmark_data_split.csv", ("record", "event", "split"),
          ("d01", "d01_1", "train"), ("d01", "d01_2", "train"), ("e07", "e07_1", "val"))  # fmt: skip
    record(tmp_path / "waveforms" / "d01" / "d01_2", ("II", "V", "PLETH"), seconds=360, rate=25)
    source = only(tmp_path)
    entries = source.entries()
    assert [(e.subject, e.split) for e in entries] == [("d01", "train"), ("d01", "train"), ("e07", "validation")]
    recording = source.read(entries[1])
    assert recording.labels == {"true_alarm": 0.0} and recording.seconds == 300  # what comes after the alarm tells it


def test_cinc2016_in_its_six_folders(tmp_path):
    import scipy.io

    for part, name, truth in (("a", "a0001", "1"), ("b", "b0001", "-1")):
        folder = tmp_path / f"training-{part}"
        folder.mkdir()
        (folder / "REFERENCE.csv").write_text(f"{name},{truth}\n")
        digital = np.random.default_rng(0).integers(-999, 999, 8000).astype(np.int16)
        scipy.io.wavfile.write(folder / f"{name}.wav", 2000, digital)
    source = only(tmp_path)
    found = [source.read(entry) for entry in source.entries()]
    assert [r.labels["abnormal"] for r in found] == [1.0, 0.0] and found[0].channels[0].name == "PCG"
    (tmp_path / "training-b" / "REFERENCE.csv").write_text("b0001;yes\n")
    with pytest.raises(BadInput, match="REFERENCE.csv"):
        only(tmp_path).entries()


@pytest.mark.parametrize("place", ["", "training2017", "training/A00"])
def test_cinc2017(tmp_path, place):
    for number in (1, 2, 3):
        record(tmp_path / place / f"A{number:05d}", ("ECG",), seconds=9, rate=300)
    record(tmp_path / "validation" / "A00001", ("ECG",), seconds=9, rate=300)
    beside = tmp_path / place.split("/")[0] / "REFERENCE.csv"
    beside.write_text("A00001,N\nA00002,N\n")
    assert only(tmp_path).note.startswith("persons are not published")
    (tmp_path / "REFERENCE-v3.csv").write_text("A00001,~\nA00002,A\nA00007,O\n")  # the later one counts
    source = only(tmp_path)
    first, second, third = (source.read(entry) for entry in source.entries())
    assert source.name == "cinc2017" and source.note.endswith(
        "REFERENCE-v3.csv names 1 recordings that are not here: their labels are not used"
    )
    assert [k for k, v in first.labels.items() if v == 1] == ["cinc2017/noise"] and len(first.labels) == 4
    assert second.labels["cinc2017/AF"] == 1 and third.labels == {}
    assert [(c.name, c.rate) for c in first.channels] == [("I", 300)]
    for wrong in ("A00001,N\nA00001,A\n", "A00001,N\nA00002;A\n"):
        (tmp_path / "REFERENCE-v3.csv").write_text(wrong)
        with pytest.raises(BadInput, match="REFERENCE-v3.csv"):
            only(tmp_path).entries()


def test_cinc2018(tmp_path):
    folder = tmp_path / "training" / "tr03-0005"
    record(folder / "tr03-0005", ("F3-M2", "E1-M2", "Chin1-Chin2", "ABD", "SaO2", "ECG"), rate=200)
    wfdb.wrann("tr03-0005", "arousal", np.array([0, 300, 500]), ["+"] * 3, aux_note=["W", "N2", "Jane Doe"],
               write_dir=str(folder))  # fmt: skip
    record(tmp_path / "test" / "te03-0001" / "te03-0001", ("F3-M2",), rate=200)
    rows = (("tr03-0005", "55", "F"), ("tr03-0006", "56", "M"), ("tr03-0007", "57", "M"))
    table(tmp_path / "age-sex.csv", ("Record", "Age", "Sex"), *rows)
    source = only(tmp_path)
    test, training = sorted(source.entries(), key=lambda e: e.study)
    recording = source.read(training)
    assert [(e.time, e.code) for e in recording.events] == [(0.0, "W"), (1.5, "N2")]
    assert recording.labels == {"age": 55.0, "sex": 1.0} and source.read(test).events == ()
    assert source.note.startswith("age-sex.csv names 2 recordings that are not here")
    (folder / "tr03-0005.arousal").unlink()
    with pytest.raises(BadInput, match="arousal"):
        source.read(training)


def test_sleep_edf(tmp_path):
    edfio = pytest.importorskip("edfio", reason="the extra [formats] is not installed")
    folder = tmp_path / "sleep-cassette"
    folder.mkdir()
    noise = np.random.default_rng(0).normal(0, 20, 6000)
    for night in "12":
        names = ("EEG Fpz-Cz", "EOG horizontal", "EMG submental")
        edfio.Edf([edfio.EdfSignal(noise, 100, label=n, physical_dimension="uV") for n in names]).write(
            folder / f"SC400{night}E0-PSG.edf"
        )
        stages = [edfio.EdfAnnotation(0, 30, "Sleep stage W"), edfio.EdfAnnotation(30, 30, "Sleep stage 2")]
        edfio.Edf([], annotations=stages).write(folder / f"SC400{night}EC-Hypnogram.edf")
    source = only(tmp_path)
    entries = source.entries()
    assert [(e.subject, e.study) for e in entries] == [("SC400", "SC4001E0"), ("SC400", "SC4002E0")]
    recording = source.read(entries[0])
    assert [(e.time, e.seconds, e.code) for e in recording.events][1] == (30.0, 30.0, "Sleep stage 2")
    (folder / "SC4001EC-Hypnogram.edf").unlink()
    with pytest.raises(BadInput, match="no hypnogram"):
        source.read(entries[0])


def test_echonext(tmp_path):
    table(tmp_path / "EchoNext_metadata_100k.csv",
          ("ecg_key", "patient_key", "split", "age_at_ecg", "sex", "shd_moderate_or_greater_flag"),
          ("e1", "p1", "train", 60, "female", 1), ("e2", "p2", "test", 50, "male", 0),
          ("e3", "p1", "no_split", 61, "female", 1), ("e4", "p3", "train", 70, "male", 0))  # fmt: skip
    train = np.random.default_rng(0).normal(size=(2, 1, 2500, 12))
    np.save(tmp_path / "EchoNext_train_waveforms.npy", train)
    np.save(tmp_path / "EchoNext_test_waveforms.npy", train[:, :, :100])
    source = only(tmp_path)
    entries = source.entries()
    assert [(e.study, e.split) for e in entries] == [("e1", "train"), ("e2", "test"), ("e4", "train")]
    recording = source.read(entries[2])
    np.testing.assert_array_equal(recording.channels[1].signal, train[1, 0, :, 1].astype(np.float32))
    assert recording.labels == {"echo/shd_moderate_or_greater": 0.0, "age": 70.0, "sex": 0.0}
    with pytest.raises(BadInput, match="shape"):
        source.read(entries[1])
    np.save(tmp_path / "EchoNext_train_waveforms.npy", np.concatenate([train, train[:1]]))
    with pytest.raises(BadInput, match="found 3 rows; expected the 2"):  # of another release: no position is sure
        source.read(entries[0])


@pytest.mark.parametrize("dataset", ["mitdb", "cinc2018", "sleep_edf", "echonext"])
def test_what_lies_beside_a_record_is_no_link_out_of_the_folder(tmp_path, dataset):
    root, secret = tmp_path / "in", tmp_path / "secret"
    if dataset == "mitdb":
        record(root / "100", ("MLII",))
        beside = root / "100.atr"
    elif dataset == "cinc2018":
        record(root / "training" / "tr03-0005" / "tr03-0005", ("ECG",), rate=200)
        beside = root / "training" / "tr03-0005" / "tr03-0005.arousal"
    elif dataset == "sleep_edf":
        beside = root / "sleep-cassette" / "SC4001EC-Hypnogram.edf"
        beside.parent.mkdir(parents=True)
        beside.with_name("SC4001E0-PSG.edf").write_bytes(b"")
    else:
        table(root / "EchoNext_metadata_100k.csv", ("ecg_key", "patient_key", "split"), ("e1", "p1", "train"))
        beside = root / "EchoNext_train_waveforms.npy"
    secret.write_bytes(b"")
    beside.symlink_to(secret)
    source = only(root)
    with pytest.raises(BadInput, match="leads out of the folder"):
        source.read(source.entries()[0])


def test_sph_with_its_records_folder(tmp_path):
    h5py = pytest.importorskip("h5py", reason="the extra [formats] is not installed")
    (tmp_path / "records").mkdir()
    with h5py.File(tmp_path / "records" / "A00001.h5", "w") as file:
        file["ecg"] = np.random.default_rng(0).normal(size=(12, 5000)).astype(np.float16)
    table(tmp_path / "metadata.csv", ("ECG_ID", "AHA_Code", "Patient_ID", "Age", "Sex", "N", "Date"),
          ("A00001", "22;60+310", "S00001", 55, "M", 5000, "2020-03-04"))  # fmt: skip
    source = only(tmp_path)
    recording = source.read(source.entries()[0])
    assert recording.labels == {"aha/22": 1.0, "aha/60": 1.0, "age": 55.0, "sex": 0.0}
    assert len(recording.channels) == 12 and recording.mains == 50
    rows = (("A00001", "22", "S1", 55, "M", 5000, ""), ("A00001.h5", "22", "S2", 56, "M", 5000, ""))
    table(tmp_path / "metadata.csv", SPH.columns + ("N", "Date"), *rows)
    with pytest.raises(BadInput, match="both with and without .h5"):
        SPH(tmp_path).entries()


def test_mitdb_and_the_others_at_hand(shared_data):
    found = {source.name: source for source in open_sources(shared_data)}
    mitdb = found["mitdb"]
    by_study = {e.study: e for e in mitdb.entries()}
    assert by_study["208"].split == "train" and by_study["231"].split == "test"
    recording = mitdb.read(by_study["100"])
    assert recording.labels["beats/N"] == 2239 and recording.labels["beats/A"] == 33
    assert any(event.code == "(N" for event in recording.events) and len(recording.events) == 2274
    assert sum(found["cinc2016"].labels(e, None)["abnormal"] for e in found["cinc2016"].entries()) > 10
    assert len(found["ephnogram"].entries()) == 2 and found["ephnogram"].note.startswith("no ECGPCGSpreadsheet.csv")


def test_every_dataset_says_how_to_get_and_cite_it():
    """docs/datasets.md lists what the code knows, in its order."""
    from data_pipelines.datasets import known_datasets

    lines = (Path(__file__).parents[1] / "docs" / "datasets.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert len(rows) == len(known_datasets())
    for dataset, row in zip(known_datasets(), rows):
        assert row.startswith(f"| `{dataset.name}`") and dataset.citation
        assert dataset.licence in row and dataset.download and dataset.download in row


@pytest.mark.parametrize(
    ("source", "table", "column"),
    [
        (CODE15, "records.csv", "record"), (CODE15HDF5, "exams.csv", "exam_id"), (SPH, "metadata.csv", "ECG_ID"),
        (EchoNext, "echonext_metadata_100k.csv", "ecg_key"), (PTBXL, "ptbxl_database.csv", "filename_lr"),
    ],
)  # fmt: skip
def test_two_rows_of_one_id_are_refused_and_the_id_is_not_told(tmp_path, source, table, column):
    columns = sorted({*source.columns, column})
    rows = [",".join("secret7" if name == column else str(i) for name in columns) for i in range(2)]
    (tmp_path / table).write_text("\n".join([",".join(columns), *rows]) + "\n")
    (tmp_path / "records100").mkdir()
    (tmp_path / "scp_statements.csv").write_text(",diagnostic,diagnostic_class\n")
    with pytest.raises(BadInput, match=f"{table}: found rows of one {column}") as error:
        source(tmp_path).entries()
    assert "secret7" not in str(error.value)
