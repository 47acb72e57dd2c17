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


NAMES = ("eegmmidb/S001R02.edf", "eeg_edf_samples/eeglab_test.edf", "eeg_edf_samples/mne_test.edf")


def digital(path):
    """Name -> digital samples of each signal that is none of annotations."""
    header, at, out = edf.read_edf_header(path), 0, {}
    table = edf._table(header)
    for s in header.signals:
        if not s.is_annotations:
            out[s.label] = edf._digital(header, table, at, s.samples)
        at += s.samples
    return out


@pytest.mark.parametrize("name", NAMES)
def test_samples_equal_the_libraries(shared_data, name):
    path = shared_data / name
    ours, theirs = data_pipelines.read(path), edfio.read_edf(path)
    assert [c.name for c in ours.channels] == [s.label for s in theirs.signals]
    for mine, stored, other in zip(ours.channels, digital(path).values(), theirs.signals, strict=True):
        assert (mine.rate, mine.unit) == (other.sampling_frequency, other.physical_dimension)
        np.testing.assert_array_equal(stored, other.digital)
        np.testing.assert_array_equal(mine.signal, other.data.astype(np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_samples_equal_pyedflib(shared_data, tmp_path, name):
    pyedflib = pytest.importorskip("pyedflib", reason="pyedflib is not installed")
    path = shared_data / name
    with pyedflib.EdfReader(str(path)) as theirs:
        for i, (stored, channel) in enumerate(zip(digital(path).values(), data_pipelines.read(path).channels)):
            np.testing.assert_array_equal(stored, theirs.readSignal(i, digital=True))
            largest = np.abs(channel.signal).max()
            np.testing.assert_allclose(channel.signal, theirs.readSignal(i), rtol=1e-6, atol=1e-6 * largest)


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


@pytest.mark.parametrize("bits", [16, 24])
def test_files_that_pyedflib_wrote(tmp_path, bits):
    pyedflib = pytest.importorskip("pyedflib", reason="pyedflib is not installed")
    kind, most = (pyedflib.FILETYPE_EDFPLUS, 2**15) if bits == 16 else (pyedflib.FILETYPE_BDFPLUS, 2**23)
    path, rates = tmp_path / "x.edf", (256, 100, 1)
    rng = np.random.default_rng(bits)
    samples = [rng.integers(-most, most, 4 * rate, dtype=np.int32) for rate in rates]
    with pyedflib.EdfWriter(str(path), len(rates), kind) as writer:
        writer.setPatientCode("P-3")
        writer.setSex(1)
        limits = {"physical_min": 1000.0, "physical_max": -250.5, "digital_min": -most, "digital_max": most - 1}
        about = {"dimension": "uV", "transducer": "", "prefilter": ""} | limits
        writer.setSignalHeaders([{"label": f"s{rate}", "sample_frequency": rate} | about for rate in rates])
        writer.writeSamples(samples, digital=True)
        writer.writeAnnotation(2.25, 30, "Sleep stage N2")
    recording = data_pipelines.read(path)
    assert recording.subject == "P-3" and recording.events == (Event(2.25, 30, "Sleep stage N2"),)
    with pyedflib.EdfReader(str(path)) as theirs:
        for i, (stored, channel) in enumerate(zip(digital(path).values(), recording.channels, strict=True)):
            np.testing.assert_array_equal(stored, samples[i])
            np.testing.assert_allclose(channel.signal, theirs.readSignal(i), rtol=1e-6, atol=1e-3)


def test_events_count_from_the_first_sample_also_where_it_is_not_on_a_full_second(tmp_path):
    import datetime

    notes = [edfio.EdfAnnotation(1.5, 30, "Sleep stage R@@EEG C4"), edfio.EdfAnnotation(2, None, "Central Apnoea")]
    made = edfio.Edf([signal(100, "EEG C4")], annotations=notes, starttime=datetime.time(1, 2, 3, 250000))
    made.write(tmp_path / "x.edf")
    events = data_pipelines.read(tmp_path / "x.edf").events
    assert events == (Event(1.5, 30, "Sleep stage R"), Event(2, 0, "Central apnea"))


def test_plain_edf_tells_persons_by_the_whole_field(tmp_path):
    path = write(tmp_path / "x.edf", signal(100, "II"))
    content = bytearray(path.read_bytes())
    for field, expected in ((b"Anna K. 1951", "Anna K. 1951"), (b"X X X X", ""), (b"", "")):
        content[8:88] = field.ljust(80)
        content[192:236] = b" " * 44
        path.write_bytes(content)
        assert edf.person(path) == expected
    content[192:197] = b"EDF+C"
    content[8:88] = b"A-12 F 02-AUG-1951 Anna_K".ljust(80)
    content[88:168] = b"Startdate 01-AUG-2001 X X X".ljust(80)
    path.write_bytes(content)
    assert edf.person(path) == "A-12" and data_pipelines.read(path).labels == {"sex": 1, "age": 49}
    content[192:197] = b"     "  # of plain EDF, where the same words are anything
    path.write_bytes(content)
    assert edf.person(path) == "A-12 F 02-AUG-1951 Anna_K" and data_pipelines.read(path).labels == {}


@pytest.mark.parametrize(
    ("field", "person"),
    [
        ("X F 02-AUG-1951 Anna_K", "X F 02-AUG-1951 Anna_K"), ("X X X X", ""), ("X F 02-AUG-1951 X", ""),
        ("X M X X", ""), ("X Anna_K", "X Anna_K"), ("A-12 X X Anna_K", "A-12"), ("X X X X ward-7", "X X X X ward-7"),
        ("", ""),
    ],
)  # fmt: skip
def test_a_person_without_a_code_is_told_by_the_name(tmp_path, field, person):
    path = write(tmp_path / "x.edf", signal(100, "II"))
    content = bytearray(path.read_bytes())
    content[8:88], content[192:197] = field.encode().ljust(80), b"EDF+C"
    path.write_bytes(content)
    assert edf.person(path) == person


def test_units_in_latin_1_and_in_utf_8(tmp_path):
    path = write(tmp_path / "x.edf", signal(100, "II"))
    content = bytearray(path.read_bytes())
    for field in ("µV".encode("latin-1"), "µV".encode()):
        content[256 + 96 : 256 + 104] = field.ljust(8)
        path.write_bytes(content)
        assert data_pipelines.read(path).channels[0].unit == "µV"


def test_annotations_without_end_cost_no_time_but_their_length(tmp_path):
    """A search for annotation lists by one pattern would look at each byte a hundred thousand times."""
    path = write(tmp_path / "x.edf", signal(100, "II", seconds=1))
    head = bytearray(path.read_bytes()[:512])
    head[256 + 0 : 256 + 16] = b"EDF Annotations "
    head[256 + 216 : 256 + 224] = b"200000  "
    head[236:244] = b"1       "
    path.write_bytes(bytes(head) + b"+1\x14x" * 100_000)
    assert edf.read_events(path) == ()


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
    for wrong in ([0, 1, 1.5, 3], [0, 1, 2, 40000], [3, 2, 1, 0]):
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
        (256 + 216, b"1e99    ", "as the header declares"), (244, b"1e-9    ", "sampling rate"),
        (244, b"1e9     ", "sampling rate"), (244, "１       ".encode()[:8], "number of data records"),
        (256 + 104, b"-1e99   1e99    ", "physical range"), (256 + 104, b"nan     1       ", "physical range"),
        (256, b"I\x1b[2J", "control characters"), (256 + 96, b"m\nV", "control characters"),
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


def test_a_file_longer_than_it_declares_is_refused(tmp_path):
    path = write(tmp_path / "x.edf", signal(100, "II"))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(BadInput, match="as the header declares"):
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
