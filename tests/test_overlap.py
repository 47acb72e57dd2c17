"""Overlap: the same signal is found at another rate, filter, gain and moment; different people are not."""

import json
import shutil

import numpy as np
import pytest
from scipy import signal as dsp
from test_prepare import Cohort

from csfm_jax import cli
from data_pipelines.datasets import open_sources
from data_pipelines.overlap import find_overlap, find_pairs
from data_pipelines.prepare import prepare
from data_pipelines.recording import Channel, Recording
from data_pipelines.store import Store


@pytest.fixture(scope="module")
def ptbxl_stores(shared_data, tmp_path_factory):
    """PTB-XL at 500 Hz, and those of its records that are there at 100 Hz, as two stores."""
    root = tmp_path_factory.mktemp("overlap")
    slow = root / "slow"
    shutil.copytree(shared_data / "ptbxl" / "records100", slow / "records100")
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        shutil.copyfile(shared_data / "ptbxl" / name, slow / name)
    prepare(open_sources(shared_data / "ptbxl")[0], root / "500")
    prepare(open_sources(slow)[0], root / "100")
    return Store.open(root / "500"), Store.open(root / "100")


def test_ptbxl_at_two_rates(ptbxl_stores):
    fast, slow = ptbxl_stores
    assert len(slow.index) == 60
    found = find_overlap(fast, slow)
    same = [fast.index.study[p.first] == slow.index.study[p.second] for p in found.pairs]
    assert len(same) == 60 and all(same) and found.comparable and found.crossing_pairs == 0
    assert len(found.subjects) == len(np.unique(slow.index.subject))


def test_no_pair_among_different_patients(ptbxl_stores):
    """Among 327 patients: one pair, whose files are the same bytes in PTB-XL itself, and one patient recorded twice."""
    store, _ = ptbxl_stores
    assert len(np.unique(store.index.subject)) == 327
    pairs = find_pairs(store, store)
    strangers = [p for p in pairs if store.index.subject[p.first] != store.index.subject[p.second]]
    assert len(strangers) == 1 and strangers[0].correlation > 0.9999
    assert len(pairs) <= 2


def cohort_of(recordings, name):
    """A source of given recordings, one subject each."""
    source = Cohort(subjects=-(-len(recordings) // 2), name=name)
    made = {entry.study: r for entry, r in zip(source.entries(), recordings)}
    source.read = lambda entry: Recording(made[entry.study], entry.subject, entry.study, name)
    return source


def simulated(count=24, seconds=30):
    """Lead II, PPG and respiration of different people, 500 Hz."""
    (source,) = open_sources("simulated:subjects=90,seed=5")
    wanted = [r for entry in source.entries() if len((r := source.read(entry)).channels) == 3][:count]
    return [r.channels for r in wanted]


def _band(rate):
    return dsp.butter(2, (0.7, 30), "bandpass", fs=rate, output="sos")


CHANGES = {
    "gain": lambda c: (c.rate, c.signal * 3.7),
    "rate": lambda c: (200.0, dsp.resample(c.signal, int(len(c.signal) * 200 / c.rate))),
    "filter": lambda c: (c.rate, dsp.sosfiltfilt(_band(c.rate), c.signal)),
    "shift": lambda c: (c.rate, c.signal[int(1.13 * c.rate) :]),
    "noise": lambda c: (c.rate, c.signal + np.random.default_rng(0).normal(0, 0.02 * c.signal.std(), len(c.signal))),
}  # fmt: skip


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    root = tmp_path_factory.mktemp("people")
    prepare(cohort_of(simulated(), "a"), root / "a")
    return root


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_signal_is_found(people, tmp_path, change):
    changed = []
    for channels in simulated():
        changed.append(tuple(Channel(c.name, *_changed(c, change)) for c in channels if c.rate >= 100))
    prepare(cohort_of(changed, "b"), tmp_path / "b")
    a, b = Store.open(people / "a"), Store.open(tmp_path / "b")
    pairs = find_pairs(a, b)
    assert len(pairs) == len(a.index) == len({p.first for p in pairs}) == len({p.second for p in pairs})
    expected = -1.13 if change == "shift" else 0.0
    assert all(abs(p.lag - expected) < 0.15 for p in pairs)


def _changed(channel, change):
    rate, signal = CHANGES[change](channel)
    return rate, channel.unit, np.asarray(signal, np.float32)


def test_a_stretch_of_a_long_recording_is_found(shared_data, tmp_path):
    """Ten seconds out of eight minutes, and a part that began before the other."""
    long = [r.channels for s in open_sources(shared_data / "bidmc") for r in map(s.read, s.entries()[:4])]
    begins = (95.3, 301.0, 0.0, 433.7)
    short = [
        tuple(Channel(c.name, c.rate, c.unit, c.signal[int(b * c.rate) :][: int(10 * c.rate)]) for c in channels)
        for b, channels in zip(begins, long)
    ]
    prepare(cohort_of(long, "long"), tmp_path / "long")
    prepare(cohort_of(short, "short"), tmp_path / "short")
    a, b = Store.open(tmp_path / "long"), Store.open(tmp_path / "short")
    pairs, back = find_pairs(a, b), find_pairs(b, a)
    assert len(pairs) == 4 == len({p.first for p in pairs}) == len({p.second for p in pairs})
    assert np.abs(np.sort([-p.lag for p in pairs]) - np.sort(begins)).max() < 0.15
    assert [(p.second, p.first, -p.lag) for p in sorted(back, key=lambda p: p.second)] == [
        (p.first, p.second, p.lag) for p in pairs
    ]


def test_different_people_are_not_pairs(people):
    store = Store.open(people / "a")
    assert find_pairs(store, store) == []


def test_a_recording_that_is_there_twice_and_a_pair_across_splits(people, tmp_path, capsys):
    made = simulated(12)
    prepare(cohort_of([*made[:11], made[3]], "twice"), tmp_path / "twice")
    output = tmp_path / "pairs.json"
    code = cli.main(["data", "overlap", str(tmp_path / "twice"), f"--output={output}"])
    (pair,) = json.loads(output.read_text())["pairs"]
    assert pair["correlation"] > 0.999 and pair["first"]["subject"] != pair["second"]["subject"]
    assert code == int(pair["first"]["split"] != pair["second"]["split"])
    told = capsys.readouterr().out
    assert "1 pairs" in told and "under two subjects" in told
    assert cli.main(["data", "overlap", str(people / "a"), str(tmp_path / "twice")]) in (0, 1)
    assert "not comparable" in capsys.readouterr().out
    assert cli.main(["data", "overlap", "x", "y", "z"]) == 2 and cli.main(["data", "overlap", "x"]) == 2
