"""Datasets as published, in small: eight persons each, in all splits, with every label that a task asks for."""

from collections.abc import Callable, Iterator
from itertools import count, cycle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import wfdb
from test_datasets_layouts import LEADS, record, table

from data_pipelines.datasets.cinc2021 import SCORED
from data_pipelines.datasets.echonext import _SPLITS
from data_pipelines.datasets.ptbxl import KINDS, SUPERCLASSES
from data_pipelines.subjects import PUBLIC_KEY, split_of

PEOPLE = ("train",) * 4 + ("validation",) * 2 + ("test",) * 2  # in every layout, in this order


def persons(dataset: str, name: Callable[[int], str]) -> Iterator[str]:
    """The first names whose splits, by hash, are those of `PEOPLE`."""
    names = map(name, count(1))
    for split in PEOPLE:
        yield next(n for n in names if split_of(PUBLIC_KEY, dataset, n) == split)


def ptbxl(folder: Path) -> None:
    """Each statement in one half of the records, of every split."""
    columns = ("ecg_id", "patient_id", "age", "sex", "report", "scp_codes", "strat_fold", "filename_lr", "filename_hr")
    halves = [{code: 0.0 for kind in KINDS.values() for code in kind[half::2]} for half in (0, 1)]
    rows = []
    for i, split in enumerate(PEOPLE):
        fold = {"train": 1, "validation": 9, "test": 10}[split]
        name = f"00000/{i + 1:05d}"
        record(folder / "records100" / f"{name}_lr", LEADS, seconds=10, rate=100)
        files = f"records100/{name}_lr", f"records500/{name}_hr"
        rows.append((i + 1, f"{100 + i}.0", 40 + i, i % 2, "sinus rhythm", halves[i % 2], fold, *files))
    table(folder / "ptbxl_database.csv", columns, *rows)
    groups = {}
    for half in (0, 1):  # so that no class is in every record
        groups |= dict(zip(KINDS["diagnostic"][half::2], cycle(SUPERCLASSES[half::2])))
    every = dict.fromkeys(code for kind in KINDS.values() for code in kind)
    statements = [(code, 1 if code in groups else "", groups.get(code, ""), groups.get(code, "")) for code in every]
    table(folder / "scp_statements.csv", ("", "diagnostic", "diagnostic_class", "diagnostic_subclass"), *statements)


def code15(folder: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra [formats] is not installed")
    ids = [int(p) for p in persons("code15", str)]
    folder.mkdir(parents=True)
    tracings = np.random.default_rng(0).normal(size=(len(ids), 4096, 12)).astype(np.float32)
    with h5py.File(folder / "exams_part0.hdf5", "w") as file:
        file["tracings"], file["exam_id"] = tracings, np.array(ids) + 1000
    found = ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF")
    rows = [
        (p + 1000, 50 + i, i % 2 == 0, *(i % 2 == k % 2 for k in range(6)), p, i % 2 == 1, 0.4 + 0.8 * (i // 2),
         "exams_part0.hdf5")
        for i, p in enumerate(ids)
    ]  # fmt: skip
    columns = ("exam_id", "age", "is_male", *found, "patient_id", "death", "timey", "trace_file")
    table(folder / "exams.csv", columns, *rows)


def code15_records(folder: Path) -> None:
    for i, person in enumerate(persons("code15", str)):
        told = [f"Exam ID: {i}", f"Patient ID: {person}", "Age: 60", "Sex: Male", f"Chagas label: {i % 2 == 0}"]
        record(folder / f"{i}", LEADS, seconds=8, rate=200, comments=told)


def cinc2015(folder: Path) -> None:
    for i, person in enumerate(persons("cinc2015", lambda n: f"{n + 100}")):
        told = ["Asystole", f"{('True', 'False')[i % 2]} alarm"]
        record(folder / f"a{person}l", ("II", "PLETH"), seconds=302, rate=50, comments=told)
    (folder / "ALARMS").write_text("")


def cinc2016(folder: Path) -> None:
    folder /= "training-a"
    folder.mkdir(parents=True)
    lines = []
    for i, name in enumerate(persons("cinc2016", lambda n: f"a{n:04d}")):
        digital = np.random.default_rng(i).integers(-999, 999, 20000).astype(np.int16)
        scipy.io.wavfile.write(folder / f"{name}.wav", 2000, digital)
        lines.append(f"{name},{(1, -1)[i % 2]}\n")
    (folder / "REFERENCE.csv").write_text("".join(lines))


def cinc2017(folder: Path) -> None:
    lines = []
    for i, name in enumerate(persons("cinc2017", lambda n: f"A{n:05d}")):
        record(folder / "training2017" / name, ("ECG",), seconds=12, rate=300)
        lines.append(f"{name},{'NAO~'[i % 4]}\n")
    (folder / "REFERENCE-v3.csv").write_text("".join(lines))


def cinc2018(folder: Path) -> None:
    for i, name in enumerate(persons("cinc2018", lambda n: f"tr03-{n:04d}")):
        record(folder / "training" / name / name, ("F3-M2", "E1-M2", "Chin1-Chin2"), seconds=150, rate=200, units="uV")
        notes = ["W", "N1", "N2", "N3", "R"][:: (1, -1)[i % 2]]
        wfdb.wrann(name, "arousal", np.arange(5) * 30 * 200, ["+"] * 5, aux_note=notes,
                   write_dir=str(folder / "training" / name))  # fmt: skip


def cinc2021(folder: Path) -> None:
    """Each diagnosis in one half of the records, by each of its codes in turn."""
    for i, name in enumerate(persons("cinc2021", lambda n: f"JS{n:05d}")):
        codes = [codes[i // 2 % len(codes)] for codes in list(SCORED.values())[i % 2 :: 2]]
        record(folder / "training" / "g1" / name, LEADS, seconds=10, rate=100, comments=[f"Dx: {','.join(codes)}"])
    named = [(name, code) for name, codes in SCORED.items() for code in codes]
    table(folder / "dx_mapping_scored.csv", ("Dx", "SNOMEDCTCode"), *named)


def bidmc(folder: Path) -> None:
    for i, person in enumerate(persons("bidmc", lambda n: f"s{n:05d}"), 1):
        record(folder / f"bidmc{i:02d}", ("II", "PLETH", "RESP"), seconds=30, rate=125)
        (folder / f"bidmc_{i:02d}_Fix.txt").write_text(f"MIMIC II matched wdb ID: {person}\nAge: 60\nGender: F\n")
        rows = [(t, 60 + 2 * i, 12 + i, 90 + i) for t in range(30)]
        table(folder / f"bidmc_{i:02d}_Numerics.csv", ("Time [s]", " HR", " RESP", " SpO2"), *rows)


def mitdb(folder: Path) -> None:
    """Of the usual division, which validates on nobody."""
    for name in ("100", "101", "103", "106"):
        record(folder / name, ("MLII", "V5"), seconds=95, rate=360)
        rhythms = {10 * i: f"({rhythm}" for i, rhythm in enumerate("N AFIB AFL B T P SBR SVTA VT".split())}
        beats = {3 + 2 * i: "NAVFQ"[i % 5] for i in range(40)}
        at = sorted({*rhythms, *beats})
        symbols = ["+" if t in rhythms else beats[t] for t in at]
        wfdb.wrann(name, "atr", np.array(at) * 360 + 1, symbols, aux_note=[rhythms.get(t, "") for t in at],
                   write_dir=str(folder))  # fmt: skip


def sleep_edf(folder: Path) -> None:
    edfio = pytest.importorskip("edfio", reason="the extra [formats] is not installed")
    folder /= "sleep-cassette"
    folder.mkdir(parents=True)
    for i, person in enumerate(persons("sleep_edf", lambda n: f"SC4{n:02d}")):
        signal = np.random.default_rng(i).normal(0, 20, 100 * 150)
        edfio.Edf([edfio.EdfSignal(signal, 100, label="EEG Fpz-Cz", physical_dimension="uV")]).write(
            folder / f"{person}1E0-PSG.edf"
        )
        order = enumerate("W123R"[:: (1, -1)[i % 2]])
        stages = [edfio.EdfAnnotation(30 * k, 30, f"Sleep stage {stage}") for k, stage in order]
        edfio.Edf([], annotations=stages).write(folder / f"{person}1EC-Hypnogram.edf")


def echonext(folder: Path) -> None:
    names = {ours: theirs for theirs, ours in _SPLITS.items()}
    columns = ("ecg_key", "patient_key", "split", "age_at_ecg", "sex")
    flags = ("shd_moderate_or_greater_flag", "lvef_lte_45_flag")
    rows = [(f"e{i}", f"p{i}", names[s], 60, "male", i % 2, 1 - i % 2) for i, s in enumerate(PEOPLE)]
    table(folder / "EchoNext_metadata_100k.csv", columns + flags, *rows)
    for split, name in names.items():
        shape = (PEOPLE.count(split), 1, 2500, 12)
        np.save(folder / f"EchoNext_{name}_waveforms.npy", np.random.default_rng(0).normal(size=shape))


def sph(folder: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra [formats] is not installed")
    (folder / "records").mkdir(parents=True)
    rows = []
    for i, person in enumerate(persons("sph", lambda n: f"S{n:05d}")):
        with h5py.File(folder / "records" / f"A{i:05d}.h5", "w") as file:
            file["ecg"] = np.random.default_rng(i).normal(size=(12, 5000)).astype(np.float16)
        rows.append((f"A{i:05d}", ("1", "22;60+310")[i % 2], person, 55, "M", 5000, "2020-03-04"))
    table(folder / "metadata.csv", ("ECG_ID", "AHA_Code", "Patient_ID", "Age", "Sex", "N", "Date"), *rows)


def vtac(folder: Path) -> None:
    names = {"train": "train", "validation": "val", "test": "test"}
    events = [(f"d{i:02d}", f"d{i:02d}_1") for i in range(len(PEOPLE))]
    table(folder / "event_labels.csv", ("record", "event", "decision"),
          *((*event, i % 2 == 0) for i, event in enumerate(events)))  # fmt: skip
    table(folder / "benchmark_data_split.csv", ("record", "event", "split"),
          *((*event, names[split]) for event, split in zip(events, PEOPLE)))  # fmt: skip
    for person, event in events:  # the alarm is at 300 s, a minute before the end of the published ones
        record(folder / "waveforms" / person / event, ("II", "V", "PLETH"), seconds=304, rate=50)


LAYOUTS = {
    each.__name__: each
    for each in (
        ptbxl, code15, code15_records, cinc2015, cinc2016, cinc2017, cinc2018, cinc2021, bidmc, mitdb, sleep_edf,
        echonext, sph, vtac,
    )
}  # fmt: skip
