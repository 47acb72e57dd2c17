"""Small valid files of every reader, which the fuzzer damages; made here, never copied from anyone's recordings."""

import base64
import functools
import io
import json
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Seed:
    """A recording's files: name -> content; `main` is the one to read, and its header is the first `head` bytes."""

    main: str
    files: dict[str, bytes]
    head: int


@functools.cache
def seeds() -> dict[str, tuple[Seed, ...]]:
    """The valid recordings of each reader of `formats.READERS`."""
    return {
        "edf": _edf(), "wfdb": _wfdb(), "dicom": _dicom(), "wav": _wav(), "hdf5": _hdf5(), "matlab": _matlab(),
        "arrays": _arrays(), "tables": _tables(), "vendor": _vendor(),
    }  # fmt: skip


_RNG = np.random.default_rng(0)
_X = _RNG.normal(0, 0.3, (256, 2))
_SIDECAR = {"rate": 100, "channels": ["II", "PPG"], "unit": "mV"}


def _described(name: str, content: bytes, head: int, **fields) -> Seed:
    return Seed(name, {name: content, f"{name}.json": json.dumps(_SIDECAR | fields).encode()}, head)


def edf_file(width: int, reserved: bytes, onsets: list[bytes], rates: tuple[int, ...] = (64, 10)) -> bytes:
    """An EDF (2 bytes a sample) or BDF (3) file of one-second data records, annotated where `onsets` has text."""
    annotations = 30 if any(onsets) else 0
    samples = [*rates, annotations][: len(rates) + bool(annotations)]
    names = [b"EEG C4-A1", b"SaO2"][: len(rates)] + [b"EDF Annotations" if width == 2 else b"BDF Annotations"]
    most = 1 << (8 * width - 1)
    columns = [
        (names, 16), ([b""] * 3, 80), ([b"uV", b"%", b""], 8), ([b"-400", b"0", b"-1"], 8), ([b"400", b"100", b"1"], 8),
        ([b"%d" % -most] * 3, 8), ([b"%d" % (most - 1)] * 3, 8), ([b""] * 3, 80), ([b"%d" % n for n in samples], 8),
        ([b""] * 3, 32),
    ]  # fmt: skip
    count = len(samples)
    fixed = [
        (b"0" if width == 2 else b"\xffBIOSEMI", 8), (b"P-17 F 02-AUG-1951 Name", 80),
        (b"Startdate 01-AUG-2001 X X X", 80), (b"01.08.01", 8), (b"22.10.00", 8), (b"%d" % (256 * (count + 1)), 8),
        (reserved, 44), (b"%d" % len(onsets), 8), (b"1", 8), (b"%d" % count, 4),
    ]  # fmt: skip
    header = b"".join(text.ljust(size) for text, size in fixed)
    header += b"".join(text.ljust(size) for texts, size in columns for text in texts[:count])
    body = b""
    for onset in onsets:
        body += _RNG.bytes(width * sum(rates)) + (onset.ljust(width * annotations, b"\0") if annotations else b"")
    return header + body


def _edf() -> tuple[Seed, ...]:
    text = b"\x14\x14\0+1\x1530\x14Sleep stage 2\x14\0"
    continuous, gaps = ([b"+%d" % t + text for t in times] for times in ((0, 1, 2, 3), (0, 1, 4, 5)))
    files = [
        edf_file(2, b"EDF+C", continuous), edf_file(2, b"EDF+D", gaps), edf_file(2, b"", [b""] * 4),
        edf_file(3, b"24BIT", [b""] * 3), edf_file(3, b"BDF+D", gaps),
    ]  # fmt: skip
    return tuple(Seed("x.edf", {"x.edf": file}, int(file[184:192])) for file in files)


def _wfdb() -> tuple[Seed, ...]:
    out = []
    comments = "# Age: 47\n#Sex: F\n# Dx: 426783006,164889003\n# Patient ID: P-17\n"
    digital = _RNG.integers(-500, 500, (200, 2)).astype("<i2")
    sums = digital.sum(axis=0, dtype=np.int16)
    for form, content in (
        ("16", digital.tobytes()), ("61", digital.astype(">i2").tobytes()), ("32", digital.astype("<i4").tobytes()),
        ("24", _RNG.bytes(1200)), ("212", _RNG.bytes(600)), ("80", _RNG.bytes(400)), ("160", _RNG.bytes(800)),
        ("310", _RNG.bytes(536)), ("311", _RNG.bytes(536)), ("16x2:3+0", _RNG.bytes(1600)),
    ):  # fmt: skip
        known = form in ("16", "61", "32")
        lines = [
            f"r.dat {form} 200(0)/mV 16 0 0{f' {sums[i]} 0' if known else ' 0'} {'MLII V5'.split()[i]}" for i in (0, 1)
        ]
        lines = lines if known else [f"r.dat {form} 200/mV"] * 2
        header = "r 2 250 200 12:00:00 01/01/2001\n" + "\n".join(lines) + "\n" + comments
        out.append(Seed("r.hea", {"r.hea": header.encode(), "r.dat": content}, len(header)))
    return (*out, _flac(digital), *_segments(digital))


def _flac(digital: np.ndarray) -> Seed:
    import wfdb

    with tempfile.TemporaryDirectory() as folder:
        wfdb.wrsamp("f", 250, ["mV"] * 2, ["I", "II"], d_signal=digital.astype(np.int64), fmt=["516"] * 2,
                    adc_gain=[200.0] * 2, baseline=[0, 0], write_dir=folder)  # fmt: skip
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    return Seed("f.hea", files, len(files["f.hea"]))


def _segments(digital: np.ndarray) -> tuple[Seed, ...]:
    parts = {}
    for name in ("a", "b"):
        parts[f"{name}.dat"] = digital.tobytes()
        parts[f"{name}.hea"] = f"{name} 2 250 200\n{name}.dat 16 200/mV\n{name}.dat 16 200/mV\n".encode()
    parts["l.hea"] = b"l 2 250 0\n~ 0 200/mV\n~ 0 200/mV\n"
    fixed, variable = b"m/2 2 250 400\na 200\nb 200\n", b"m/4 2 250 430\nl 0\na 200\n~ 30\nb 200\n"
    return tuple(Seed("m.hea", {"m.hea": text, **parts}, len(text)) for text in (fixed, variable))


def _dicom() -> tuple[Seed, ...]:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import ExplicitVRLittleEndian, GeneralECGWaveformStorage, ImplicitVRLittleEndian, generate_uid

    out = []
    for syntax, kind, bits in ((ExplicitVRLittleEndian, "SS", 16), (ImplicitVRLittleEndian, "SB", 8)):

        def item(**fields):
            dataset = Dataset()
            for name, value in fields.items():
                setattr(dataset, name, value)
            return dataset

        channels = [
            item(
                ChannelSourceSequence=Sequence([item(CodeValue="5.6.3-9-1", CodingSchemeDesignator="SCPECG",
                                                     CodeMeaning="Lead I (Einthoven)")]),
                ChannelSensitivity="2.5", ChannelSensitivityCorrectionFactor="1", ChannelBaseline="0",
                ChannelSampleSkew="0", WaveformBitsStored=bits,
                ChannelSensitivityUnitsSequence=Sequence([item(CodeValue="uV", CodingSchemeDesignator="UCUM")]),
            )
            for _ in range(2)
        ]  # fmt: skip
        group = item(
            WaveformOriginality="ORIGINAL", NumberOfWaveformChannels=2, NumberOfWaveformSamples=100,
            SamplingFrequency="500", MultiplexGroupTimeOffset="0", ChannelDefinitionSequence=Sequence(channels),
            WaveformBitsAllocated=bits, WaveformSampleInterpretation=kind,
        )  # fmt: skip
        group.add_new("WaveformPaddingValue", "OB" if bits == 8 else "OW", b"\x80" * 2 if bits == 8 else b"\x00\x80")
        group.add_new("WaveformData", "OB" if bits == 8 else "OW", _RNG.bytes(2 * 100 * bits // 8))
        whole = item(SOPClassUID=GeneralECGWaveformStorage, SOPInstanceUID="1.2.3", PatientID="P-17", PatientSex="F",
                     PatientAge="047Y", PatientName="Name", WaveformSequence=Sequence([group]))  # fmt: skip
        whole.file_meta = FileMetaDataset()
        whole.file_meta.TransferSyntaxUID = syntax
        whole.file_meta.MediaStorageSOPClassUID = GeneralECGWaveformStorage
        whole.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["fuzz"])
        stream = io.BytesIO()
        whole.save_as(stream, enforce_file_format=True)
        out.append(Seed("x.dcm", {"x.dcm": stream.getvalue()}, len(stream.getvalue())))
    return tuple(out)


def _wav() -> tuple[Seed, ...]:
    out = []
    for encoding, channels, bits in ((1, 1, 16), (1, 2, 24), (1, 1, 8), (3, 2, 32), (3, 1, 64)):
        block = channels * bits // 8
        form, body = (
            struct.pack("<HHIIHH", encoding, channels, 2000, 2000 * block, block, bits),
            _RNG.bytes(200 * block),
        )
        chunks = b"WAVEfmt \x10\0\0\0" + form + b"LIST\4\0\0\0INFOdata" + struct.pack("<I", len(body)) + body
        out.append(Seed("x.wav", {"x.wav": b"RIFF" + struct.pack("<I", len(chunks)) + chunks}, 60))
    return tuple(out)


def _hdf5() -> tuple[Seed, ...]:
    import h5py

    def made(fill) -> bytes:
        stream = io.BytesIO()
        with h5py.File(stream, "w") as file:
            fill(file)
        return stream.getvalue()

    def opensignals(file):
        device = file.create_group("00:07:80:00:00:00")
        device.attrs["sampling rate"] = 1000
        raw = device.create_dataset("raw/channel_1", data=np.arange(200, dtype=np.uint16)[:, None])
        raw.attrs["sensor"] = "ECG"

    def code15(file):
        file["tracings"] = _RNG.normal(size=(3, 64, 12)).astype(np.float32)
        file["exam_id"] = np.array([11, 22, 33])

    sph = made(lambda file: file.create_dataset("ecg", data=_RNG.normal(size=(12, 200)).astype(np.float16)))
    deep = made(lambda file: file.create_dataset("a/b", data=_X, chunks=(64, 2), compression="gzip", shuffle=True))
    plain = [Seed("x.h5", {"x.h5": content}, 2048) for content in (sph, made(code15), made(opensignals))]
    return (*plain, _described("x.h5", deep, 4096, dataset="a/b"))


def _matlab() -> tuple[Seed, ...]:
    from scipy.io import savemat

    out = []
    for compressed in (False, True):
        stream = io.BytesIO()
        savemat(stream, {"ECG": _X[None, :, 0], "PCG": _X[None, :, 1], "fs": 8000.0}, do_compression=compressed)
        out.append(Seed("x.mat", {"x.mat": stream.getvalue()}, 256))
    stream = io.BytesIO()
    savemat(stream, {"val": (_X * 1000).astype(np.int16)})
    return (*out, _described("x.mat", stream.getvalue(), 256, dataset="val"))


def _arrays() -> tuple[Seed, ...]:
    array, archive, deflated = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, _X)
    np.savez(archive, II=_X[:, 0], PPG=_X[:, 1])
    np.savez_compressed(deflated, both=_X)
    return (
        _described("x.npy", array.getvalue(), 128), _described("x.npz", archive.getvalue(), 256),
        _described("x.npz", deflated.getvalue(), 256, dataset="both"),
    )  # fmt: skip


def _tables() -> tuple[Seed, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = "II,PPG\n" + "\n".join(f"{a:.3f},{b:.3f}" for a, b in _X)
    times = "t;II;PPG\n" + "\n".join(f"{i / 100:.2f};{a:.3f};" for i, (a, _) in enumerate(_X))
    simple = "# Simple Text Format\n# Sampling Rate (Hz):= 1000.00\n# Labels:= ECG\n" + "\n".join(map(str, range(200)))
    stream = io.BytesIO()
    pq.write_table(pa.table({"II": _X[:, 0], "PPG": _X[:, 1]}), stream)
    return (
        _described("x.csv", text.encode(), 64), _described("x.csv", times.encode(), 64, time="t", rate=0),
        Seed("x.txt", {"x.txt": simple.encode()}, 80),
        _described("x.parquet", stream.getvalue(), len(stream.getvalue())),
    )  # fmt: skip


def _vendor() -> tuple[Seed, ...]:
    digital = (_X.T[:, :64] * 1000).astype("<i2")
    files = (muse_xml(("I", "II"), digital), aecg_xml(("I", "II"), digital))
    return tuple(Seed("x.xml", {"x.xml": content}, 600) for content in files)


def muse_xml(leads, digital, scale="4.88", unit="MICROVOLTS", doctype="") -> bytes:
    """A GE MUSE export: digital int16 [leads, samples] at 500 Hz, `scale` of `unit` a count."""
    data = "".join(
        f"<LeadData><LeadByteCountTotal>{row.nbytes}</LeadByteCountTotal>"
        f"<LeadSampleCountTotal>{len(row)}</LeadSampleCountTotal>"
        f"<LeadAmplitudeUnitsPerBit>{scale}</LeadAmplitudeUnitsPerBit><LeadAmplitudeUnits>{unit}</LeadAmplitudeUnits>"
        f"<LeadID>{name}</LeadID><LeadSampleSize>2</LeadSampleSize>"
        f"<WaveFormData>{base64.b64encode(row.tobytes()).decode()}</WaveFormData></LeadData>"
        for name, row in zip(leads, digital)
    )
    person = (
        "<PatientID>P-7</PatientID><PatientAge>61</PatientAge><AgeUnits>YEARS</AgeUnits><Gender>FEMALE</Gender>"
        "<PatientLastName>Zanzibarov</PatientLastName>"
    )
    return (
        f'<?xml version="1.0" encoding="ISO-8859-1"?>\n{doctype}\n<RestingECG><MuseInfo/>'
        f"<PatientDemographics>{person}</PatientDemographics><Waveform><WaveformType>Rhythm</WaveformType>"
        f"<SampleBase>500</SampleBase><SampleExponent>0</SampleExponent>{data}</Waveform></RestingECG>"
    ).encode("latin-1")


def aecg_xml(leads, digital, scale="2.5", unit="uV") -> bytes:
    """An HL7 aECG: digital int16 [leads, samples] at 500 Hz, `scale` of `unit` a count."""
    system = "2.16.840.1.113883.6.24"

    def sequence(code, value):
        coded = f'<code code="{code}" codeSystem="{system}"/>'
        return f"<component><sequence>{coded}{value}</sequence></component>"

    time = '<value xsi:type="GLIST_PQ"><head value="0" unit="s"/><increment value="0.002" unit="s"/></value>'
    rows = "".join(
        sequence(
            f"MDC_ECG_LEAD_{name.upper()}",
            f'<value xsi:type="SLIST_PQ"><origin value="0" unit="{unit}"/><scale value="{scale}" unit="{unit}"/>'
            f"<digits>{' '.join(map(str, row))}</digits></value>",
        )
        for name, row in zip(leads, digital)
    )
    spaces = 'xmlns="urn:hl7-org:v3" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
    series = f'<series><code code="RHYTHM"/><component><sequenceSet>{sequence("TIME_RELATIVE", time)}{rows}'
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><AnnotatedECG {spaces}><component>{series}</sequenceSet></component>'
        "</series></component></AnnotatedECG>"
    ).encode()
