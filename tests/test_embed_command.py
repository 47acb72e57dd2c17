"""`csfm embed`, `csfm evaluate` and `csfm show` from the command line, on a toy checkpoint and small stores."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_checkpoints import toy_config, write_checkpoint
from small_stores import recording, write_store

from csfm_jax import cli, encoding
from csfm_jax.training import record
from data_pipelines import preprocess

TEST_SUBJECT = f"{2:016x}"
WINDOWS = sum((4 + i % 5) // 4 for i in range(45))  # of the store below: 4 to 8 s, cut into windows of 4 s


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, a store with labels in three splits, and a folder of WFDB records."""
    import wfdb

    root = tmp_path_factory.mktemp("place")
    made = []
    for i in range(45):
        labels = {"kind/A": float(i % 2), "kind/B": float(i % 5 == 0), "kind/never": 0.0, "age": 40.0 + i}
        split = ("train", "validation", "test")[i % 3]
        made.append(recording(i, [("I", "II"), ("PPG",)][i % 2], 4.0 + i % 5, split, None, labels))
    write_store(root / "store", made, "toy")
    subjects = sorted(f"{i:016x}" for i in range(0, 45, 3))
    write_checkpoint(root / "run", toy_config(), subjects=subjects)
    (root / "records" / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, folder, seconds in (("one", "", 9), ("two", "sub", 5), ("short", "", 1)):
        signal = np.cumsum(rng.normal(0, 0.02, (seconds * 250, 2)), axis=0)
        wfdb.wrsamp(
            name, 250, ["mV", "mV"], ["I", "V2"], signal, fmt=["16", "16"], write_dir=str(root / "records" / folder)
        )
    shutil.copy(root / "records" / "one.hea", root / "records" / "torn.hea")
    (root / "records" / "torn.hea").write_text((root / "records" / "one.hea").read_text().replace("one", "torn"))
    return root


def _run(*words):
    return cli.main([str(w) for w in words])


def test_embed_writes_a_row_for_every_window_and_lists_what_it_could_not_use(place, tmp_path, capsys):
    output = tmp_path / "x.parquet"
    words = ["--checkpoint", place / "run", "--input", place / "records", "--output", output]
    assert _run("embed", *words, "--keep-names") == 0
    table = pq.read_table(output)
    assert table.column_names == ["recording", "start", "embedding"]
    assert sorted(zip(table["recording"].to_pylist(), table["start"].to_pylist())) == [
        ("one.hea", 0.0), ("one.hea", 4.0), ("sub/two.hea", 0.0),
    ]  # fmt: skip
    refused = [json.loads(line) for line in (tmp_path / "x.parquet.quarantine.jsonl").read_text().splitlines()]
    assert sorted(r["recording"] for r in refused) == ["short.hea", "torn.hea"]
    assert "minimum_seconds" in next(r["reason"] for r in refused if r["recording"] == "short.hea")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.parquet", "x.parquet.quarantine.jsonl"]
    assert json.loads(table.schema.metadata[b"csfm"])["step"] == 3
    import data_pipelines

    alone = encoding.load(place / "run").embed(data_pipelines.read(place / "records" / "one.hea")).pooled
    packed = {(r, s): e for r, s, e in zip(*(table[c].to_pylist() for c in table.column_names))}
    assert packed["one.hea", 0.0] == pytest.approx(alone[0], abs=1e-5)
    assert packed["one.hea", 4.0] == pytest.approx(alone[1], abs=1e-5)


def test_embed_numbers_recordings_unless_told_to_name_them(place, tmp_path):
    output = tmp_path / "x.parquet"
    assert _run("embed", "--checkpoint", place / "run", "--input", place / "records", "--output", output) == 0
    assert sorted(set(pq.read_table(output)["recording"].to_pylist())) == ["0000000", "0000002"]
    refused = [json.loads(line) for line in (tmp_path / "x.parquet.quarantine.jsonl").read_text().splitlines()]
    assert sorted(r["recording"] for r in refused) == ["0000001", "0000003"]
    assert not any(name in str(refused) for name in ("short", "torn", str(place)))


def test_embed_of_a_store_names_recordings_by_their_hash(place, tmp_path):
    output = tmp_path / "x.parquet"
    assert _run("embed", "--checkpoint", place / "run", "--input", place / "store", "--output", output) == 0
    table = pq.read_table(output)
    assert set(table["recording"].to_pylist()) == {f"{i + 10**6:016x}" for i in range(45)}
    assert table.num_rows == WINDOWS
    assert all(len(e) == 24 for e in table["embedding"].to_pylist())
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]


def test_evaluate_prints_a_table_and_writes_the_figures(place, tmp_path, capsys, monkeypatch):
    from csfm_jax.evaluation import probes

    monkeypatch.setattr(probes, "STRENGTHS", (1e-3, 1e-1))
    monkeypatch.setattr(encoding, "random_encoder", lambda config, seed, spec: _untrained(config, spec))
    output, words = tmp_path / "deep" / "x.json", ["--labels", "kind/*,age", "--bootstrap", 50]
    assert _run("evaluate", "--checkpoint", place / "run", "--store", place / "store", "--output", output, *words) == 0
    printed = capsys.readouterr().out
    assert "kind/*" in printed and "left out" in printed and "mean |error|" in printed
    results = json.loads(output.read_text())
    kinds, age = results["groups"]
    assert kinds["labels"] == ["kind/A", "kind/B"] and kinds["checkpoint"]["point"] > 0.6  # lead sets differ by kind/A
    assert kinds["recordings"] == {"train": 15, "validation": 15, "test": 15} and age["metric"] == "r2"
    assert results["subjects_checked"] and results["checkpoint"]["step"] == 3 and set(results["stores"]) == {"toy"}
    assert results["windows"] == WINDOWS


def _untrained(config, spec):
    """Stands in for the random network, whose initialisers take long to compile: other weights, not a random draw."""
    from flax import nnx
    from small_checkpoints import toy_params

    from csfm_jax.models.encoder import Encoder

    params = toy_params(config, 9)["encoder"]
    encoder = encoding.with_params(lambda: Encoder(config.encoder, config.tokens, rngs=nnx.Rngs(0)), params, "toy")
    return encoding.LoadedEncoder(config, encoder, spec)


def test_evaluate_refuses_subjects_that_were_trained_on_and_a_changed_list_of_them(place, tmp_path, capsys):
    workdir = write_checkpoint(tmp_path / "run", toy_config(), subjects=[TEST_SUBJECT])
    words = ["evaluate", "--checkpoint", workdir, "--store", place / "store", "--labels", "kind/*"]
    assert _run(*words) == 2
    error = capsys.readouterr().err
    assert "1 of the 15 test subjects" in error and TEST_SUBJECT not in error
    listed = workdir / "subjects-trained.txt.gz"
    listed.write_bytes((place / "run" / "subjects-trained.txt.gz").read_bytes())
    assert _run(*words) == 2 and "subjects-trained.txt.gz" in capsys.readouterr().err


@pytest.mark.parametrize("people", [("0123456789abcdef", "toy"), ("", "others"), None])
def test_evaluate_refuses_subjects_that_were_hashed_in_another_way(place, tmp_path, capsys, monkeypatch, people):
    workdir = write_checkpoint(tmp_path / "run", toy_config(), people=people)
    words = ["evaluate", "--checkpoint", workdir, "--store", place / "store", "--labels", "kind/*", "--bootstrap", 2]
    assert _run(*words) == 2
    error = capsys.readouterr().err
    assert "toy" in error and "csfm data overlap" in error and "--unchecked-subjects" in error
    monkeypatch.setattr(encoding, "random_encoder", lambda config, seed, spec: _untrained(config, spec))
    if people is None:
        assert _run(*words, "--unchecked-subjects", "--output", tmp_path / "x.json") == 0
        assert json.loads((tmp_path / "x.json").read_text())["subjects_checked"] is False


def test_published_datasets_are_comparable_by_their_one_key(place):
    from data_pipelines.store import Store
    from data_pipelines.subjects import PUBLIC_KEY, fingerprint

    store, public = Store.open(place / "store"), fingerprint(PUBLIC_KEY)
    assert record.TrainedOn(set(), True, frozenset({("", "toy")})).incomparable([store]) == []
    assert record.TrainedOn(set(), True, frozenset({(public, "ptbxl")})).incomparable([store]) == ["toy"]
    store.manifest["key"] = public
    assert record.TrainedOn(set(), True, frozenset({(public, "ptbxl")})).incomparable([store]) == []


def test_show_draws_with_and_without_a_checkpoint(place, tmp_path):
    from PIL import Image

    one = place / "records" / "one.hea"
    plain, masked = tmp_path / "plain.png", tmp_path / "masked.png"
    assert _run("show", "--input", one, "--output", plain, "--seconds", 4) == 0
    words = ["--checkpoint", place / "run", "--strategy", "time", "--start", 1]
    assert _run("show", "--input", one, "--output", masked, *words) == 0
    assert Image.open(plain).size[0] == Image.open(masked).size[0]  # 4 s both: asked for, and the model's window


def test_what_is_drawn_is_the_window_and_the_prediction_in_millivolt(place):
    import data_pipelines
    from csfm_jax.commands import show

    one = data_pipelines.read(place / "records" / "one.hea")
    figure = show.reconstructed(one, place / "run", "random", 0.0, None, 0)
    lines = {a.get_gid(): a for a in figure.axes[0].get_children() if a.get_gid()}
    hidden = sum(len(lines[f"hidden/{lead}"].get_paths()) for lead in ("I", "V2"))
    drawn = [np.isfinite(lines[f"reconstruction/{lead}"].get_ydata()).sum() for lead in ("I", "V2")]
    assert len(lines["reconstruction/I"].get_ydata()) == 1000
    assert sum(drawn) == 12 * 125 and hidden > 0  # 75 % of the 16 tokens, half a second each
    shown = lines["trace/I"].get_ydata(), lines["faint/I"].get_ydata()
    base = np.nanmedian(lines["pulse/I"].get_ydata()[[0, 1]])
    drawn = (np.where(np.isfinite(shown[0]), *shown) - base) / 10
    given = [("I", 250.0, "mV", 0.0, one.channels[0].signal)]
    made = preprocess.prepare(given, spec=preprocess.get_spec("csfm-jax"))
    assert drawn == pytest.approx(made.samples[0][:1000] * 0.001, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["embed", "--input", "RECORDS", "--output", "x.csv"], ".parquet"),
        (["embed", "--input", "NOWHERE", "--output", "x.parquet"], "no such folder"),
        (["embed", "--input", "RECORDS/short.hea", "--output", "x.parquet"], "minimum_seconds"),
        (["evaluate", "--store", "STORE", "--labels", "rhythm/*"], "kind/"),
        (["evaluate", "--store", "STORE", "--bootstrap", "0"], "--bootstrap"),
        (["show", "--input", "RECORDS/one.hea", "--output", "x.pdf"], ".png"),
        (["show", "--input", "RECORDS/one.hea", "--output", "x.png", "--start", "9"], "--start"),
        (["show", "--input", "RECORDS/one.hea", "--output", "x.png", "--seconds", "5"], "--seconds"),
        (["show", "--input", "RECORDS/one.hea", "--output", "x.png", "--seconds", "0"], "--seconds"),
        (["show", "--input", "RECORDS/one.hea", "--output", "x.png", "--seconds", "nan"], "--seconds"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(place, tmp_path, capsys, words, message):
    where = {"RECORDS": place / "records", "STORE": place / "store", "NOWHERE": place / "nowhere", "x": tmp_path / "x"}
    for name, path in where.items():
        words = [w.replace(name, str(path), 1) if w.startswith(name) else w for w in words]
    assert _run(words[0], "--checkpoint", place / "run", *words[1:]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error
    assert list(tmp_path.iterdir()) == [] or [p.suffix for p in tmp_path.iterdir()] == [".jsonl"]
