"""A small part of `make fuzz`, and that the fuzzer sees what it is there to see."""

import gc
import subprocess
import sys
import types

import numpy as np
import pytest

from data_pipelines import formats
from data_pipelines.errors import BadInput

pytest.importorskip("h5py", reason="the extra [formats] is not installed")
pytest.importorskip("pydicom", reason="the extra [formats] is not installed")

from fuzz import campaign, check  # noqa: E402
from fuzz.seeds import Seed, seeds  # noqa: E402

INPUTS = 200


@pytest.fixture(autouse=True)
def nothing_to_collect():
    """What other tests have left is not collected in the time and on the account of a reader."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_every_reader_has_seeds():
    assert set(seeds()) == set(formats.READERS)


# HDF5's library has ways of its own to end or to stop a process: there it costs one input, here it would cost pytest
@pytest.mark.parametrize("reader", [name for name in formats.READERS if name != "hdf5"])
def test_damaged_files_give_a_recording_or_bad_input(tmp_path, reader):
    group = seeds()[reader]
    campaign.warm(reader, group, tmp_path)
    outcomes = [campaign.one(reader, group, number, 1, tmp_path) for number in range(INPUTS)]
    assert {"value", "refused"} == set(outcomes)


def test_damaged_hdf5_files_in_a_process_of_their_own(tmp_path):
    counts = campaign.run_share("hdf5", range(INPUTS), 1, tmp_path)
    assert counts["value"] and counts["refused"] and not counts["failed"]


def test_the_same_number_is_the_same_input(tmp_path):
    import random

    from fuzz.mutate import damaged

    (first, *_) = seeds()["edf"]
    one, two = (damaged(first, random.Random("0:edf:7")) for _ in range(2))
    assert one == two != first.files


def raises(path, item=""):
    raise KeyError("x")


def hangs(path, item=""):
    while True:
        try:
            for _ in range(1000):
                pass
        except Exception:  # as careless readers do
            pass


def allocates(path, item=""):
    return np.zeros(10 << 20, np.uint8)


def several_lines(path, item=""):
    raise BadInput(path, "two\nlines", "one", "x")


@pytest.mark.parametrize(
    ("read", "says"),
    [(raises, "KeyError in place"), (hangs, "processor time"), (allocates, "allocated"),
     (several_lines, "several lines"), (lambda path, item="": None, "AssertionError")],
)  # fmt: skip
def test_the_check_sees_what_a_reader_must_not_do(tmp_path, monkeypatch, read, says):
    module = types.SimpleNamespace(read=read)
    monkeypatch.setitem(sys.modules, "data_pipelines.formats.broken", module)
    monkeypatch.setattr(check, "MOST_SECONDS", 0.2)
    (tmp_path / "x").write_bytes(b"1")
    formats.find(tmp_path)  # imports are no reader's time
    with pytest.raises(check.Failed, match=says):
        check.check("broken", tmp_path, "x")


def loops():
    while True:
        pass


@pytest.mark.parametrize("take", [lambda: np.zeros(10 << 20, np.uint8), loops], ids=["memory", "time"])
def test_what_is_taken_once_is_not_the_readers(tmp_path, monkeypatch, take):
    """A table of the interpreter that doubles, a machine that stands still; `allocates` and `hangs` do it each time."""
    taken = []

    def read(path, item=""):
        if not taken:
            taken.append(True)
            taken.append(take())
        raise BadInput(path, "x", "y", "z")

    monkeypatch.setitem(sys.modules, "data_pipelines.formats.broken", types.SimpleNamespace(read=read))
    monkeypatch.setattr(check, "MOST_SECONDS", 0.2)
    (tmp_path / "x").write_bytes(b"1")
    formats.find(tmp_path)  # imports are no reader's time
    assert check.check("broken", tmp_path, "x") == "refused"


def test_failures_are_kept(tmp_path):
    seed = Seed("x", {"x": b"1"}, 1)
    campaign.place(seed, seed.files, tmp_path)
    try:
        raise check.Failed("reason")
    except check.Failed as failed:
        campaign.keep("wav", 3, tmp_path, tmp_path.parent / "out", failed)
    kept = tmp_path.parent / "out" / "wav-3"
    assert (kept / "x").read_bytes() == b"1" and "reason" in (kept / "why.txt").read_text()


def test_the_command(tmp_path):
    command = [sys.executable, "-m", "fuzz", "--only=wav:5", f"--output={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("value", "refused")
