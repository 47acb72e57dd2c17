"""A patient's name in every free-text field and file name appears in no output of any command."""

import gzip
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_checkpoints import toy_config, write_checkpoint

from csfm_jax import cli

NAME = "Zanzibarov"


def written(folder) -> str:
    """Everything below a folder, names of files too, with what is compressed taken out of it."""
    texts = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        texts.append(str(path.relative_to(folder)))
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            texts += [str(table.schema.metadata), *(str(table[name].to_pylist()) for name in table.column_names)]
        elif path.suffix == ".gz":
            content = gzip.decompress(content)
        texts.append(content.decode("latin-1"))
    return "\n".join(texts)


def write_wfdb(path, name, seconds=6, comments=(), lead="II", damage=False):
    digital = np.random.default_rng(len(name)).integers(-500, 500, 250 * seconds).astype("<i2")
    path.mkdir(parents=True, exist_ok=True)
    digital.tofile(path / f"{name}.dat")
    total = int(digital.sum(dtype=np.int16)) + damage
    lines = [f"{name} 2 250 {len(digital) // 2}", f"{name}.dat 16 200/mV 16 0 0 0 0 {lead}"]
    names = (NAME, lead) if damage else (lead, NAME)  # the checksum that is wrong is that of the first
    lines[1:] = [f"{name}.dat 16 200/mV 16 0 0 {sums} 0 {n}" for sums, n in zip(_sums(digital, total), names)]
    (path / f"{name}.hea").write_text("\n".join([*lines, *(f"# {comment}" for comment in comments)]) + "\n")


def _sums(digital, total):
    first = int(digital[::2].sum(dtype=np.int16))
    return first + (total - int(digital.sum(dtype=np.int16))), int(digital[1::2].sum(dtype=np.int16))


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    """A folder of recordings in which the name stands wherever text can stand."""
    folder = tmp_path_factory.mktemp("ward") / "ward"
    for i in range(12):
        comments = (f"Patient ID: {NAME}{i}", f"Age: {40 + i}", f"Diagnosis: {NAME} has a cold", f"Dx: {NAME}")
        write_wfdb(folder / f"{NAME} {i % 3}", f"{NAME}_{i}", comments=comments, lead=("II", f"EEG {NAME}")[i % 2])
    write_wfdb(folder, f"{NAME}_damaged", damage=True)
    (folder / f"{NAME}_headless.hea").write_text(f"{NAME} nonsense\n")
    for part, record, frames in ((f"{NAME}_long", "long", 9), (f"{NAME}_gone", "gone", 750)):
        write_wfdb(folder, part)
        (folder / f"{record}.hea").write_text(f"{record}/1 2 250 {frames}\n{part} {frames}\n")
    (folder / f"{NAME}_gone.dat").unlink()
    (folder / f"{NAME}.pdf").write_text(NAME)
    (folder / f"letter.{NAME}").write_text(NAME)
    return folder


@pytest.fixture
def run(capfd):
    def call(*words, code=0):
        assert cli.main([str(word) for word in words]) == code
        out, err = capfd.readouterr()
        assert NAME.lower() not in (out + err).lower()
        return out + err

    return call


def test_prepare_and_data(ward, tmp_path, run):
    told = run("prepare", f"--source={ward}", f"--output={tmp_path / 'store'}", f"--new-key={tmp_path / 'key'}")
    assert (
        "12 recordings of 12 subjects" in told
        and "quarantined: 4" in told
        and "2 files of no known format were left out: .pdf (1), other (1)" in told
    )
    run("data", tmp_path / "store", "--config=csfm_nano")
    text = written(tmp_path)
    assert NAME.lower() not in text.lower() and "age" in text


def test_reports_only_where_they_are_kept(shared_data, tmp_path, run, monkeypatch):
    """A public dataset with reports: the name comes through in reports.parquet alone, and only on request."""
    from data_pipelines.datasets import ptbxl

    entries = ptbxl.PTBXL(shared_data / "ptbxl").entries()[:40]
    monkeypatch.setattr(ptbxl.PTBXL, "entries", lambda self: entries)
    monkeypatch.setattr(ptbxl.PTBXL, "report", lambda self, entry: f"sinus rhythm of {NAME}{entry.study} today")
    for keep in ([], ["--keep-reports"]):
        output = tmp_path / f"store{len(keep)}"
        run("prepare", f"--source={shared_data / 'ptbxl'}", f"--output={output}", *keep)
        kept = output / "reports.parquet"
        assert kept.exists() == bool(keep)
        if keep:
            assert NAME in str(pq.read_table(kept)["text"].to_pylist())
            kept.unlink()
        assert NAME.lower() not in written(output).lower()


def test_embed_show_and_export(ward, tmp_path, run):
    checkpoint = write_checkpoint(tmp_path / "run", toy_config())
    run("embed", f"--checkpoint={checkpoint}", f"--input={ward}", f"--output={tmp_path / 'x.parquet'}")
    refused = [json.loads(line) for line in (tmp_path / "x.parquet.quarantine.jsonl").read_text().splitlines()]
    assert len(refused) == 4 and pq.read_table(tmp_path / "x.parquet").num_rows == 12
    one = ward / f"{NAME} 0" / f"{NAME}_0.hea"
    for more in ([], [f"--checkpoint={checkpoint}"]):
        run("show", f"--input={one}", f"--output={tmp_path / 'page.png'}", *more)
    run("export", f"--checkpoint={checkpoint}", f"--output={tmp_path / 'export'}")
    assert NAME.lower() not in written(tmp_path).lower()


def test_labels_of_a_site_are_no_free_text(ward):
    """A code is what a table or a fixed pattern allows: "Dx: <name>" gives a label's name, which is stored."""
    from data_pipelines import read

    assert not any(NAME in label for label in read(ward / f"{NAME} 0" / f"{NAME}_0.hea").labels)


def test_folders_that_are_left_out_are_counted(ward, tmp_path, run, monkeypatch):
    monkeypatch.setattr("data_pipelines.datasets.left_out", lambda where, sources: [NAME, f"{NAME} 2"])
    told = run("prepare", f"--source={ward}", f"--output={tmp_path / 'store'}", f"--new-key={tmp_path / 'key'}")
    assert "2 folders with recordings" in told
