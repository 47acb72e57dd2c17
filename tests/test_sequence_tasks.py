"""Labels of stretches: stages of sleep, rhythms and beats, from events to figures, on files in published layouts."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_checkpoints import toy_config, write_checkpoint
from small_stores import write_store
from test_datasets_layouts import record

from csfm_jax import cli, tasks
from csfm_jax.commands import finetune
from csfm_jax.evaluation import label_budget
from csfm_jax.tasks.resolve import cut, read_stores, read_tokens, resolve
from data_pipelines.config import TokenConfig
from data_pipelines.datasets import open_sources
from data_pipelines.errors import BadInput
from data_pipelines.loader import Rows
from data_pipelines.prepare import prepare
from data_pipelines.preprocess import PreparedRecording
from data_pipelines.recording import Event
from data_pipelines.signals import CHANNEL_ID
from data_pipelines.store import Store
from data_pipelines.store_view import ChannelsOf
from data_pipelines.store_writer import StoredRecording
from data_pipelines.stretches import Cut, Stretches


def annotated(number, split, events, seconds=40.0):
    """Lead II; each second of it is a ramp of its own height, so that a stretch tells where it was cut."""
    samples = (np.arange(round(seconds * 250)) // 250 * 10 + np.arange(round(seconds * 250)) % 250).astype(np.int16)
    made = PreparedRecording(np.array([CHANNEL_ID["II"]], np.int32), [samples], seconds, [])
    events = tuple(Event(*event) for event in events)
    return StoredRecording(f"{number:016x}", f"{number + 10**6:016x}", split, made, None, {}, events)


def stored(folder, *recordings):
    return write_store(folder / "made", list(recordings), name="made")


def classes(view):
    table = view.labels()
    return [name for i in range(len(view.index)) for name in table if table[name][i] == 1]


def test_spans_moments_and_beats_become_stretches(tmp_path):
    spans = [(0, 10.0, "W"), (10, 14.0, "N2"), (24, 10.0, "?"), (34, 6.0, "W")]
    moments = [(1, 0.0, "(N"), (5, 0.0, "V"), (12, 0.0, "(AB"), (20, 0.0, "(AFIB")]
    store = stored(tmp_path, annotated(1, "train", spans), annotated(2, "test", moments))
    along = Stretches(store, Cut((("W", "W"), ("N2", "N2"), ("?", "")), 5.0, "along"))
    assert along.start.tolist() == [0, 5, 10, 15, 34] and classes(along) == ["W", "W", "N2", "N2", "W"]
    assert set(along.recording) == {0} and (along.index.split == 0).all() and len(set(along.index.study)) == 5
    rhythm = Stretches(store, Cut((("(N", "N"), ("(AFIB", "AFIB"), ("(AB", "")), 10.0, "along"))
    assert list(zip(rhythm.recording, rhythm.start)) == [(1, 1.0), (1, 20.0), (1, 30.0)]
    assert classes(rhythm) == ["N", "AFIB", "AFIB"] and set(rhythm.index.subject) == {store.index.subject[1]}
    beats = Stretches(store, Cut((("V", "V"),), 3.0, "about"))
    assert beats.start.tolist() == [3.52] or beats.start.tolist() == [3.48]  # on the grid of starts
    assert Stretches(store, Cut((("V", "V"),), 12.0, "about")).index.milliseconds.tolist() == []  # begins before it
    one, other = along.read_window(3, 1.0, 2.0), store.read_window(0, 16.0, 2.0)
    np.testing.assert_array_equal(one[0][1], other[0][1])
    assert along.digest not in (store.digest, rhythm.digest) and along.reports() == [None] * 5
    view = ChannelsOf(along, {CHANNEL_ID["II"]})
    assert cut(tasks.get("sleep_edf_stages"), [view]) == [view]  # a view of stretches is not cut again
    with pytest.raises(BadInput, match="quality_minimum"):
        along.quality()


def test_a_day_awake_about_the_night_is_left_out(tmp_path):
    store = stored(tmp_path, annotated(1, "train", [(0, 15.0, "W"), (15, 5.0, "R"), (20, 20.0, "W")]))
    kept = Stretches(store, Cut((("W", "W"), ("R", "R")), 5.0, "along", kept=("W", 10.0)))
    assert kept.start.tolist() == [5, 10, 15, 20, 25]
    awake = stored(tmp_path / "w", annotated(1, "train", [(0, 15.0, "W")]))
    assert len(Stretches(awake, Cut((("W", "W"), ("R", "R")), 5.0, "along", kept=("W", 0.0))).index) == 3


def config_of(task, *more):
    base = dataclasses.replace(toy_config(), tokens=TokenConfig(modalities=tasks.get(task).sensors, text_length=0))
    return finetune.recipe(base, tasks.get(task), "stores", list(more), scratch=False)


def test_sleep_edf(tmp_path):
    edfio = pytest.importorskip("edfio", reason="the extra [formats] is not installed")
    folder = tmp_path / "files" / "sleep-cassette"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for person in range(8):
        signal = rng.normal(0, 20, 100 * 150)
        edfio.Edf([edfio.EdfSignal(signal, 100, label="EEG Fpz-Cz", physical_dimension="uV")]).write(
            folder / f"SC4{person:02d}1E0-PSG.edf"
        )
        stages = [(0, 30, "W"), (30, 60, "4"), (90, 30, "?")]
        notes = [edfio.EdfAnnotation(at, lasts, f"Sleep stage {stage}") for at, lasts, stage in stages]
        edfio.Edf([], annotations=[*notes, edfio.EdfAnnotation(120, 30, "Movement time")]).write(
            folder / f"SC4{person:02d}1EC-Hypnogram.edf"
        )
    (source,) = open_sources(tmp_path / "files")
    prepare(source, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    config = config_of("sleep_edf_stages")
    found = resolve(config, [store])
    assert found.labels == ("W", "N3") and set(found.left_out) == {"N1", "N2", "R"}
    assert sum(found.recordings.values()) == 3 * 8  # stage ? and movement are no epochs
    (view,) = read_stores(config, [store])
    assert classes(view)[:3] == ["W", "N3", "N3"]


def test_cinc2018(tmp_path):
    import wfdb

    for person in range(8):
        name = f"tr03-{person:04d}"
        folder = tmp_path / "files" / "training" / name
        record(folder / name, ("F3-M2", "E1-M2", "Chin1-Chin2"), seconds=150, rate=200, units="uV")
        at, note = np.array([0, 30, 35, 90]) * 200, ["W", "N2", "(arousal_rera", "R"]
        wfdb.wrann(name, "arousal", at, ["+"] * 4, aux_note=note, write_dir=str(folder))
    (source,) = open_sources(tmp_path / "files")
    prepare(source, tmp_path / "store")
    found = resolve(config_of("cinc2018_stages"), [Store.open(tmp_path / "store")])
    assert found.labels == ("W", "N2", "R") and sum(found.recordings.values()) == 5 * 8  # 1, 2 and 2 epochs


def test_real_beats_and_rhythms(tmp_path, shared_data):
    (source,) = open_sources(shared_data / "mitdb")
    prepare(source, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    beats = cut(tasks.get("mitdb_beats"), [store])[0]
    count = {name: int(values.sum()) for name, values in beats.labels().items()}
    labels = store.labels()
    for name, codes in (("V", "VE"), ("N", "NLRej")):
        all_of = sum(np.nansum(labels[f"beats/{code}"]) for code in codes if f"beats/{code}" in labels)
        assert all_of - 25 <= count[name] <= all_of  # but those at the ends of the five records
    # the R peak stands in the middle of its three seconds
    normal = np.flatnonzero(beats.labels()["N"])[100:140]
    waves = [np.abs(beats.read_window(int(i), 0.0, 3.0)[0][1].astype(float)) for i in normal]
    assert abs(int(np.mean(waves, axis=0).argmax()) - 375) <= 15
    rhythms = cut(tasks.get("mitdb_rhythms"), [store])[0]
    assert rhythms.labels()["N"].sum() > 500 and rhythms.labels()["T"].sum() > 0
    found = resolve(config_of("mitdb_beats"), [store])
    assert {"N", "V"} <= set(found.labels)


def test_a_sequence_is_read_predicted_and_studied(tmp_path, capsys):
    splits = ("train", "train", "validation", "test")
    nights = [annotated(n, splits[n % 4], [(0, 0.0, "(N"), (20, 0.0, "(AFIB")]) for n in range(8)]
    store = stored(tmp_path / "stores", *nights)
    config = finetune.recipe(toy_config(position_steps=20), tasks.get("mitdb_rhythms"), "stores", [], scratch=False)
    found = resolve(config, [store])
    assert found.labels == ("N", "AFIB") and found.recordings == {"train": 16, "validation": 8, "test": 8}
    config = finetune.with_rows(found.adapted(config), [store])
    views, options = read_stores(config, [store]), {"label_names": found.labels, "training": True}
    rows = Rows(views, read_tokens(config), config.data, "train", tmp_path / "plans", hide=False, **options)
    few = dataclasses.replace(config, adaptation=dataclasses.replace(config.adaptation, halvings=1))
    (learned,) = label_budget.among(few, views)  # of stretches, not of recordings
    assert len(np.unique(views[0].index.subject[learned & (views[0].index.split == 0)])) == 2
    batch, plan = rows.batch(0, range(8)), rows.plans.get(0)
    for row, slot in zip(*np.nonzero(batch.window >= 0)):
        after = views[0].start[plan.recording[batch.window[row, slot]]] >= 20
        assert batch.labels[row, slot].tolist() == ([0, 1] if after else [1, 0])

    workdir = write_checkpoint(tmp_path / "run", config, people=("", "toy"))  # as `csfm finetune` would leave it
    common = [f"--store={tmp_path / 'stores'}", "--unchecked-subjects"]
    assert cli.main(["predict", *common, f"--checkpoint={workdir}", f"--output={tmp_path / 'p.parquet'}"]) == 0
    assert "kappa" in (shown := capsys.readouterr().out) and "macro_f1" in shown
    table = pq.read_table(tmp_path / "p.parquet").to_pandas()
    assert len(table) == 8 and table.recording.nunique() == 8 and table.subject.nunique() == 2
    assert table["label/AFIB"].tolist() == [0, 0, 1, 1] * 2
    study = ["evaluate", *common, f"--models={workdir}", "--tasks=mitdb_rhythms", f"--workdir={tmp_path / 's'}"]
    assert cli.main([*study, "--bootstrap=20"]) == 0
    figures = pq.read_table(tmp_path / "s" / "results.parquet").to_pandas()
    assert {"kappa", "macro_f1", "accuracy"} <= set(figures.figure) and set(figures.patients) == {2}


def test_stores_without_such_events_are_refused(tmp_path):
    store = stored(tmp_path, annotated(1, "train", [(0, 0.0, "Snore")]))
    with pytest.raises(BadInput, match=r"events of mitdb_rhythms: \(N, \(AFIB"):
        resolve(config_of("mitdb_rhythms"), [store])
