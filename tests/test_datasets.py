"""Each dataset's listing, labels, subjects and splits, on the real recordings and on small copies of their layouts."""

import csv
import math
import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.datasets import Entry, left_out, open_sources
from data_pipelines.errors import BadInput
from data_pipelines.recording import Recording


@pytest.fixture(scope="module")
def sources(shared_data):
    return {source.name: source for source in open_sources(shared_data)}


@pytest.mark.parametrize(
    ("name", "records", "subjects", "mains"),
    [
        ("ptbxl", 351, 327, 50), ("ptbxl_extra", 84, 80, 50), ("cinc2021", 129, 129, 50), ("code15", 248, 240, 60),
        ("bidmc", 22, 18, 60), ("cinc2015", 50, 50, None),
    ],
)  # fmt: skip
def test_every_listed_recording_reads(sources, name, records, subjects, mains):
    source = sources[name]
    entries = source.entries()
    assert len(entries) == records and len({e.subject for e in entries}) == subjects
    assert [e.study for e in entries] == sorted({e.study for e in entries})
    assert source.public and source.licence and source.citation
    assert bool(source.note) == (name == "cinc2021")  # whose persons are not published
    reports = 0
    for entry in entries:
        recording = source.read(entry)
        told = (recording.subject, recording.study, recording.split, recording.source, recording.mains)
        assert told == (entry.subject, entry.study, entry.split, name, mains)
        assert recording.labels or entry.study == "bidmc18"  # the one whose age and sex nobody knows
        assert recording.seconds > 3 and any(np.isfinite(c.signal).any() for c in recording.channels)
        reports += recording.report is not None
    assert reports == {"ptbxl": 350, "ptbxl_extra": 84}.get(name, 0)


def test_the_folder_of_datasets_gives_the_known_ones(sources):
    assert list(sources) == [
        "bidmc", "cinc2015", "cinc2016", "cinc2021", "code15", "ephnogram", "mitdb", "ptbxl", "ptbxl_extra", "sph",
    ]  # fmt: skip
    assert [e.study for e in pickle.loads(pickle.dumps(sources["ptbxl"])).entries()[:1]] == ["00001"]


def labels(source):
    return [source.labels(entry, Recording((), "", "", "")) for entry in source.entries()]


def test_ptbxl_folds_and_superclasses(sources):
    source = sources["ptbxl"]
    assert Counter(e.split for e in source.entries()) == {"train": 250, "validation": 53, "test": 48}
    found = labels(source)
    counts = {c: sum(row[f"superclass/{c}"] == 1 for row in found) for c in ("NORM", "STTC", "CD", "MI", "HYP")}
    assert counts == {"NORM": 211, "STTC": 65, "CD": 50, "MI": 49, "HYP": 25}
    assert all(len([k for k in row if k.startswith("scp/")]) == 71 for row in found)
    first = found[0]  # {'NORM': 100.0, 'LVOLT': 0.0, 'SR': 0.0}: a rhythm code counts although its likelihood is 0
    ones = {"superclass/NORM", "subclass/NORM", "diagnostic/NORM", "scp/NORM", "scp/LVOLT", "scp/SR"}
    assert {k for k, v in first.items() if v == 1} == ones | {"form/LVOLT", "rhythm/SR", "sex"}
    assert all(len([k for k in row if k.startswith("subclass/")]) == 23 for row in found)
    assert sum(row["subclass/NORM"] == 1 for row in found) == 211
    assert first["age"] == 56 and max(row["age"] for row in found) <= 90
    assert sum(math.isnan(row["superclass/NORM"]) for row in found) == 9
    # without a diagnostic code nothing is known about the superclasses: all of them are NaN or none is
    for row in found:
        missing = {math.isnan(row[f"superclass/{c}"]) for c in counts}
        assert len(missing) == 1 and (missing == {False} or not any(row[f"superclass/{c}"] == 1 for c in counts))


def test_ptbxl_statements_of_a_kind_are_known_where_there_is_one(sources, shared_data):
    found = labels(sources["ptbxl"])
    for kind, number in (("diagnostic", 44), ("form", 19), ("rhythm", 12)):
        ours = [{k: v for k, v in row.items() if k.startswith(f"{kind}/")} for row in found]
        assert {len(row) for row in ours} == {number}
        without = [all(math.isnan(v) for v in row.values()) for row in ours]
        assert all(w or any(v == 1 for v in row.values()) for w, row in zip(without, ours)) and any(without)
    assert labels(sources["ptbxl"])[0]["form/LVOLT"] == 1
    with open(shared_data / "ptbxl" / "scp_statements.csv") as file:
        for row in csv.DictReader(file):
            for kind in ("diagnostic", "form", "rhythm"):
                assert (row[kind] in ("1", "1.0")) == (f"{kind}/{row['']}" in found[0])
    known = [math.isnan(row["diagnostic/NORM"]) == math.isnan(row["superclass/NORM"]) for row in found]
    assert all(known) and labels(sources["ptbxl_extra"])[0].keys() >= {"diagnostic/NORM", "form/LVOLT"}


def test_recordings_of_alarms_end_at_the_alarm(sources):
    """Half of the records go on for 30 s, and filters would carry some of that back."""
    source = sources["cinc2015"]
    long = [entry for entry in source.entries() if entry.study.endswith("l")]
    assert long and source.signals(long[0]).seconds > 329
    assert {round(source.read(entry).seconds, 3) for entry in long} == {300.0}


def test_ptbxl_and_its_extension_share_no_patient(sources):
    extra = sources["ptbxl_extra"]
    assert {e.split for e in extra.entries()} == {"test"}
    assert not {e.subject for e in extra.entries()} & {e.subject for e in sources["ptbxl"].entries()}
    assert sum(row["superclass/NORM"] for row in labels(extra)) == 15
    assert max(row["age"] for row in labels(extra)) == 90  # the table says 300 for "over 89"


def test_bidmc_keeps_one_persons_records_together(sources):
    by_subject = Counter(e.subject for e in sources["bidmc"].entries())
    assert by_subject["s03386"] == 4 and by_subject["s25323"] == 2
    found = {e.study: sources["bidmc"].labels(e, None) for e in sources["bidmc"].entries()}
    assert found["bidmc02"] == {"age": 65, "sex": 0, "heart_rate": 91, "respiration_rate": 15, "spo2": 100}
    assert (found["bidmc03"]["age"], found["bidmc03"]["sex"]) == (46, 1)
    assert not {"age", "sex"} & found["bidmc18"].keys()


def test_labels_of_the_challenges_agree_with_their_tables(sources, shared_data):
    with open(shared_data / "cinc2015" / "records.csv") as file:
        alarms = {row["record"]: row for row in csv.DictReader(file)}
    for entry in sources["cinc2015"].entries():
        found = sources["cinc2015"].read(entry).labels
        assert found["true_alarm"] == float(alarms[entry.study]["true_alarm"])
        assert [k for k, v in found.items() if v == 1 and k.startswith("alarm/")] == [
            f"alarm/{alarms[entry.study]['alarm']}"
        ]
        assert entry.subject == entry.study[1:-1]
    with open(shared_data / "cinc2021" / "records.csv") as file:
        table = {row["record"]: row for row in csv.DictReader(file)}
    for entry in sources["cinc2021"].entries():
        found, row = sources["cinc2021"].read(entry).labels, table[entry.study]
        assert {k for k, v in found.items() if v == 1 and k.startswith("dx/")} == {
            f"dx/{c}" for c in row["dx"].split(",")
        }
        assert found["age"] == float(row["age"]) and found["sex"] == float(row["sex"] == "Female")
        assert found["scored/RBBB"] == float(bool({"713427006", "59118001"} & {*row["dx"].split(",")}))
        assert found["dx/426783006"] in (0, 1) and len([k for k in found if k.startswith("dx/")]) >= 133


def test_code15_chagas(sources):
    found = [sources["code15"].read(e).labels for e in sources["code15"].entries()]
    assert sum(row["chagas"] for row in found) == 9 and all({"age", "sex"} <= set(row) for row in found)


def write_record(folder: Path, name: str, comments: str = "") -> None:
    path = folder / f"{name}.hea"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".dat").write_bytes(np.arange(100, dtype="<i2").tobytes())
    path.write_text(f"{path.stem} 1 100 100\n{path.stem}.dat 16 200/mV 16 0 0 4950 0 II\n{comments}")


def test_any_other_folder_is_a_source_of_its_own(tmp_path):
    folder = tmp_path / "our ward"
    write_record(folder, "a/1", "# Patient ID: x\n")
    write_record(folder, "b/1", "# Patient ID: x\n")
    write_record(folder, "c")
    (folder / "d.hea").write_text("a header that is none")
    (folder / "whole.hea").write_text("whole/1 1 100 100\nc 100\n")
    (source,) = open_sources(folder)
    assert (source.name, source.public, source.mains) == ("our_ward", False, None)
    assert source.entries() == [
        Entry("x", "a/1.hea", "", "a/1.hea"), Entry("x", "b/1.hea", "", "b/1.hea"),
        Entry("d.hea", "d.hea", "", "d.hea"), Entry("whole.hea", "whole.hea", "", "whole.hea"),
    ]  # fmt: skip
    assert source.note.startswith("2 of 4 files name no patient")
    assert source.read(source.entries()[3]).channels[0].name == "II"
    with pytest.raises(BadInput, match="d.hea"):
        source.read(source.entries()[2])


def test_folders_beside_known_datasets_are_named(ptbxl_copy, tmp_path):
    write_record(tmp_path / "ward", "deep/1")
    (tmp_path / "notes").mkdir()
    assert left_out(tmp_path, open_sources(tmp_path)) == ["ward"]
    for alone in (ptbxl_copy, tmp_path / "ward"):
        assert left_out(alone, open_sources(alone)) == []
    assert left_out("simulated", open_sources("simulated")) == []


@pytest.fixture
def ptbxl_copy(shared_data, tmp_path):
    folder = tmp_path / "ptb-xl"
    folder.mkdir()
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        shutil.copyfile(shared_data / "ptbxl" / name, folder / name)
    return folder


def test_ptbxl_is_known_by_its_table_and_falls_back_to_100_hz(ptbxl_copy):
    (source,) = open_sources(ptbxl_copy)
    entries = source.entries()
    assert source.name == "ptbxl" and len(entries) == 351 and entries[0].path == "records500/00000/00001_hr.hea"
    with pytest.raises(BadInput, match="no such file"):  # listed all the same; only reading it fails
        source.read(entries[0])
    write_record(ptbxl_copy, "records100/00000/00001_lr")
    (source,) = open_sources(ptbxl_copy)
    assert "100 Hz" in source.note
    assert source.read(source.entries()[0]).channels[0].rate == 100


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("ptbxl_database.csv", "patient_id", "person"),
        ("ptbxl_database.csv", "1,15709.0", "1,"),
        ("ptbxl_database.csv", "1,15709.0", "1,inf"),
        ("ptbxl_database.csv", "\n1,15709.0", "\n1,15709.0\n1,15709.0"),
        ("scp_statements.csv", "diagnostic_class", "class"),
    ],
)
def test_a_table_without_its_columns_or_patients_stops_the_listing(ptbxl_copy, file, old, new):
    path = ptbxl_copy / file
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(BadInput, match=file):
        open_sources(ptbxl_copy)[0].entries()


def test_a_table_cannot_point_outside_its_folder(tmp_path):
    write_record(tmp_path, "secret")
    (tmp_path / "code").mkdir()
    rows = ["record,patient id,chagas label", "../secret,1,", f"{tmp_path}/secret,2,"]
    (tmp_path / "code" / "records.csv").write_text("\n".join(rows) + "\n")
    source = open_sources(tmp_path / "code")[0]
    for entry in source.entries():
        with pytest.raises(BadInput, match="outside the dataset's folder"):
            source.read(entry)


def test_codes_that_are_no_literal_are_refused_when_read(ptbxl_copy):
    path = ptbxl_copy / "ptbxl_database.csv"
    path.write_text(path.read_text().replace("{'NORM': 100.0, 'LVOLT': 0.0, 'SR': 0.0}", "__import__('os')", 1))
    write_record(ptbxl_copy, "records500/00000/00001_hr")
    source = open_sources(ptbxl_copy)[0]
    with pytest.raises(BadInput, match="no dict or list"):
        source.read(source.entries()[0])


def test_bidmc_without_its_subjects_is_refused(tmp_path):
    write_record(tmp_path, "bidmc01")
    with pytest.raises(BadInput, match="Fix.txt"):
        open_sources(tmp_path)[0].entries()


def test_code15_as_the_challenge_writes_it(tmp_path):
    """Its script leaves headers and signals, and no table."""
    person = "# Exam ID: {}\n# Patient ID: {}\n# Age: 66\n# Sex: Female\n# Chagas label: {}\n"
    for part, exam, patient, chagas in ((0, 11, 7, True), (0, 12, 8, False), (1, 13, 7, False)):
        write_record(tmp_path / f"exams_part{part}", str(exam), person.format(exam, patient, chagas))
    (source,) = open_sources(tmp_path)
    assert source.name == "code15" and source.public
    assert [(e.study, e.subject) for e in source.entries()] == [("11", "7"), ("12", "8"), ("13", "7")]
    assert source.read(source.entries()[0]).labels == {"age": 66, "sex": 1, "chagas": 1}
    assert [e.study for e in open_sources(tmp_path / "exams_part1")[0].entries()] == ["13"]
    write_record(tmp_path / "exams_part1", "14", "# Exam ID: 14\n# Chagas label: True\n")
    with pytest.raises(BadInput, match="without one; expected the comment `Patient ID"):
        source.entries()


def test_cinc2021_leaves_ptbxl_out_and_knows_the_hospitals(tmp_path):
    (tmp_path / "dx_mapping_scored.csv").write_text("Dx,SNOMEDCTCode\nx,1\ny,2\n")
    for name in ("HR00001", "E00001", "JS00001"):
        write_record(tmp_path / "training" / "g1", name, "# Dx: 2,3\n")
    (source,) = open_sources(tmp_path)
    first, second = (source.read(entry) for entry in source.entries())
    assert (first.study, first.mains, second.study, second.mains) == ("E00001", 60, "JS00001", 50)
    coded = {name: value for name, value in first.labels.items() if not name.startswith("scored/")}
    assert coded == {"dx/1": 0, "dx/2": 1, "dx/3": 1}


def test_equivalent_codes_are_one_diagnosis(tmp_path, shared_data):
    from data_pipelines.datasets.cinc2021 import SCORED

    with open(shared_data / "cinc2021" / "dx_mapping_scored.csv") as file:
        rows = {row["SNOMEDCTCode"]: row for row in csv.DictReader(file)}
    assert {code for codes in SCORED.values() for code in codes} == rows.keys() and len(SCORED) == 26
    for name, codes in SCORED.items():
        assert name in {rows[code]["Abbreviation"] for code in codes}
        assert all(code in row["Notes"] for row in map(rows.get, codes) for code in codes if len(codes) > 1)
    (tmp_path / "dx_mapping_scored.csv").write_text("Dx,SNOMEDCTCode\nx,59118001\n")
    for name, codes in (("JS00001", "# Dx: 713427006,17338001\n"), ("JS00002", "# Dx: 59118001\n"), ("JS00003", "")):
        write_record(tmp_path, name, codes)
    (source,) = open_sources(tmp_path)
    found = [source.read(entry).labels for entry in source.entries()]
    ones = [{k for k, v in row.items() if v == 1 and k.startswith("scored/")} for row in found]
    assert ones == [{"scored/RBBB", "scored/PVC"}, {"scored/RBBB"}, set()]
    assert len(found[1]) == 27 and found[2] == {"dx/59118001": 0}  # without a code nothing is known


def test_missing_and_empty_folders_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for where in (tmp_path / "nothing", tmp_path, tmp_path / "file"):
        with pytest.raises(BadInput):
            open_sources(where)


def test_two_records_of_one_name_are_refused(tmp_path):
    (tmp_path / "dx_mapping_scored.csv").write_text("Dx,SNOMEDCTCode\nx,1\n")
    for folder in ("a", "b"):
        write_record(tmp_path / folder, "JS00001")
    with pytest.raises(BadInput, match="two recordings"):
        open_sources(tmp_path)[0].entries()
