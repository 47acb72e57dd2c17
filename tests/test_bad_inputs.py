"""What `csfm prepare` answers to sources, outputs and keys that cannot be used: one line each, and nothing written."""

import gzip
import os
import resource
import shutil

import numpy as np
import pytest
from small_layouts import LAYOUTS

from csfm_jax import cli
from data_pipelines import prepare as prepare_module
from data_pipelines.datasets import open_sources
from data_pipelines.store import Store
from fuzz.seeds import edf_file

SECONDS = 30


def edf(patient: str) -> bytes:
    file = edf_file(2, b"EDF+C", [b"+%d\x14\x14\0" % t for t in range(SECONDS)])
    known = b"P-17 F 02-AUG-1951 Name"
    return file.replace(known, patient.encode().ljust(len(known)))


@pytest.fixture
def site(tmp_path):
    """A folder with recordings of two persons, and a key."""
    (tmp_path / "site").mkdir()
    for name, patient in (("a", "P-1 F 02-AUG-1951 X"), ("b", "P-2 M 03-AUG-1961 X")):
        (tmp_path / "site" / f"{name}.edf").write_bytes(edf(patient))
    (tmp_path / "key").write_text("k" * 40)
    return tmp_path


def answer(site, capsys, *words) -> tuple[int, str, str]:
    """Exit code, output, error of a command on the site's folder unless the words say otherwise."""
    given = {"--source": site / "site", "--output": site / "out", "--key-file": site / "key"}
    given |= dict(word.split("=", 1) for word in words)
    code = cli.main(["prepare", *(f"{option}={value}" for option, value in given.items())])
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--source="], "--source: found nothing"), (["--output="], "--output: found nothing"),
        (["--source=https://physionet.org/files"], "found an address; expected a folder on this machine"),
        (["--source=s3://bucket/ptb-xl"], "found an address"), (["--source=mimic9"], "mimic9: found no such folder"),
        (["--shard=5/4"], "'5/4'; expected i/n with i from 0 to n - 1"), (["--workers=0"], "--workers: found 0"),
        (["--key-file={site}/none"], "none: found no such file"), (["--key-file={site}"], "found a folder; expected a"),
        (["--output={site}/site"], "a folder with other files"), (["--output={site}/key"], "not a directory"),
        (["--spec=other"], "'other'; expected csfm-jax or csfm-published"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_followed(site, capsys, words, says):
    before = sorted(site.rglob("*"))
    code, _, error = answer(site, capsys, *(word.format(site=site) for word in words))
    assert code == 2 and says in error and error.count("\n") == 1
    assert sorted(site.rglob("*")) == before


def test_a_folder_without_a_recording_says_what_is_in_it(site, capsys):
    folder = site / "other"
    folder.mkdir()
    (folder / "x.csv.gz").write_bytes(gzip.compress(bytes(1 << 24)))
    (folder / "more").symlink_to(site / "site")
    code, _, error = answer(site, capsys, f"--source={folder}")
    assert code == 2 and "no recording; 1 files of no known format were left out: .gz (1); links to folders" in error


def test_what_is_left_out_is_told(site, capsys, monkeypatch):
    (site / "elsewhere").mkdir()
    (site / "site" / "ward").symlink_to(site / "elsewhere")
    (site / "site" / "closed").mkdir()
    (site / "site" / "closed" / "ptbxl_database.csv").write_text("a known dataset, if it could be looked into\n")
    (site / "site" / "c.edf").write_bytes(edf("P-3 F 02-AUG-1951 X"))
    scandir, access, opened = os.scandir, os.access, open

    def no_folder(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def no_file(path, *rest, **options):
        if str(path).endswith("c.edf"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *rest, **options)

    # whoever runs the tests may be root, whom no permission stops
    monkeypatch.setattr("os.scandir", no_folder)
    monkeypatch.setattr("builtins.open", no_file)
    monkeypatch.setattr(
        "os.access", lambda path, mode: not str(path).endswith(("c.edf", "closed")) and access(path, mode)
    )
    (source,) = open_sources(site / "site")
    assert [entry.study for entry in source.entries()] == ["a.edf", "b.edf"]
    for note in ("unreadable (1)", "cannot be opened were left out: 1", "links to folders were not followed: 1"):
        assert note in source.note


def test_two_persons_under_one_id_are_told(site, capsys):
    code, printed, _ = answer(site, capsys)
    assert code == 0 and "both sexes" not in printed
    (site / "site" / "c.edf").write_bytes(edf("P-1 M 03-AUG-1931 X"))
    code, printed, _ = answer(site, capsys, f"--output={site / 'again'}")
    assert code == 0 and "subjects recorded as both sexes: 1 (two persons under one id" in printed
    store = Store.open(site / "again")
    assert store.manifest["totals"]["subjects"] == 2 and len(set(store.index.split.tolist())) <= 2


def test_another_output_or_a_recording_twice(site, capsys):
    (site / "site" / "a-copy.edf").write_bytes((site / "site" / "a.edf").read_bytes())
    code, printed, _ = answer(site, capsys)
    assert code == 0 and "same samples as an earlier recording: 1" in printed
    code, _, error = answer(site, capsys, "--spec=csfm-published")
    assert code == 2 and "made with another spec" in error


@pytest.mark.parametrize(
    ("step", "most"), [("run_local", 500), ("run_local", 60_000), ("_finish", 300), ("_finish", 0)]
)
def test_a_file_that_may_not_grow_is_told_and_the_command_goes_on(site, capsys, monkeypatch, step, most):
    """As a full disk: in a shard, in a table, in a list."""
    does, limits = getattr(prepare_module, step), resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            return does(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, step, limited)
        code, _, error = answer(site, capsys)
    assert code == 2 and "file too large; expected the right to write larger files" in error
    assert not (site / "out" / "manifest.json").exists()
    code, printed, _ = answer(site, capsys)
    assert code == 0 and "2 recordings of 2 subjects" in printed


def test_labels_of_recordings_that_are_not_here_are_counted(tmp_path, capsys):
    """A table that lists more than was downloaded, and one beside the recordings that names others."""
    LAYOUTS["vtac"](tmp_path / "vtac")
    for folder in sorted((tmp_path / "vtac" / "waveforms").iterdir())[:3]:
        shutil.rmtree(folder)
    LAYOUTS["cinc2017"](tmp_path / "cinc2017")
    with open(tmp_path / "cinc2017" / "REFERENCE-v3.csv", "a") as file:
        file.write("A09998,N\nA09999,O\n")
    assert cli.main(["prepare", f"--source={tmp_path}", f"--output={tmp_path / 'out'}"]) == 0
    printed, error = capsys.readouterr()
    assert (
        "vtac: 5 recordings" in printed
        and "quarantined: 3 (see quarantine.jsonl)\n    3: found no such file" in printed
    )
    assert "cinc2017: 8 recordings" in printed and printed.count("quarantined: 0\n") == 1
    assert "REFERENCE-v3.csv names 2 recordings that are not here: their labels are not used" in error


def test_recordings_without_a_valid_sample_are_refused(tmp_path, capsys):
    LAYOUTS["cinc2017"](tmp_path / "files")
    for path in tmp_path.glob("files/training2017/*.dat"):
        np.full(3600, -(2**15), "<i2").tofile(path)  # what WFDB writes where there is no sample
        path.with_suffix(".hea").write_text(f"{path.stem} 1 300 3600\n{path.name} 16 1000/mV\n")
    code = cli.main(["prepare", f"--source={tmp_path / 'files'}", f"--output={tmp_path / 'out'}"])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1
    assert "no usable recording (8 of 8: no usable channel: flat or invalid throughout (1))" in error
