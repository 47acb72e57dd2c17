"""The EDF reader agrees with `edfio` and `pyedflib` bit for bit, and refuses headers that lie."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import data_pipelines
from data_pipelines.errors import BadInput
from data_pipelines.formats import edf, reader_of
from data_pipelines.formats.edf_header import parse_edf_header
from data_pipelines.recording import Event

edfio = pytest.importorskip("edfio", reason="the extra [formats] is not installed")


def signal(rate, label, seconds=4, unit="uV", seed=0):
    data = np.random.default_rng(seed).normal(0, 50, rate * seconds)
    return edfio.EdfSignal(data, rate, label=label, physical_dimension=unit, physical_range=(-400, 400))


def write(path, *signals, annotations=(), patient=None, records=1.0):
    made = edfio.Edf(
        list(signals), annotations=[edfio.EdfAnnotation(*a) for a in annotations] or None, patient=patient,
        data_record_duration=records,
    )  # fmt: skip
    made.write(path)
    return path


@pytest.mark.parametrize(
    "name", ["eegmmidb/S001R02.edf", "eeg_edf_samples/eeglab_test.edf", "eeg_edf_samples/mne_test.edf"]
)
def test_samples_equal_the_libraries(shared_data, name):
    path = shared_data / name
    ours, theirs = data_pipelines.read(path), edfio.read_edf(path)
    assert [c.name for c in ours.channels] == [s.label for s in theirs.signals]
    for mine, other in zip(ours.channels, theirs.signals):
        assert (mine.rate, mine.unit) == (other.sampling_frequency, other.physical_dimension)
        np.testing.assert_array_equal(mine.signal, other.data.astype(np.float32))


def test_digital_values_equal_pyedflib(shared_data):
    pyedflib = pytest.importorskip("pyedflib", reason="pyedflib is not installed")
    path = shared_data / "eegmmidb" / "S001R02.edf"
    header = edf.read_edf_header(path)
    table = edf._table(header)
    at = 0
    with pyedflib.EdfReader(str(path)) as theirs:
        for i, s in enumerate(s for s in header.signals if not s.is_annotations):
            np.testing.assert_array_equal(
                edf._digital(header, table, at, s.samples).reshape(-1), theirs.readSignal(i, digital=True)
            )
            at += s.samples


def test_every_rate_label_and_unit_is_kept(tmp_path):
    path = write(
        tmp_path / "x.edf", signal(256, "C4-M1"), signal(10, "Resp nasal", unit=""), signal(1, "SaO2", unit="%")
    )
    recording = data_pipelines.read(path)
    assert [(c.name, c.rate, c.unit, len(c.signal)) for c in recording.channels] == [
        ("C4-M1", 256, "uV", 1024), ("Resp nasal", 10, "", 40), ("SaO2", 1, "%", 4),
    ]  # fmt: skip


def test_patient_and_known_annotations_only(tmp_path):
    import datetime

    patient = edfio.Patient(code="P-17", sex="F", birthdate=datetime.date(1951, 8, 2), name="Zanzibarov")
    notes = [(0.5, 30, "Sleep stage 2"), (1, None, "Zanzibarov coughs"), (2, 3.5, "Obstructive apnea")]
    path = write(tmp_path / "x.edf", signal(100, "EEG Fpz-Cz"), annotations=notes, patient=patient)
    recording = data_pipelines.read(path)
    assert edf.person(path) == recording.subject == "P-17" and recording.labels["sex"] == 1
    assert recording.events == (Event(0.5, 30, "Sleep stage 2"), Event(2, 3.5, "Obstructive apnea"))
    assert "Zanzibarov" not in repr(recording)


def test_bdf_has_24_bits(tmp_path):
    if not hasattr(edfio, "BdfSignal"):
        pytest.skip("this edfio cannot write BDF")
    data = np.random.default_rng(0).normal(0, 50, 512)
    made = edfio.Bdf([edfio.BdfSignal(data, 256, label="Fz", physical_dimension="uV", physical_range=(-400, 400))])
    made.write(tmp_path / "x.bdf")
    (channel,) = data_pipelines.read(tmp_path / "x.bdf").channels
    np.testing.assert_allclose(channel.signal, data, atol=1e-4)


def discontinuous(tmp_path, onsets):
    """A one-signal file whose data records begin at `onsets` seconds."""
    path = write(tmp_path / "d.edf", signal(50, "ECG", seconds=len(onsets)), annotations=[(0, None, "Arousal")])
    content = bytearray(path.read_bytes())
    content[192:197] = b"EDF+D"
    header = parse_edf_header(bytes(content), len(content), path)
    width = 2 * header.record_samples
    annotation = next(i for i, s in enumerate(header.signals) if s.is_annotations)
    offset = 2 * sum(s.samples for s in header.signals[:annotation])
    room = 2 * header.signals[annotation].samples
    for i, onset in enumerate(onsets):
        at = header.start + i * width + offset
        text = b"%+g\x14\x14\0" % onset
        assert len(text) <= room
        content[at : at + room] = text.ljust(room, b"\0")
    path.write_bytes(content)
    return path


def test_gaps_of_a_discontinuous_file_are_invalid(tmp_path):
    (channel,) = data_pipelines.read(discontinuous(tmp_path, [10, 11, 14, 15])).channels
    assert len(channel.signal) == 300 and np.isnan(channel.signal[100:200]).all()
    assert np.isfinite(channel.signal[:100]).all() and np.isfinite(channel.signal[200:]).all()
    for wrong in ([0, 1, 1.5, 3], [0, 1, 2, 40000]):
        with pytest.raises(BadInput):
            data_pipelines.read(discontinuous(tmp_path, wrong))


@pytest.mark.parametrize(
    ("at", "field", "found"),
    [
        (236, b"-1      ", "record count of -1"), (236, b"0       ", "number of data records"),
        (236, b"5       ", "as the header declares"), (184, b"999     ", "header length"),
        (252, b"0   ", "zero channels"), (252, b"9999", "header length"), (252, b"abcd", "zero channels"),
        (244, b"0       ", "0 s with signals"), (244, b"nan     ", "number of data records"),
        (256 + 104, b"5       5       ", "physical range"), (256 + 120, b"5       -5      ", "digital range"),
        (256 + 120, b"-99999  5       ", "digital range"), (256 + 216, b"0       ", "no samples"),
        (256 + 216, b"99999999", "as the header declares"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(tmp_path, at, field, found):
    path = write(tmp_path / "x.edf", signal(100, "II"))
    content = bytearray(path.read_bytes())
    content[at : at + len(field)] = field
    path.write_bytes(content)
    assert reader_of(path) is edf
    with pytest.raises(BadInput, match=found) as caught:
        data_pipelines.read(path)
    assert "x.edf" in str(caught.value) and "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path):
    path = write(tmp_path / "x.edf", signal(100, "II"))
    content = path.read_bytes()
    for cut in (len(content) - 1, 600, 300, 256, 100):
        path.write_bytes(content[:cut])
        with pytest.raises(BadInput):
            data_pipelines.read(path)


@given(st.binary(max_size=1024), st.integers(0, 10**9))
def test_any_bytes_give_a_header_or_bad_input(content, size):
    for magic in (b"", b"0       "):
        try:
            parse_edf_header(magic + content, size, Path("x.edf"))
        except BadInput:
            pass


def test_annotations_alone_are_read_as_events(tmp_path):
    made = edfio.Edf(
        [], annotations=[edfio.EdfAnnotation(0, 30, "Sleep stage W"), edfio.EdfAnnotation(30, 60, "Sleep stage R")]
    )
    made.write(tmp_path / "h.edf")
    assert [e.code for e in edf.read_events(tmp_path / "h.edf")] == ["Sleep stage W", "Sleep stage R"]
    with pytest.raises(BadInput, match="annotations only"):
        data_pipelines.read(tmp_path / "h.edf")
