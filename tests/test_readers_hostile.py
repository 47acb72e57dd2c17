"""Files that lie: bombs, links out of the file, declared sizes, objects, damage."""

import io
import json
import os
import zipfile
import zlib

import numpy as np
import pytest
import scipy.io

import data_pipelines
from data_pipelines import formats
from data_pipelines.datasets import open_sources
from data_pipelines.errors import BadInput
from data_pipelines.formats import hdf5

h5py = pytest.importorskip("h5py", reason="the extra [formats] is not installed")
pydicom = pytest.importorskip("pydicom", reason="the extra [formats] is not installed")


def describe(path, **fields):
    text = {"rate": 100, "channels": ["II"], "unit": "mV"} | fields
    path.with_name(path.name + ".json").write_text(json.dumps(text))
    return path


def refused(path, match):
    with pytest.raises(BadInput, match=match) as caught:
        data_pipelines.read(path)
    assert "\n" not in str(caught.value)


def test_hdf5_links_that_leave_the_file(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.ones(100)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["external"] = h5py.ExternalLink("secret.h5", "x")
        file["soft"] = h5py.SoftLink("/inside")
        file["inside"] = np.ones(100)
        layout = h5py.VirtualLayout((100,), "f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", (100,))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("raw", (100,), "f8", external=[(str(tmp_path / "secret.h5"), 0, 800)])
        file["text"] = [b"abc"]
        file["group/x"] = np.ones(3)
    for name in ("external", "soft"):
        refused(describe(tmp_path / "x.h5", dataset=name), "a link in place of a dataset")
    for name in ("virtual", "raw", "group"):
        refused(describe(tmp_path / "x.h5", dataset=name), "something else than numbers")
    for name in ("none", "inside/deeper", "../x"):
        refused(describe(tmp_path / "x.h5", dataset=name), "no dataset")
    assert len(data_pipelines.read(describe(tmp_path / "x.h5", dataset="inside")).channels) == 1


def test_hdf5_layouts_are_looked_at_without_following_a_link(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # whoever opens it waits
    with h5py.File(tmp_path / "device.h5", "w") as file:
        file["device"] = h5py.ExternalLink("pipe", "x")
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_group("device").attrs["sampling rate"] = 100
        file["device/raw"] = h5py.ExternalLink("pipe", "x")
    with h5py.File(tmp_path / "channel.h5", "w") as file:
        file.create_group("device").attrs["sampling rate"] = 100
        file["device/raw/channel_1"] = h5py.ExternalLink("pipe", "x")
    assert formats.find(tmp_path) == ([("channel.h5", "")], {".h5": 2})
    refused(tmp_path / "channel.h5", "a link in place of a dataset")


def test_half_a_file_is_listed_and_its_reason_told(tmp_path):
    with h5py.File(tmp_path / "sph.h5", "w") as file:
        file["ecg"] = np.random.default_rng(0).normal(size=(12, 5000)).astype(np.float16)
    arrays = {"ECG": np.arange(1e4), "PCG": np.arange(1e4), "fs": 8000}
    scipy.io.savemat(tmp_path / "e.mat", arrays, do_compression=True)
    for path in (tmp_path / "sph.h5", tmp_path / "e.mat"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert formats.find(tmp_path) == ([("e.mat", ""), ("sph.h5", "")], {})
    refused(tmp_path / "sph.h5", "damaged HDF5")
    refused(tmp_path / "e.mat", "damaged MATLAB|not as its length")


def test_names_of_recordings_are_numbers_or_texts_of_one_length(tmp_path):
    fields = {"dataset": "x", "items": "who", "channels": ["I", "II"]}
    for names in (np.array([b"a", b"b"]), [7, 8], ["a", "b"]):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["x"], file["who"] = np.ones((2, 100, 2)), names
        path = describe(tmp_path / "x.h5", **fields)
        if isinstance(names[0], str):
            refused(f"{path}#b", "texts of variable length; .* write them with a fixed one")
        else:
            assert len(data_pipelines.read(f"{path}#{hdf5.items(path)[1]}").channels) == 2


def test_recordings_of_one_name_in_a_file_cost_only_themselves(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["tracings"], file["exam_id"] = np.ones((4, 100, 12), np.float32), [7, 8, 7, 9]
    (source,) = open_sources(tmp_path)
    assert [entry.study for entry in source.entries()] == ["x.hdf5#7", "x.hdf5#8", "x.hdf5#9"]
    refused(tmp_path / "x.hdf5#7", "two recordings of that name")
    assert len(data_pipelines.read(tmp_path / "x.hdf5#9").channels) == 12


def test_hdf5_that_declares_what_it_does_not_hold(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("never written", (1 << 40,), "f8", chunks=(1 << 10,))
    refused(describe(tmp_path / "x.h5", dataset="never written"), "inflate")
    content = (tmp_path / "x.h5").read_bytes()
    (tmp_path / "x.h5").write_bytes(content[: len(content) // 2])
    refused(tmp_path / "x.h5", "damaged HDF5")


def test_numpy_that_is_pickled_lies_or_inflates(tmp_path):
    path = describe(tmp_path / "x.npy")
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    refused(path, "damaged file, or one of objects")
    whole = io.BytesIO()
    np.save(whole, np.ones(100))
    path.write_bytes(whole.getvalue().replace(b"(100,)", b"(10000000000,)")[: len(whole.getvalue())])
    refused(path, "damaged file")
    path.write_bytes(whole.getvalue()[:-5])
    refused(path, "damaged file")
    bomb = describe(tmp_path / "x.npz", dataset="a")
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        zeros = io.BytesIO()
        np.save(zeros, np.zeros(1 << 20))
        archive.writestr("a.npy", zeros.getvalue())
    refused(bomb, "inflates")


def test_matlab_that_inflates_or_holds_no_numbers(tmp_path):
    path = describe(tmp_path / "x.mat", dataset="a")
    scipy.io.savemat(path, {"a": np.zeros((1 << 20, 1))}, do_compression=True)
    refused(path, "inflates|out of all proportion")
    scipy.io.savemat(path, {"a": "text", "b": np.ones(3)})
    refused(path, "class char")
    scipy.io.savemat(path, {"b": np.ones(3)})
    refused(path, "no such variable")
    scipy.io.savemat(path, {"a": np.ones((100, 1))}, do_compression=True)
    content = bytearray(path.read_bytes())
    content[140:160] = bytes(20)
    path.write_bytes(content)
    refused(path, "damaged")
    head = content[:128]
    path.write_bytes(head + (15).to_bytes(4, "little") + (2**31).to_bytes(4, "little"))
    refused(path, "longer than the file")
    stream = zlib.compress(bytes(1 << 24))
    path.write_bytes(head + (15).to_bytes(4, "little") + len(stream).to_bytes(4, "little") + stream)
    refused(path, "inflates without end")


def opensignals(path):
    with h5py.File(path, "w") as file:
        device = file.create_group("00:07:80")
        device.attrs["sampling rate"] = 1000
        raw = device.create_dataset("raw/channel_1", data=np.arange(200, dtype=np.uint16)[:, None])
        raw.attrs["sensor"] = "ECG"
    return path


def test_hdf5_attribute_of_a_type_that_there_is_not(tmp_path):
    """The library would end the process."""
    content = bytearray((path := opensignals(tmp_path / "x.h5")).read_bytes())
    kind = content.index(b"sensor\0\0") + 9  # after the class of the attribute's type: a sequence that is a text
    assert content[kind] == 1
    content[kind] = 255
    path.write_bytes(content)
    refused(path, "an attribute 'sensor' of another type")


def test_hdf5_heap_that_never_ends(tmp_path):
    """The library would go round for ever, in C, where no timer reaches it."""
    path = opensignals(tmp_path / "x.h5")
    assert data_pipelines.read(path).channels[0].name == "ECG other"
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    free = heap + 16 + 24  # after the one object, whose text takes 8 bytes
    assert content[free : free + 2] == b"\0\0"
    content[free + 8 : free + 16] = bytes(8)
    path.write_bytes(content)
    refused(path, "heap of texts without an end")


def test_matlab_elements_that_would_end_the_process_or_take_the_memory(tmp_path):
    path = describe(tmp_path / "x.mat", dataset="val", channels=["II"])
    scipy.io.savemat(path, {"val": np.arange(100, dtype=np.int16)[:, None]})
    good = path.read_bytes()
    name = good.index(b"val") - 4
    for at, value in ((name + 8, 0), (name + 8, 200), (name, 5), (name + 12, 1 << 26), (132, 1 << 20), (144, 0x0A11)):
        content = bytearray(good)
        content[at : at + 4] = value.to_bytes(4, "little")
        path.write_bytes(content)
        refused(path, "length or type|longer than|class|no such variable|damaged")
    path.write_bytes(good)
    assert len(data_pipelines.read(path).channels[0].signal) == 100


@pytest.mark.parametrize(
    ("at", "value", "found"),
    [(22, b"\x00\x00", "encoding"), (24, bytes(4), "encoding"), (20, b"\x55\x00", "encoding 85"),
     (40, b"\xff\xff\xff\x7f", "that it declares"), (36, b"none", "no samples"), (40, bytes(4), "no samples"),
     (40, b"\x63", "multiple of the 2"), (12, b"none", "without a format"), (34, b"\x0c", "with 12 bits")],
)  # fmt: skip
def test_wav_that_lies(tmp_path, at, value, found):
    path = tmp_path / "x.wav"
    scipy.io.wavfile.write(path, 2000, np.arange(100, dtype=np.int16))
    content = bytearray(path.read_bytes())
    content[at : at + len(value)] = value
    path.write_bytes(content)
    refused(path, found)


def test_dicom_without_waveforms_with_too_few_samples_or_deflated(tmp_path):
    path = tmp_path / "x.dcm"
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("waveform_ecg.dcm"))
    dataset.WaveformSequence[0].NumberOfWaveformSamples = 10**9
    dataset.save_as(path)
    refused(path, "bytes of samples")
    del dataset.WaveformSequence[0].NumberOfWaveformSamples
    dataset.save_as(path)
    refused(path, "not as the standard has it")
    dataset.WaveformSequence[0].NumberOfWaveformSamples = 10000
    for name, value, found in (
        ("WaveformBitsAllocated", 8, "sample format"), ("WaveformSampleInterpretation", "MB", "sample format"),
        ("SamplingFrequency", 0, "rate"), ("NumberOfWaveformChannels", 11, "12 channel definitions"),
    ):  # fmt: skip
        good = dataset.WaveformSequence[0][name].value
        dataset.WaveformSequence[0][name].value = value
        dataset.save_as(path)
        refused(path, found)
        dataset.WaveformSequence[0][name].value = good
    dataset.WaveformSequence = []
    dataset.save_as(path)
    refused(path, "no waveforms")
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    refused(path, "deflated")
    path.write_bytes(path.read_bytes()[:200])
    refused(path, "damaged DICOM|no waveforms|deflated")


def test_parquet_that_inflates_or_holds_words(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = describe(tmp_path / "x.parquet")
    pq.write_table(pa.table({"II": ["a", "b"]}), path)
    refused(path, "damaged file, or no numbers")
    pq.write_table(pa.table({"II": np.zeros(1 << 22)}), path)
    refused(path, "out of all proportion")
    path.write_bytes(path.read_bytes()[:-3])
    refused(path, "damaged file")


def test_links_that_leave_the_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.wav").write_bytes(b"")
    scipy.io.wavfile.write(tmp_path / "secret.wav", 2000, np.arange(100, dtype=np.int16))
    (tmp_path / "in" / "x.wav").symlink_to(tmp_path / "secret.wav")
    with pytest.raises(BadInput, match="leads out of the folder"):
        data_pipelines.formats.read(tmp_path / "in" / "x.wav", root=tmp_path / "in")
