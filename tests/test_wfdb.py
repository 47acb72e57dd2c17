"""The WFDB reader agrees with the `wfdb` package bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import wfdb

import data_pipelines
from data_pipelines.errors import BadInput
from data_pipelines.formats.wfdb import read
from data_pipelines.formats.wfdb_header import comment_labels, parse_header

BITS = {
    "16": 16, "24": 24, "32": 31, "80": 8, "160": 16, "212": 12, "310": 10, "311": 10, "508": 8, "516": 16, "524": 24,
}  # fmt: skip


def assert_equal_to_wfdb(header: Path) -> int:
    """Compares every channel with the package's float64 samples, rounded to float32; returns the number of channels."""
    ours, theirs = read(header), wfdb.rdrecord(str(header.with_suffix("")), smooth_frames=False)
    signals = theirs.e_p_signal if theirs.e_p_signal is not None else list(theirs.p_signal.T)
    assert [c.name for c in ours.channels] == [name.strip() for name in theirs.sig_name]
    assert [c.unit for c in ours.channels] == theirs.units
    for channel, signal, spf in zip(ours.channels, signals, theirs.samps_per_frame or [1] * len(signals)):
        assert channel.rate == theirs.fs * (spf or 1)
        assert channel.signal.dtype == np.float32 and channel.start == 0
        np.testing.assert_array_equal(channel.signal, np.asarray(signal).astype(np.float32))
    return len(signals)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("100_3chan", 3),  # 212, odd number of samples
        ("binformats", 10),  # every uncompressed format in one record
        ("flacformats", 3),
        ("03700181", 3),  # several rates in one file, one signal skewed
        ("s0010_re", 15),  # two signal files
        ("a103l", 3),  # .mat, NaN
        ("a103l-no-len", 3),  # length from the file's size
        ("3000003_0003", 2),
        ("mixedsignals", 6),
        ("multi-segment/041s/041s01", 7),
    ],
)
def test_samples_equal_the_library_on_every_storage_format(shared_data, name, channels):
    assert assert_equal_to_wfdb(shared_data / "wfdb_samples" / f"{name}.hea") == channels


@pytest.mark.parametrize("dataset", ["ptbxl", "ptbxl_extra", "cinc2021", "code15", "bidmc", "cinc2015", "mitdb"])
def test_samples_equal_the_library_on_a_sample_of_each_dataset(shared_data, dataset):
    headers = sorted((shared_data / dataset).rglob("*.hea"))
    for header in headers[:: max(1, len(headers) // 5)]:
        assert assert_equal_to_wfdb(header) > 0


def write(folder: Path, form: str, digital: np.ndarray, gain=317.3, baseline=11, **options) -> Path:
    n, written = digital.shape[1], "16" if form in PACKED else form
    wfdb.wrsamp(
        "rec", fs=250, units=["mV"] * n, sig_name=[f"lead {i}" for i in range(n)], d_signal=digital, fmt=[written] * n,
        adc_gain=[gain] * n, baseline=[baseline] * n, write_dir=str(folder), **options,
    )  # fmt: skip
    header = folder / "rec.hea"
    if form in PACKED:  # the library reads these, and writes none
        header.write_text(header.read_text().replace("rec.dat 16 ", f"rec.dat {form} "))
        header.with_suffix(".dat").write_bytes(PACKED[form](digital.reshape(-1).tolist()))
    return header


def by_three(place):
    """Packs triples of 10-bit numbers into 32 bits as `place` says of the three."""

    def pack(samples: list[int]) -> bytes:
        triples = [(samples + [0, 0])[i : i + 3] for i in range(0, len(samples), 3)]
        return b"".join(place(*(x % 1024 for x in triple)).to_bytes(4, "little") for triple in triples)

    return pack


# signal(5), bit by bit
PACKED = {
    "160": lambda samples: b"".join((x + 32768).to_bytes(2, "little") for x in samples),
    "310": by_three(lambda a, b, c: a << 1 | (c % 32) << 11 | b << 17 | (c // 32) << 27),
    "311": by_three(lambda a, b, c: a | b << 10 | c << 20),
}


@pytest.mark.parametrize("form", BITS)
@pytest.mark.parametrize("gain", [200.0, 317.3])
def test_written_records_equal_the_library_with_missing_samples(tmp_path, form, gain):
    bits = BITS[form]
    digital = np.random.default_rng(int(form)).integers(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1), (501, 3))
    digital[::17, 1] = -(2**31) if form == "32" else -(2 ** (bits - 1))
    header = write(tmp_path, form, digital, gain)
    assert_equal_to_wfdb(header)
    missing = np.isnan(read(header).channels[1].signal)
    assert np.array_equal(np.flatnonzero(missing), np.arange(0, 501, 17))
    assert not np.isnan(read(header).channels[0].signal).any()


@pytest.mark.parametrize("form", ["16", "24", "80", "160", "212", "310", "311"])
@pytest.mark.parametrize("length", [" 0", ""])
def test_a_header_without_a_length_leaves_it_to_the_file(tmp_path, form, length):
    """The package fails on four of these; header(5): no length, or 0, means that it is not told."""
    header = write(tmp_path, form, np.random.default_rng(0).integers(-100, 100, (24, 2)))
    signals = [channel.signal for channel in read(header).channels]
    text = header.read_text()
    assert text.startswith("rec 2 250 24\n")
    header.write_text(text.replace("rec 2 250 24", f"rec 2 250{length}", 1))
    for channel, signal in zip(read(header).channels, signals, strict=True):
        np.testing.assert_array_equal(channel.signal, signal)
    header.with_suffix(".dat").write_bytes(b"")
    with pytest.raises(BadInput, match="0 bytes; expected at least one frame"):
        read(header)


@pytest.mark.parametrize("form", ["310", "311"])
def test_a_part_of_a_sample_at_the_end_is_none(tmp_path, form):
    """Where the file's last byte is missing, what it cut is no sample."""
    header = write(tmp_path, form, np.array([[500], [-3], [17]]), gain=1.0, baseline=0)
    header.write_text(f"rec 1 250\nrec.dat {form} 1\n")
    content = header.with_suffix(".dat").read_bytes()
    for size, samples in ((4, [500, -3, 17]), (3, [500] if form == "310" else [500, -3]), (2, [500])):
        header.with_suffix(".dat").write_bytes(content[:size])
        assert read(header).channels[0].signal.tolist() == samples


@pytest.mark.parametrize("form", ["8", "508", "516", "524"])
def test_formats_of_the_library_need_a_length(tmp_path, form):
    header = write(tmp_path, "16" if form == "8" else form, np.zeros((24, 2), int))
    text = header.read_text().replace("rec.dat 16 ", f"rec.dat {form} ")
    header.write_text(text.replace("rec 2 250 24", "rec 2 250 0", 1))
    with pytest.raises(BadInput, match=f"rec.hea: found no length; .* which format {form} needs"):
        read(header)


def test_mat_offset_gain_defaults_and_skew(tmp_path):
    digital = np.arange(24, dtype="<i2").reshape(8, 3)
    (tmp_path / "m.mat").write_bytes(b"x" * 24 + digital.tobytes())
    lines = ["m 3", "m.mat 16x1+24 1000.0(0)/mV 16 0 0 84 0 I", "m.mat 16:2+24 0/NU 16 5 1", "m.mat 16+24", "# Age: 47"]
    (tmp_path / "m.hea").write_text("\n".join(lines))
    recording = data_pipelines.read(tmp_path / "m.mat")
    assert [(c.unit, c.rate, c.name) for c in recording.channels] == [
        ("mV", 250, "I"),
        ("NU", 250, ""),
        ("mV", 250, ""),
    ]
    np.testing.assert_array_equal(recording.channels[0].signal, digital[:, 0] / np.float32(1000))
    # a gain of 0 means 200, the baseline is the ADC zero, and two frames of skew are missing at the end
    np.testing.assert_array_equal(recording.channels[1].signal[:6], (digital[2:, 1] - 5).astype(np.float32) / 200)
    assert np.isnan(recording.channels[1].signal[6:]).all()
    np.testing.assert_array_equal(recording.channels[2].signal, digital[:, 2].astype(np.float32) / 200)
    assert recording.labels == {"age": 47.0} and recording.seconds == 8 / 250


def test_skew_of_a_format_read_by_the_library(tmp_path):
    digital = np.random.default_rng(0).integers(-100, 100, (50, 1))
    header = write(tmp_path, "516", digital)
    plain = read(header).channels[0].signal
    header.write_text(header.read_text().replace(" 516 ", " 516:3 "))
    skewed = read(header).channels[0].signal  # the checksum is of the samples as stored
    np.testing.assert_array_equal(skewed[:47], plain[3:])
    assert np.isnan(skewed[47:]).all()


@pytest.mark.parametrize("name", ["100", "s0010_re.v2"])
def test_read_finds_the_header_from_any_name_of_the_record(tmp_path, name):
    (tmp_path / f"{name}.dat").write_bytes(np.arange(4, dtype="<i2").tobytes())
    (tmp_path / f"{name}.hea").write_text(f"{name} 1 100 4\n{name}.dat 16 200 16 0 0 6 0 I\n")
    for path in (f"{name}.hea", f"{name}.dat", name):
        assert data_pipelines.read(str(tmp_path / path)).channels[0].rate == 100


@pytest.mark.parametrize("name", ["041s/041s", "s25047/s25047-2704-05-04-10-44"])
def test_multi_segment_records_equal_the_library(shared_data, name):
    header = shared_data / "wfdb_samples" / "multi-segment" / f"{name}.hea"
    ours = read(header)
    if "041s" in name:  # fixed layout, several rates: the library cannot join it unsmoothed
        parts = [read(header.with_name(f"041s0{i}.hea")) for i in (1, 2)]
        signals = [np.concatenate([p.channels[i].signal for p in parts]) for i in range(7)]
        assert [c.rate for c in ours.channels] == [500, 500, 500, 125, 125, 125, 125]
    else:
        theirs = wfdb.rdrecord(str(header.with_suffix("")), m2s=True)
        assert [c.name for c in ours.channels] == theirs.sig_name
        signals = list(theirs.p_signal.T.astype(np.float32))
        assert np.isnan(signals[0]).any() and not np.isnan(signals[0]).all()
    for channel, signal in zip(ours.channels, signals, strict=True):
        np.testing.assert_array_equal(channel.signal, signal)


def test_comments_give_age_sex_and_codes_in_every_style():
    def labels(*comments):
        header = parse_header("\n".join(["r 1 250 8", "r.dat 16", *comments]).encode(), Path("r.hea"))
        return comment_labels(header.comments)

    assert labels("#Age: 47", "#Sex: Male", "#Dx: 426783006,59118001") == {
        "age": 47.0, "sex": 0.0, "dx/426783006": 1.0, "dx/59118001": 1.0,
    }  # fmt: skip
    assert labels("# Age: 89", "# Sex: Female", "# Dx: Unknown") == {"age": 89.0, "sex": 1.0}
    assert labels("# age: 65 sex: M") == {"age": 65.0, "sex": 0.0}
    assert labels("# <age>: 28  <sex>: F <Height>: 170") == {"age": 28.0, "sex": 1.0}
    assert labels("#Age: NaN", "#Sex: Unknown") == {} == labels("# <age>: ?? <sex>: ?")
