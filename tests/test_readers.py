"""HDF5, MATLAB, WAV, DICOM, NumPy, tables: equal to the usual libraries, and the sidecar that describes files."""

import json
import struct

import numpy as np
import pytest
import scipy.io

import data_pipelines
from data_pipelines import formats
from data_pipelines.errors import BadInput

h5py = pytest.importorskip("h5py", reason="the extra [formats] is not installed")
pydicom = pytest.importorskip("pydicom", reason="the extra [formats] is not installed")

X = np.random.default_rng(0).normal(size=(500, 2))


def describe(path, **fields):
    text = {"rate": 100, "channels": ["II", "PPG"], "unit": "mV"} | fields
    path.with_name(path.name + ".json").write_text(json.dumps({k: v for k, v in text.items() if v is not None}))
    return path


def signals(path):
    return np.stack([channel.signal for channel in data_pipelines.read(path).channels])


def test_sph(shared_data):
    for path in sorted((shared_data / "sph_h5").glob("*.h5")):
        with h5py.File(path) as file:
            expected = file["ecg"][:].astype(np.float32)
        recording = data_pipelines.read(path)
        np.testing.assert_array_equal(np.stack([c.signal for c in recording.channels]), expected)
        assert {(c.rate, c.unit) for c in recording.channels} == {(500, "mV")}


def test_opensignals(shared_data):
    for path in sorted((shared_data / "plux_samples").glob("*.h5")):
        with h5py.File(path) as file:
            raw = next(iter(file.values()))["raw"]
            expected = [raw[name][:, 0].astype(np.float32) for name in sorted(raw) if name.startswith("channel")]
        for channel, samples in zip(data_pipelines.read(path).channels, expected, strict=True):
            np.testing.assert_array_equal(channel.signal, samples)
            assert channel.rate == 1000


def test_ephnogram(shared_data):
    for path in sorted((shared_data / "ephnogram").glob("*.mat")):
        expected = scipy.io.loadmat(path)
        recording = data_pipelines.read(path)
        assert [(c.name, c.rate, c.unit) for c in recording.channels] == [("ECG", 8000, "V"), ("PCG", 8000, "V")]
        for channel in recording.channels:
            np.testing.assert_array_equal(channel.signal, expected[channel.name][0].astype(np.float32))


def test_wav(shared_data):
    files = sorted((shared_data / "cinc2016_pcg").glob("*.wav"))
    assert len(files) == 39
    for path in files:
        rate, digital = scipy.io.wavfile.read(path)
        (channel,) = data_pipelines.read(path).channels
        assert channel.rate == rate and channel.name == "PCG"
        np.testing.assert_array_equal(channel.signal, (digital / 32768).astype(np.float32))


@pytest.mark.parametrize(
    ("kind", "scale"), [(np.uint8, 128), (np.int16, 2**15), (np.int32, 2**31), (np.float32, 1), (np.float64, 1)]
)
def test_wav_of_every_width(tmp_path, kind, scale):
    data = X * 0.1 if scale == 1 else X * 0.1 * scale + (128 if kind is np.uint8 else 0)
    scipy.io.wavfile.write(tmp_path / "x.wav", 4000, data.astype(kind))
    first, second = data_pipelines.read(tmp_path / "x.wav").channels
    assert (first.name, second.name, first.rate) == ("PCG 1", "PCG 2", 4000)
    np.testing.assert_allclose(first.signal, X[:, 0] * 0.1, atol=1 / 128 if kind is np.uint8 else 1e-4)


def test_dicom():
    path = pydicom.data.get_testdata_file("waveform_ecg.dcm")
    recording, theirs = data_pipelines.read(path), pydicom.dcmread(path)
    assert [c.name for c in recording.channels[:12]] == "I II III aVR aVL aVF V1 V2 V3 V4 V5 V6".split()
    for number, first in ((0, 0), (1, 12)):
        expected = theirs.waveform_array(number)
        for i in range(12):
            channel = recording.channels[first + i]
            assert channel.rate == 1000 and channel.unit == "uV"
            np.testing.assert_allclose(channel.signal, expected[:, i], rtol=1e-6, atol=1e-6)


def test_wav_of_24_bits_and_of_a_format_chunk_with_extensions(tmp_path):
    digital = np.random.default_rng(0).integers(-(2**23), 2**23, (300, 2), dtype=np.int32)
    body = np.ascontiguousarray(digital.astype("<i4")[..., None].view("u1")[..., :3]).tobytes()
    subformat = struct.pack("<H14s", 1, b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71")
    plain = struct.pack("<HHIIHH", 1, 2, 4000, 24000, 6, 24)
    extensible = struct.pack("<HHIIHHHHI", 0xFFFE, 2, 4000, 24000, 6, 24, 22, 24, 3) + subformat
    for form in (plain, extensible):
        chunks = b"WAVE" + b"fmt " + struct.pack("<I", len(form)) + form + b"junk" + struct.pack("<I3sx", 3, b"abc")
        chunks += b"data" + struct.pack("<I", len(body)) + body
        (tmp_path / "x.wav").write_bytes(b"RIFF" + struct.pack("<I", len(chunks)) + chunks)
        rate, theirs = scipy.io.wavfile.read(tmp_path / "x.wav")  # left-justified in 32 bits
        np.testing.assert_array_equal(theirs >> 8, digital)
        np.testing.assert_array_equal(signals(tmp_path / "x.wav"), (digital.T / 2**23).astype(np.float32))
        assert {c.rate for c in data_pipelines.read(tmp_path / "x.wav").channels} == {rate}


def test_a_sidecar_names_the_channels_of_a_wav(tmp_path):
    path = describe(tmp_path / "x.wav", rate=4000, channels=["ECG", {"name": "PCG", "unit": "Pa"}], mains=60)
    scipy.io.wavfile.write(path, 4000, X.astype(np.float32))
    recording = data_pipelines.read(path)
    assert [(c.name, c.unit) for c in recording.channels] == [("ECG", "mV"), ("PCG", "Pa")] and recording.mains == 60
    np.testing.assert_array_equal(signals(path), X.T.astype(np.float32))
    with pytest.raises(BadInput, match="as its sidecar says"):
        data_pipelines.read(describe(path, rate=2000))
    with pytest.raises(BadInput, match="as its sidecar says"):
        data_pipelines.read(describe(path, rate=4000, channels=["ECG"]))


def test_dicom_scales_pads_and_places_as_the_standard_says(tmp_path):
    """PS3.3 C.10.9: the baseline is in the sensitivity's units; offsets are milliseconds, skews seconds and samples."""
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("waveform_ecg.dcm"))
    dataset.PatientAge, dataset.PatientSex = "018M", "F"
    rhythm, beat = dataset.WaveformSequence
    channel = rhythm.ChannelDefinitionSequence[1]
    channel.ChannelSensitivity, channel.ChannelSensitivityCorrectionFactor, channel.ChannelBaseline = 2.5, 1.5, 40
    channel.ChannelSampleSkew, channel.ChannelTimeSkew = None, None
    del channel.ChannelSampleSkew, channel.ChannelTimeSkew
    rhythm.ChannelDefinitionSequence[2].ChannelSampleSkew = 5
    rhythm.ChannelDefinitionSequence[3].ChannelSourceSequence[0].CodeMeaning = "Ableitung aVR"
    digital = np.frombuffer(rhythm.WaveformData, "<i2").reshape(-1, 12)
    padding = digital[0, 1]
    rhythm.WaveformPaddingValue = padding.tobytes()
    rhythm["WaveformPaddingValue"].VR = "OW"
    rhythm.MultiplexGroupTimeOffset, beat.MultiplexGroupTimeOffset = 250, 1250
    dataset.WaveformSequence = [beat, rhythm]
    dataset.save_as(tmp_path / "x.dcm")
    recording = data_pipelines.read(tmp_path / "x.dcm")
    assert [(c.name, c.derived) for c in recording.channels[:4]] == [
        ("I", False), ("II", False), ("III", False), ("aVR", False),
    ]  # fmt: skip
    assert all(c.derived and c.start == 1 for c in recording.channels[12:])
    assert recording.labels == {"sex": 1, "age": 1.5} and recording.channels[2].start == pytest.approx(0.005)
    expected = pydicom.dcmread(tmp_path / "x.dcm").waveform_array(1)[:, 1]
    expected[digital[:, 1] == padding] = np.nan
    assert np.isnan(expected).any()
    np.testing.assert_allclose(recording.channels[1].signal, expected, rtol=1e-6)
    assert formats.dicom.person(tmp_path / "x.dcm") == recording.subject == dataset.PatientID


def test_simple_text(shared_data):
    for path in sorted((shared_data / "biosppy_examples").glob("*.txt")):
        (channel,) = data_pipelines.read(path).channels
        np.testing.assert_array_equal(channel.signal, np.loadtxt(path).astype(np.float32))
    assert data_pipelines.read(shared_data / "biosppy_examples" / "eeg_ec.txt").channels[0].rate == 125


@pytest.mark.parametrize("delimiter", [",", ";", "\t", " "])
def test_text_tables(tmp_path, delimiter):
    path = tmp_path / "x.csv"
    np.savetxt(path, X, delimiter=delimiter)
    np.testing.assert_array_equal(signals(describe(path)), X.T.astype(np.float32))
    names = [{"name": "PPG", "unit": "a.u.", "from": "b"}, "a"]
    np.savetxt(path, X, delimiter=delimiter, header=delimiter.join("ab"), comments="")
    recording = data_pipelines.read(describe(path, channels=names, subject="p7", mains=60))
    assert [(c.name, c.unit) for c in recording.channels] == [("PPG", "a.u."), ("a", "mV")]
    assert (recording.subject, recording.mains) == ("p7", 60)
    np.testing.assert_array_equal(recording.channels[0].signal, X[:, 1].astype(np.float32))


def test_a_time_column_gives_the_rate(tmp_path):
    path = describe(tmp_path / "x.csv", rate=None, time="t", channels=["II"])
    path.write_text("t,II\n" + "\n".join(f"{5 + i * 0.004:.3f},{i}" for i in range(100)))
    assert data_pipelines.read(path).channels[0].rate == pytest.approx(250)
    path.write_text("t,II\n0,1\n1,2\n3,3\n")
    with pytest.raises(BadInput, match="not regular"):
        data_pipelines.read(path)


def test_missing_fields_are_invalid_and_words_are_refused(tmp_path):
    path = describe(tmp_path / "x.csv")
    path.write_text("1,2\n,3\nnan,4\n5,6\n")
    assert np.isnan(signals(path)[0]).tolist() == [False, True, True, False]
    path.write_text("1,2\n3\n5,6\n")
    with pytest.raises(BadInput, match="another number of fields"):
        data_pipelines.read(path)
    path.write_text("1,2\nZanzibarov,3\n5,6\n")
    with pytest.raises(BadInput, match="no number in row 2") as caught:
        data_pipelines.read(path)
    assert "Zanzibarov" not in str(caught.value)


def test_columns_of_one_name_and_digits_in_groups_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = describe(tmp_path / "x.csv", channels=["II"])
    path.write_text("II,II,note\n1,2,3\n")
    with pytest.raises(BadInput, match="two columns of one name"):
        data_pipelines.read(path)
    path.write_text("note,II,note\n1,2,3\n")  # nobody asks for these
    assert signals(path) == [[2]]
    for rows in ("1_0\n2\n", "2\n1_0\n"):
        path.write_text("II\n" + rows)
        with pytest.raises(BadInput, match="no number in row"):
            data_pipelines.read(path)
    column = pa.array([1.0])
    pq.write_table(pa.Table.from_arrays([column, column], names=["II", "II"]), tmp_path / "x.parquet")
    with pytest.raises(BadInput, match="two columns of one name"):
        data_pipelines.read(describe(tmp_path / "x.parquet", channels=["II"]))


def test_numpy_parquet_hdf5_and_matlab_by_sidecar(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", X.T)
    np.savez_compressed(tmp_path / "x.npz", II=X[:, 0], PPG=X[:, 1])
    pq.write_table(pa.table({"PPG": X[:, 1], "II": X[:, 0], "name": ["x"] * 500}), tmp_path / "x.parquet")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("deep/array", data=X, compression="gzip")
    scipy.io.savemat(tmp_path / "x.mat", {"II": X[:, 0], "PPG": X[:, 1]}, do_compression=True)
    describe(tmp_path / "y.npy", axis="channels")
    describe(tmp_path / "x.h5", dataset="deep/array")
    for name in ("x.npy", "x.npz", "x.parquet", "x.mat"):
        describe(tmp_path / name)
    for name in ("x.npy", "y.npy", "x.npz", "x.parquet", "x.h5", "x.mat"):
        np.testing.assert_array_equal(signals(tmp_path / name), X.T.astype(np.float32), err_msg=name)


def test_stacked_recordings_are_items(tmp_path):
    """CODE-15: exams along the first axis, zeros at both ends of the shorter ones."""
    tracings = np.zeros((3, 64, 12), np.float32)
    tracings[1, 10:50] = np.random.default_rng(0).normal(size=(40, 12))
    tracings[2] = 1
    with h5py.File(tmp_path / "exams_part0.hdf5", "w") as file:
        file["tracings"], file["exam_id"] = tracings, np.array([11, 22, 33])
    found, unknown = formats.find(tmp_path)
    assert [name for name, _ in found] == [f"exams_part0.hdf5#{i}" for i in (11, 22, 33)] and not unknown
    recording = data_pipelines.read(tmp_path / "exams_part0.hdf5#22")
    assert [c.name for c in recording.channels][:2] == ["I", "II"] and recording.channels[0].rate == 400
    np.testing.assert_array_equal(recording.channels[5].signal, tracings[1, 10:50, 5])
    with pytest.raises(BadInput, match="no recording of that name"):
        data_pipelines.read(tmp_path / "exams_part0.hdf5#44")


def test_one_description_serves_a_folder_and_text_without_one_is_no_recording(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    np.save(tmp_path / "a" / "b" / "x.npy", X)
    (tmp_path / "notes.txt").write_text("1 2\n3 4\n")
    assert formats.find(tmp_path) == ([], {".npy": 1, ".txt": 1})
    (tmp_path / "a" / "recordings.json").write_text('{"rate": 50, "channels": ["II", "PPG"]}')
    found, unknown = formats.find(tmp_path)
    assert [name for name, _ in found] == ["a/b/x.npy"] and unknown == {".txt": 1}


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"rates": 5}, "unknown field"), ({"rate": 0}, "no rate"), ({"rate": "fast"}, "another kind"),
        ({"channels": []}, "none"), ({"channels": [1]}, "another form"), ({"channels": [{"nam": "x"}]}, "another form"),
        ({"axis": "rows"}, "another word"), ({"channels": ["II"]}, "array of shape"), ({"rate": True}, "another kind"),
        ({"rate": 10**400}, "no rate"),
        *(({"mains": mains}, "no frequency of mains") for mains in (np.inf, np.nan, -50, 0, 1e300, 10**400)),
    ],
)  # fmt: skip
def test_a_wrong_sidecar_is_refused(tmp_path, fields, found):
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(BadInput, match=found):
        data_pipelines.read(describe(tmp_path / "x.npy", **fields))


def test_a_description_from_outside_the_source_is_refused(tmp_path):
    source = tmp_path / "all" / "source"
    source.mkdir(parents=True)
    np.save(source / "x.npy", X)
    above, own = tmp_path / "all" / "recordings.json", source / "x.npy.json"
    above.write_text('{"rate": 50, "channels": ["II", "PPG"], "subject": "somebody"}')
    assert formats.read(source / "x.npy").subject == "somebody"  # alone, it belongs to no source
    for _ in range(2):
        assert formats.find(source)[0] == [("x.npy", "")]
        with pytest.raises(BadInput, match="leads out of the folder"):
            formats.read(source / "x.npy", root=source)
        if not own.exists():
            own.symlink_to(above)


def test_a_name_with_a_hash_is_a_file_or_a_folder_before_it_is_an_item(tmp_path):
    folder = tmp_path / "ward #7"
    folder.mkdir()
    for name in ("x.h5", "y#1.h5"):
        with h5py.File(folder / name, "w") as file:
            file["ecg"], file["id"] = np.stack([X[:, :1]] * 2), np.array(["a", "b#2"], "S3")
        describe(folder / name, dataset="ecg", items="id", channels=["II"])
    found = [name for name, _ in formats.find(tmp_path)[0]]
    assert found == ["ward #7/x.h5#a", "ward #7/x.h5#b#2", "ward #7/y#1.h5#a", "ward #7/y#1.h5#b#2"]
    for name in found:
        assert formats.read(tmp_path / name, root=tmp_path).seconds == 5


def test_every_recording_at_hand_is_read_or_refused_with_its_reason(shared_data):
    """All files of every folder: two records lack a signal file or a segment; all others are read."""
    read, refused = 0, {}
    for folder in sorted(path for path in shared_data.iterdir() if path.is_dir()):
        for name, _ in formats.find(folder)[0]:
            try:
                read += bool(formats.read(folder / name, root=folder).channels)
            except BadInput as error:
                refused[name] = error.found
    assert read == 1028
    assert refused == {
        "12726.hea": "no such file", "multi-segment/p000878/p000878-2137-10-26-16-57.hea": "no such file",
    }  # fmt: skip
