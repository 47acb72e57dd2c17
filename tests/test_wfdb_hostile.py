"""Whatever a WFDB header or signal file holds, the reader answers with samples or with one clear line."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import wfdb
from hypothesis import example, given, settings
from hypothesis import strategies as st

import data_pipelines
from data_pipelines import formats
from data_pipelines.errors import BadInput
from data_pipelines.formats import wfdb_header
from data_pipelines.formats.wfdb_header import comment_labels, parse_header

GOOD = "rec 1 250 100\nrec.dat 16 200/mV 16 0 0 {checksum} 0 I\n"


@pytest.fixture
def record(tmp_path):
    """A folder with a sound record of 100 samples, beside a file that no header in it may reach."""
    folder = tmp_path / "data"
    folder.mkdir()
    samples = np.arange(100, dtype="<i2")
    for path in (folder / "rec.dat", tmp_path / "secret.dat"):
        path.write_bytes(samples.tobytes())
    (tmp_path / "secret.hea").write_text(GOOD.format(checksum=4950).replace("rec", "secret"))
    (folder / "rec.hea").write_text(GOOD.format(checksum=4950))
    return folder / "rec.hea"


def refusal(header: Path, text: str | None = None) -> str:
    """The message of the BadInput; also checks that little memory was taken before it."""
    if text is not None:
        header.write_text(text)
    tracemalloc.start()
    try:
        with pytest.raises(BadInput) as error:
            data_pipelines.read(header)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_sound_record_reads(record):
    assert data_pipelines.read(record).channels[0].signal[99] == np.float32(99 / 200)


@pytest.mark.parametrize(
    "name", ["../secret.dat", "/etc/passwd", "..\\secret.dat", "..", ".", "-", "sub/rec.dat", "C:rec.dat", "a\x00b"]
)
def test_signal_files_outside_the_folder_are_refused(record, name):
    assert "outside the header's folder" in refusal(record, f"rec 1 250 100\n{name} 16 200/mV 16 0 0 4950 0 I\n")


@pytest.mark.parametrize("name", ["../secret", "/secret", ".."])
def test_segments_outside_the_folder_are_refused(record, name):
    assert "outside the header's folder" in refusal(record, f"rec/1 1 250 100\n{name} 100\n")


@pytest.mark.parametrize(
    "text",
    [
        "rec 1 250 100000000000\nrec.dat 16 200/mV 16 0 0 4950 0 I\n",
        "rec 1 250 101\nrec.dat 16 200/mV\n",
        "rec 1 250 100\nrec.dat 16x999999 200/mV\n",
        "rec 1 250 100\nrec.dat 16+2 200/mV\n",
        "rec 1 250\nrec.dat 16+999999999999 200/mV\n",
        "rec 1 250 100\nrec.dat 24 200/mV\n",
        "rec 1 250 134\nrec.dat 212 200/mV\n",
        "rec 1 250 100000000\nrec.dat 516 200/mV\n",
        "rec 1 250\nrec.dat 516 200/mV\n",
        "rec 1 250 100000000\nrec.dat 310 200/mV\n",
        "rec/3 1 250 900000000200\nrec_layout 0\n~ 900000000100\nseg 100\n",
        "rec/2 1 250 100\nwide_layout 0\nseg 100\n",
        "rec/3 1 250 200\nrec_layout 0\nseg 100\nseg 100\n",
    ],
)
def test_a_header_that_lies_about_lengths_is_refused_before_allocating(record, text):
    record.with_name("seg.hea").write_text(GOOD.format(checksum=4950).replace("rec 1", "seg 1"))
    record.with_name("rec_layout.hea").write_text("rec_layout 1 250 0\n~ 0 200/mV 16 0 0 0 0 I\n")
    wide = "\n".join(f"~ 0x999999 200/mV 16 0 0 0 0 n{i}" for i in range(50))
    record.with_name("wide_layout.hea").write_text(f"wide_layout 50 250 0\n{wide}\n")
    refusal(record, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no record line"),
        ("# only a comment\n", "no record line"),
        ("rec\n", "record line"),
        ("rec 0 250 100\n", "zero channels"),
        ("rec 2 250 100\nrec.dat 16\n", "1 signal or segment lines"),
        ("rec 1 0 100\nrec.dat 16\n", "no positive number"),
        ("rec 1 nan 100\nrec.dat 16\n", "no positive number"),
        ("rec 1 250 many\nrec.dat 16\n", "no whole number"),
        ("rec 1 250 100\nrec.dat 17\n", "unknown storage format"),
        ("rec 1 250 100\nrec.dat\n", "something else"),
        ("rec 1 250 100\nrec.dat 16 1e99/mV\n", "gain beyond"),
        ("rec 1 250 100\nrec.dat 16x0\n", "zero samples per frame"),
        ("rec 1 250 100\nother.dat 16\n", "no such file"),
        ("rec 1 250 100\nsub 16\n", "no such file"),
        ("rec 2 250 100\nrec.dat 16\nrec.dat 212\n", "several in one file"),
        ("rec 1 250 100\n~ 0\n", "no signal with samples"),
        ("rec/0 1 250 100\n", "zero segments"),
        ("rec/1 1 250 100\nother 100\n", "no such file"),
        ("rec/1 1 250 100\nrec 100\n", "segments within a segment"),
        ("rec/1 1 250 100\nother 99\n", "99 frames"),
    ],
)
def test_each_fault_is_named(record, text, says):
    record.with_name("sub").mkdir()
    assert says in refusal(record, text)


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ("1 250 0\n~ 0 1/uV 16 0 0 0 0 I", "another name, unit"),
        ("1 250 0\n~ 0 1/mV 16 0 0 0 0 V1", "another name"),
        ("1 250 0\n~ 0x2 1/mV 16 0 0 0 0 I", "unit or rate"),
        ("1 125 0\n~ 0 1/mV 16 0 0 0 0 I", "another length or rate"),
    ],
)
def test_segments_that_do_not_fit_their_layout_are_refused(record, layout, says):
    record.with_name("all_layout.hea").write_text(f"all_layout {layout}\n")
    rate = layout.split()[1]
    record.with_name("all.hea").write_text(f"all/2 1 {rate} 100\nall_layout 0\nrec 100\n")
    assert says in refusal(record.with_name("all.hea"))


def test_segments_of_a_fixed_layout_have_the_same_names(record):
    write_segment(record.parent / "a.hea", "I", "V1")
    write_segment(record.parent / "b.hea", "V1", "I")
    record.with_name("all.hea").write_text("all/2 2 250 200\na 100\nb 100\n")
    message = refusal(record.with_name("all.hea"))
    assert "b.hea" in message and "another name" in message
    write_segment(record.parent / "b.hea", "I")
    assert "another name" in refusal(record.with_name("all.hea"))


def test_a_null_signal_of_a_segment_keeps_its_place(record):
    write_segment(record.parent / "a.hea", "I", "II", "V1")
    write_segment(record.parent / "b.hea", "I", None, "V1")
    record.with_name("fixed.hea").write_text("fixed/2 3 250 200\na 100\nb 100\n")
    first, second, third = (channel.signal for channel in data_pipelines.read(record.with_name("fixed.hea")).channels)
    assert (first[100], third[100]) == (1, 3) and np.isnan(second[100:]).all() and second[99] == 2


def test_channels_of_one_name_are_matched_in_order(record):
    write_segment(record.parent / "a.hea", "ABP", "ABP")
    record.with_name("layout.hea").write_text("layout 2 250 0\n" + "~ 0 1/mV 16 0 0 0 0 ABP\n" * 2)
    record.with_name("all.hea").write_text("all/2 2 250 100\nlayout 0\na 100\n")
    assert [channel.signal[0] for channel in data_pipelines.read(record.with_name("all.hea")).channels] == [1, 2]
    write_segment(record.parent / "a.hea", "ABP", "ABP", "ABP")
    assert "another name" in refusal(record.with_name("all.hea"))


def write_segment(header: Path, *names: str | None) -> None:
    """100 samples of each signal, 1 mV in the first, 2 mV in the second, ...; None is a null signal."""
    table = [[i for i, name in enumerate(names, 1) if name]] * 100
    header.with_suffix(".dat").write_bytes(np.array(table, "<i2").tobytes())
    lines = [
        f"{header.stem}.dat 16 1/mV 16 0 {i} {100 * i} 0 {name}" if name else "~ 0 1/mV"
        for i, name in enumerate(names, 1)
    ]
    header.write_text(f"{header.stem} {len(names)} 250 100\n" + "\n".join(lines))


@pytest.mark.parametrize("root", [None, "."])
def test_a_link_to_itself_in_place_of_a_signal_file(record, root):
    file = record.with_name("rec.dat")
    file.unlink()
    file.symlink_to(file.name)
    with pytest.raises(BadInput, match="rec.dat: found a link that leads nowhere"):
        formats.read(record, record.parent if root else None)


def test_a_pipe_in_place_of_a_header_is_not_waited_for(record):
    os.mkfifo(record.with_name("pipe.hea"))
    record.with_name("all.hea").write_text("all/1 1 250 100\npipe 100\n")
    assert "pipe" in refusal(record.with_name("all.hea"))


def test_a_table_with_a_description_is_no_header(tmp_path):
    rows = np.arange(40).reshape(10, 4)
    np.savetxt(tmp_path / "a.txt", rows, "%d")
    (tmp_path / "a.txt.json").write_text('{"rate": 10, "channels": ["I", "II", "III", "PPG"]}')
    assert [channel.signal[1] for channel in data_pipelines.read(tmp_path / "a.txt").channels] == [4, 5, 6, 7]


def test_a_wrong_checksum_is_refused_and_the_signal_numbered(record):
    message = refusal(record, GOOD.format(checksum=4951))
    assert "signal 1 " in message and "checksum" in message and "rec.dat" in message
    record.write_text(GOOD.format(checksum=4950 - 65536))  # both signs are in use
    data_pipelines.read(record)


@pytest.mark.parametrize("form", ["16", "24", "32", "212", "80", "516"])
def test_a_flipped_bit_is_caught_in_every_format(tmp_path, form):
    digital = np.random.default_rng(0).integers(-100, 100, (400, 2))
    wfdb.wrsamp(
        "rec", fs=250, units=["mV"] * 2, sig_name=["I", "II"], d_signal=digital, fmt=[form] * 2, adc_gain=[200.0] * 2,
        baseline=[0] * 2, write_dir=str(tmp_path),
    )  # fmt: skip
    data_pipelines.read(tmp_path / "rec.hea")
    content = bytearray((tmp_path / "rec.dat").read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "rec.dat").write_bytes(content)
    assert "rec.dat" in refusal(tmp_path / "rec.hea")


def test_messages_hold_nothing_of_the_person(record):
    comments = "# Patient ID: P-4711-x\n# Age: 91.25\n# Name: Miller\n"
    for text in (GOOD.format(checksum=1) + comments, GOOD.format(checksum=1).replace("100", "10000") + comments):
        message = refusal(record, text)
        assert not any(secret in message for secret in ("P-4711-x", "Miller", "91.25"))


@pytest.mark.parametrize("name", ["12726", "multi-segment/p000878/p000878-2137-10-26-16-57"])
def test_incomplete_copies_are_refused(shared_data, name):
    assert "no such file" in refusal(shared_data / "wfdb_samples" / f"{name}.hea")


@pytest.mark.parametrize("name", ["p000878/3269321_layout", "s25047/3234460_layout"])
def test_layout_headers_hold_no_recording(shared_data, name):
    message = refusal(shared_data / "wfdb_samples" / "multi-segment" / f"{name}.hea")
    assert "no signal with samples" in message


@pytest.mark.parametrize("name", ["nothing", "nothing.hea", "data", "notes.txt"])
def test_what_is_no_record_is_refused(record, name):
    record.with_name("notes.txt").write_text("no header beside me")
    refusal(record.with_name(name) if name != "data" else record.parent)


WORD = st.sampled_from(
    ["rec", "rec.dat", "~", "16", "212", "16x2:3+24", "1", "2", "250", "1e400", "200(5)/mV", "²", "-"]
)
LINES = st.lists(st.lists(WORD | st.text(max_size=6), max_size=10).map(" ".join), max_size=6).map("\n".join)


@settings(deadline=None)  # time depends on the machine
@given(st.binary(max_size=200) | LINES.map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b"r 1 " + b"9" * 5000)
@example(b"r/2 1 250\n~ 5\n~ 5")
@example("r 1 ²\nr.dat ١٦".encode())
def test_any_bytes_give_a_header_or_bad_input(content):
    try:
        header = parse_header(content, Path("rec.hea"))
    except BadInput:
        return
    signals = header.signals
    assert header.rate > 0 and (signals.name or header.segments)
    assert not any("/" in file for file in signals.file) and all(signals.gain) and all(signals.samples_per_frame)
    comment_labels(header.comments)


NUMBER = st.sampled_from(["0", "16", "-7", "212", "1", "07", "²", "9" * 13])
FIELDS = st.tuples(
    st.sampled_from(["rec.dat", "b.dat", "a/b", "~"]), st.sampled_from(["16", "212", "16x2:3+24", "0"]),
    st.sampled_from(["200", "200(5)/mV", "1/µV", "0", "x"]), *[NUMBER] * 5, st.sampled_from(["I", "V1", "II aVF", "µ"]),
)  # fmt: skip
GAPS = st.sampled_from([" "] * 20 + ["\t", "  ", "\r", "\x1f", "\xa0", " 1 ", ""])


@st.composite
def signal_line(draw):
    fields = draw(FIELDS)[: draw(st.sampled_from([9, 9, 9, 8, 3]))]
    return fields[0] + "".join(draw(GAPS) + field for field in fields[1:])


def outcome(parse, text):
    try:
        return parse(text, Path("rec.hea"))
    except BadInput as error:
        return str(error)


def parsed_again(text):
    """As it is parsed after the same layout was seen twice."""
    for _ in range(2):
        outcome(parse_header, text.encode())
    return outcome(parse_header, text.encode())


USUAL = ["rec.dat 16 200/mV 16 0 5 -7 0 I", "rec.dat 16 200/mV 16 0 -5 7 0 II"]


@settings(deadline=None, max_examples=500)
@given(
    st.lists(signal_line().map(str.strip) | st.sampled_from(USUAL), min_size=1, max_size=3),
    st.sampled_from(["rec {} 250 5", "rec {} 250 5 10:00:00", "rec {}  250 5", "rec/1 1 250 5", "rec {} 250 -5"]),
    st.sampled_from(["\n", "", "\n# a\n#b", "\n# a\n#b\n", "\n\n# a\n", "\r\n#x\n", "\nrest\n", "\n#x\n \n"]),
)
@example(["a 16 200 16 0 0 0 x", "b 16 200 16 0 0 0 0 II aVF"], "rec {} 250 5", "\n")
@example(["a 16 200 16 0 0 0 0", "0 b 16 200 16 0 0 0 0 II"], "rec {} 250 5", "\n")
@example(["a 16 200 16 0 0 0 0\xa0II"], "rec {} 250 5", "\n")
@example(["a 16 200 0 0\t0 0 16 II aVF"], "rec {} 250 5", "\n")
def test_a_remembered_header_means_what_it_says(lines, record, end):
    text = "\n".join([record.format(len(lines)), *lines]) + end
    assert parsed_again(text) == outcome(wfdb_header._parsed, text)


@pytest.mark.parametrize(
    "line",
    [
        "x.dat 16 200/mV 16 0 99 1234 0 I", "../x 16 200/mV 16 0 99 1234 0 I", "x.dat 16 200/mV 16 0 9-9 1234 0 I",
        "x.dat 16 200/mV 16 0 99 12-34 0 I", "x.dat 16 200/mV 16 0 99 1_234 0 I", "x.dat 16 200/mV 16 0 99 ٣ 0 I",
        "x.dat 16 100/mV 16 0 99 1234 0 I", "x.dat 16 200/mV 16 0 99 1234 0 II", "x.dat 16 200/mV 16 0 99 1 0 I II",
    ],
)  # fmt: skip
def test_a_layout_that_was_seen_before_hides_nothing(line, monkeypatch):
    monkeypatch.setattr(wfdb_header, "_templates", ())
    text = f"a 1 250 5\n{USUAL[0]}\n# Age: 5\n"
    assert parsed_again(text) == wfdb_header._parsed(text, Path("rec.hea")) and len(wfdb_header._templates) == 1
    other = f"b 1 250 70\n{line}\n# Age: 6\n# Sex: F\n"
    assert outcome(parse_header, other.encode()) == outcome(wfdb_header._parsed, other)


@settings(deadline=None)
@given(st.binary(max_size=64), LINES)
def test_any_header_beside_a_signal_file_gives_a_recording_or_bad_input(tmp_path_factory, samples, lines):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    (folder / "rec.dat").write_bytes(samples)
    (folder / "rec.hea").write_bytes(f"rec 1 250\n{lines}".encode("utf-8", "surrogatepass"))
    try:
        recording = data_pipelines.read(folder / "rec.hea")
    except BadInput:
        return
    assert all(channel.signal.dtype == np.float32 for channel in recording.channels)
