"""Prepare: any source to a store; killed, damaged, repeated, in many processes: the same bytes."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from csfm_jax import cli
from data_pipelines import prepare as module
from data_pipelines.datasets import Entry, open_sources
from data_pipelines.errors import BadInput
from data_pipelines.prepare import prepare
from data_pipelines.preprocess import SPECS
from data_pipelines.recording import Channel, Recording
from data_pipelines.store import SPLITS, Store
from data_pipelines.subjects import PUBLIC_KEY, hashed, split_of

KEY = b"0123456789abcdef0123456789abcdef"


@dataclass
class Cohort:
    """A source of tiny recordings: subject i has two; some are damaged."""

    subjects: int = 12
    name: str = "cohort"
    public: bool = True
    official: bool = False
    damaged: bool = False
    dead: bool = False
    mains: float | None = 50.0
    licence: str = "made up"
    citation: str = "nobody"
    note: str = ""
    people: str = ""
    hashed: bool = False
    key: str = ""

    def entries(self):
        split = (lambda i: SPLITS[i % 3]) if self.official else (lambda i: "")
        return [
            Entry(f"patient-{i // 2:04d}", f"Doe_Jane_{i:03d}", split(i // 2), f"ward7/Doe_Jane_{i:03d}.hea")
            for i in range(2 * self.subjects)
        ]

    def read(self, entry):
        i = int(entry.study[-3:])
        if self.damaged and i % 5 == 0:
            raise BadInput(entry.path, f"no file {entry.path} of {entry.subject}", "a signal file", "get it")
        if self.damaged and i == 7:
            raise RuntimeError("surprise with values 0.123")
        rng = np.random.default_rng(i)
        signal_ = np.zeros(1250) if self.dead else rng.normal(size=1250).astype(np.float32)
        channels = (
            Channel("MLII", 250, "mV", signal_),
            Channel("PLETH", 125, "NU", signal_[:625].cumsum()),
            Channel("Temp probe", 250, "furlong", signal_),
            Channel("V1", 250, "mV", np.full(1250, np.nan, np.float32)),
        )
        labels = {"age": 20.0 + i, "sex": float(i % 2)}
        return Recording(channels, entry.subject, entry.study, self.name, f"Sinus rhythm number {i}", labels)


def content(path):
    """Relative name -> bytes of every file."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(Path(path).rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("prepare") / "whole"
    told = []
    summary = prepare(Cohort(), path, shards=3, keep_reports=True, progress=lambda *x: told.append(x))
    assert told[0] == (0, 24) and told[-1] == (24, 24) and len(told) == 25
    return path, summary


def test_store_of_a_cohort(whole):
    path, summary = whole
    store = Store.open(path)
    assert len(store.index) == 24 and summary.totals["subjects"] == 12 and summary.state == "written"
    assert store.index.subject.tolist().count(hashed(PUBLIC_KEY, "cohort", "patient-0003").encode()) == 2
    by_subject = {}
    for i in range(24):
        by_subject.setdefault(store.index.subject[i], set()).add((store.index.split[i], store.index.shard[i]))
    assert all(len(where) == 1 for where in by_subject.values())
    assert sorted(store.labels()["age"]) == [20.0 + i for i in range(24)]
    assert sorted(store.reports()) == sorted(f"Sinus rhythm number {i}" for i in range(24))
    assert summary.unknown == {"Temp probe": 24} and summary.dropped == {"flat or invalid throughout": 24}
    assert store.manifest["licence"] == "made up" and store.spec == SPECS["csfm-jax"]
    assert store.index.channel_sets == ((2, 13),) and (path / "tokenizer.json").is_file()
    text = str(summary)
    assert "24 recordings of 12 subjects" in text and "Temp probe (24)" in text and "patient" not in text


def test_names_that_only_the_unit_explains_are_reported(tmp_path):
    source, x = Cohort(subjects=3), np.random.default_rng(0).normal(size=1250)
    channels = (Channel("sensor 1", 250, "mV", x), Channel("sensor 2", 250, "mV", x), Channel("MCL1", 250, "mV", x))
    source.read = lambda entry: Recording(channels, entry.subject, entry.study, source.name)
    summary = prepare(source, tmp_path / "s")
    assert summary.unknown == {"sensor 1 as ECG other": 6, "sensor 2 as ECG other": 6}
    assert summary.dropped == {"duplicate of another channel": 12}


def test_no_id_in_any_byte(tmp_path):
    prepare(Cohort(damaged=True), tmp_path / "s", shards=2)
    for name, data in content(tmp_path / "s").items():
        for secret in (b"patient-", b"Doe", b"Jane", b"ward7", b"0.123", b"Sinus"):
            assert secret not in data and secret.decode() not in name


def test_quarantine(tmp_path):
    summary = prepare(Cohort(damaged=True), tmp_path / "s", shards=2)
    lines = [json.loads(line) for line in (tmp_path / "s" / "quarantine.jsonl").read_text().splitlines()]
    assert [line["ordinal"] for line in lines] == [0, 5, 7, 10, 15, 20] and sum(summary.quarantined.values()) == 6
    assert lines[0]["reason"] == "found no file <hidden> of <hidden>; expected a signal file"
    assert lines[2]["reason"] == "cannot be read (RuntimeError)"
    assert f"quarantined: 6 (see quarantine.jsonl)\n    5: {lines[0]['reason']}\n    1: cannot" in str(summary)
    assert all(len(line["study"]) == 16 for line in lines)
    assert len(Store.open(tmp_path / "s").index) == 18


def test_recordings_with_the_samples_of_another_are_counted(whole, tmp_path, monkeypatch):
    first = Cohort().entries()[0]
    plain = Cohort.read
    same = lambda self, entry: plain(self, first if entry.study.endswith(("008", "015")) else entry)  # noqa: E731
    monkeypatch.setattr(Cohort, "read", same)
    summary = prepare(Cohort(), tmp_path / "s", shards=3)  # of three people, in any shards
    assert summary.totals["duplicates"] == 2 and "same samples as an earlier recording: 2" in str(summary)
    assert whole[1].totals["duplicates"] == 0 and "same samples" not in str(whole[1])


def test_again_only_verifies(whole):
    path, _ = whole
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    assert prepare(Cohort(), path, shards=3, keep_reports=True).state == "verified"
    assert before == {p: p.stat().st_mtime_ns for p in path.rglob("*")}


@pytest.mark.parametrize(
    "source, options, differs",
    [
        (Cohort(), {"shards": 2}, "shards"),
        (Cohort(), {"shards": 3, "keep_reports": False}, "keep_reports"),
        (Cohort(), {"shards": 3, "spec": "csfm-published"}, "spec"),
        (Cohort(subjects=13), {"shards": 3}, "recordings listed"),
        (Cohort(public=False), {"shards": 3, "key": KEY}, "key, recordings listed"),
    ],
)
def test_other_content_needs_another_folder(whole, source, options, differs):
    with pytest.raises(BadInput, match=f"another {differs};.*choose another --output"):
        prepare(source, whole[0], **{"keep_reports": True, **options})


def test_bytes_do_not_depend_on_workers(whole, tmp_path):
    prepare(Cohort(), tmp_path / "s", shards=3, keep_reports=True, workers=2)
    assert content(tmp_path / "s") == content(whole[0])


# A fresh process that has read nothing yet forks one child an attempt; each child kills itself at its step.
ATTEMPTS = """
import os, signal, sys
sys.path[:0] = {paths!r}
from test_prepare import Cohort, prepare
import pyarrow.parquet, array_record.python.array_record_module, data_pipelines.text, tokenizers
from data_pipelines.prepare_shard import prepare_recording
prepare_recording(Cohort().read(Cohort().entries()[0]), spec="csfm-jax")  # what loads late loads once, not per child
for after in {attempts}:
    child = os.fork()
    if child == 0:
        left, replace = [after], os.replace
        def step(*_):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        def dying_replace(*names):
            step()
            replace(*names)
            step()
        os.replace = dying_replace
        prepare(Cohort(), {path!r}, shards=3, keep_reports=True, progress=step)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, os.path.exists({path!r} + "/manifest.json"))
"""


def test_killed_anywhere_it_goes_on_to_the_same_bytes(whole, tmp_path):
    """SIGKILL before and after every rename and after any recording; each run takes what the last one left."""
    path, root = tmp_path / "s", Path(__file__).resolve().parents[1]
    attempts = [0, 6, 11, 12, 13, 8, 12, 13, 2, 5, 9, 12, 1000]
    code = ATTEMPTS.format(paths=[str(root), str(root / "tests")], attempts=attempts, path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.count(f"{-signal.SIGKILL} False") >= 10 and lines[-1] == "0 True", lines
    assert content(path) == content(whole[0])


def test_killed_after_the_manifest(whole, tmp_path):
    prepare(Cohort(), tmp_path / "s", shards=3, keep_reports=True)
    (tmp_path / "s" / ".partial").mkdir()
    assert prepare(Cohort(), tmp_path / "s", shards=3, keep_reports=True).state == "verified"
    assert content(tmp_path / "s") == content(whole[0]) and not (tmp_path / "s" / ".partial").exists()


def test_a_users_files_are_left_alone_and_a_folder_that_holds_them_is_no_output(whole, tmp_path):
    prepare(Cohort(), tmp_path / "s", shards=3, keep_reports=True)
    (tmp_path / "s" / ".notes.2024").write_text("mine")
    (tmp_path / "s" / ".partial").mkdir()
    assert prepare(Cohort(), tmp_path / "s", shards=3, keep_reports=True).state == "verified"
    assert (tmp_path / "s" / ".notes.2024").read_text() == "mine"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("mine")
    with pytest.raises(BadInput, match="home: found a folder with other files"):
        prepare(Cohort(), tmp_path / "home")
    assert content(tmp_path / "home") == {"letter.txt": b"mine"}


def test_every_file_is_begun_where_a_killed_run_leaves_no_trace(whole, tmp_path, monkeypatch):
    """Whatever `.partial/` holds goes with it: a kill within any write cannot leave a file in the finished store."""
    begun, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (begun.append(Path(old).parent.name), replace(old, new)))
    prepare(Cohort(), tmp_path / "s", shards=3, keep_reports=True)
    assert set(begun) == {".partial"} and len(begun) > 15
    assert content(tmp_path / "s") == content(whole[0])


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: data[:-9] + b"?" + data[-8:]])
def test_a_damaged_shard_is_made_again(whole, tmp_path, monkeypatch, damage):
    path = tmp_path / "s"
    monkeypatch.setattr(module.StoreWriter, "finish", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(Cohort(), path, shards=3, keep_reports=True)
    monkeypatch.undo()
    victim = path / "shards" / "shard-00001-of-00003.array_record"
    victim.write_bytes(damage(victim.read_bytes()))
    read = []
    monkeypatch.setattr(Cohort, "read", lambda self, e, plain=Cohort.read: read.append(e) or plain(self, e))
    prepare(Cohort(), path, shards=3, keep_reports=True)
    assert 0 < len(read) < 24
    assert content(path) == content(whole[0])


def test_splits(tmp_path):
    prepare(Cohort(official=True), tmp_path / "s", shards=2)
    index = Store.open(tmp_path / "s").index
    for subject in range(12):
        rows = index.subject == hashed(PUBLIC_KEY, "cohort", f"patient-{subject:04d}").encode()
        assert set(index.split[rows]) == {subject % 3}
    shares = Counter(split_of(KEY, "x", str(i)) for i in range(5000))
    assert 0.77 < shares["train"] / 5000 < 0.83 and 0.08 < shares["test"] / 5000 < 0.12
    assert hashed(KEY, "x", "1") != hashed(KEY, "y", "1") != hashed(b"other" * 8, "y", "1")


def test_a_patient_of_two_folders_of_a_site_has_one_hash_and_one_split(tmp_path):
    indexes = []
    for name in ("2023", "2024"):
        prepare(Cohort(name=name, people="site", public=False), tmp_path / name, key=KEY)
        indexes.append(Store.open(tmp_path / name).index)
    a, b = ({(s, split) for s, split in zip(i.subject.tolist(), i.split.tolist())} for i in indexes)
    assert a == b and len(a) == 12
    assert not set(indexes[0].study) & set(indexes[1].study)


def test_a_subject_in_two_splits(tmp_path, monkeypatch):
    entries = [Entry("p", "a", "train", "a.hea"), Entry("p", "b", "test", "b.hea")]
    monkeypatch.setattr(Cohort, "entries", lambda self: entries)
    with pytest.raises(BadInput, match="subject in two splits"):
        prepare(Cohort(), tmp_path / "s")


def test_nothing_usable(tmp_path):
    for _ in range(2):  # nothing stays that would keep a second try from reading again
        with pytest.raises(BadInput, match="no usable recording.*no usable channel: flat or invalid throughout"):
            prepare(Cohort(dead=True), tmp_path / "s")
    with pytest.raises(BadInput, match="no recording"):
        prepare(Cohort(subjects=0), tmp_path / "s")


def test_full_disk_keeps_what_is_done(whole, tmp_path, monkeypatch, capsys):
    real, calls = os.replace, []

    def no_room(*names):
        calls.append(names)
        if len(calls) > 4:
            raise OSError(28, "No space left on device", str(names[0]))
        real(*names)

    monkeypatch.setattr("data_pipelines.datasets.open_sources", lambda *_: [Cohort()])
    words = ["prepare", "--source", "x", "--output", str(tmp_path / "s"), "--shards", "3", "--keep-reports"]
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", no_room)
        assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no space left" in error and "goes on" in error
    assert cli.main(words) == 0 and content(tmp_path / "s") == content(whole[0])


def test_keys(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data_pipelines.datasets.open_sources", lambda *_: [Cohort(public=False, subjects=3)])
    words = ["prepare", "--source=x", f"--output={tmp_path / 's'}"]
    assert cli.main(words) == 2 and "--new-key=FILE" in capsys.readouterr().err
    assert cli.main([*words, f"--key-file={tmp_path / 'none'}"]) == 2
    assert cli.main([*words, f"--new-key={tmp_path / 'no' / 'key'}"]) == 2
    assert cli.main([*words, f"--new-key={tmp_path / 'key'}"]) == 0
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    capsys.readouterr()
    assert cli.main([*words, f"--new-key={tmp_path / 'key'}"]) == 2 and "existing file" in capsys.readouterr().err
    assert cli.main([*words, f"--key-file={tmp_path / 'key'}"]) == 0
    assert "complete already, verified" in capsys.readouterr().out
    (tmp_path / "short").write_text("abc")
    assert cli.main([*words, f"--key-file={tmp_path / 'short'}"]) == 2
    manifest = Store.open(tmp_path / "s").manifest
    assert len(manifest["key"]) == 16 and (tmp_path / "key").read_text().strip() not in json.dumps(manifest)


def test_command_with_several_sources(tmp_path, monkeypatch, capsys):
    sources = [Cohort(name="a", subjects=3), Cohort(name="b", dead=True), Cohort(name="c", subjects=4, note="old")]
    monkeypatch.setattr("data_pipelines.datasets.open_sources", lambda *_: sources)
    assert cli.main(["prepare", "--source=x", f"--output={tmp_path / 'all'}"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("csfm prepare: b: found no usable recording") and err.endswith("\nc: old\n")
    assert err.count("\n") == 2
    assert len(Store.open(tmp_path / "all" / "a").index) == 6 and len(Store.open(tmp_path / "all" / "c").index) == 8
    for wrong in (["--shards=0"], ["--workers=0"], ["--spec=other"]):
        assert cli.main(["prepare", "--source=x", f"--output={tmp_path / 'w'}", *wrong]) == 2


@pytest.mark.parametrize("spec", sorted(SPECS))
def test_ptbxl(shared_data, tmp_path, spec):
    """Real recordings: official folds, no id, every lead present."""
    source = open_sources(str(shared_data / "ptbxl"))[0]
    entries = source.entries()[:60]
    source.entries = lambda: entries
    summary = prepare(source, tmp_path / "s", spec=spec)
    store = Store.open(tmp_path / "s")
    assert len(store.index) == 60 and not summary.quarantined
    assert store.index.channel_sets == (tuple(range(1, 13)),)
    assert np.all(store.index.seconds == 10)
    assert Counter(store.index.split.tolist()) == Counter(SPLITS.index(e.split) for e in entries)
    raw = source.read(entries[0])
    row = store.index.study.tolist().index(hashed(PUBLIC_KEY, "ptbxl", "study\0" + entries[0].study).encode())
    for channel, (_, samples) in zip(raw.channels, store.read_window(row, 0, 10)):
        slow = channel.signal[::2] - np.median(channel.signal)
        fit = [np.corrcoef(slow[500:2000], samples[500 + lag : 2000 + lag])[0, 1] for lag in (-2, 0, 2)]
        assert fit[1] > 0.6 and np.argmax(fit) == 1


def test_files_of_one_subject_by_their_sidecars_lie_in_one_split(tmp_path):
    folder, samples = tmp_path / "ward", np.random.default_rng(0).normal(size=(12, 1000))
    folder.mkdir()
    for i, values in enumerate(samples):
        (folder / f"{i}.csv").write_text("\n".join(map(str, values)))
        note = {"rate": 250, "channels": ["II"], "unit": "mV", "subject": "a" if i % 2 else "b"}
        (folder / f"{i}.csv.json").write_text(json.dumps(note))
    (source,) = open_sources(folder)
    totals = prepare(source, tmp_path / "store", key=KEY).totals
    assert (totals["recordings"], totals["subjects"]) == (12, 2)
