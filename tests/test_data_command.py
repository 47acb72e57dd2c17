"""`csfm data`: what a store holds, a config's plan, and a suggestion that keeps its word."""

import re

import pytest
from small_stores import mixed_store

from csfm_jax import cli, config
from data_pipelines import text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")

    def tokenizer(texts, subjects):
        return text.train_tokenizer(texts, subjects, minimum_subjects=2).to_str()

    mixed_store(folder / "a", 60, "alpha", ("train", "train", "validation"), report_every=3, tokenizer=tokenizer)
    (folder / "run.py").write_text(
        "from csfm_jax.config import default\ndef get_config():\n    c = default()\n    c.data.row_windows = 24\n"
        "    c.data.row_visible = 0\n    return c\n"
    )
    return folder


def run(capsys, *words):
    code = cli.main(["data", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_what_a_store_holds(folder, capsys):
    code, out, _ = run(capsys, folder / "a")
    assert code == 0
    for line in ("alpha", "recordings   60 of 60 subjects", "train 40 (40 subjects), validation 20", "reports      20"):
        assert line in out
    assert "II 40" in out and "PPG 40" in out and re.search(r"hours +ecg 0\.\d\d", out) and "quarantined  0" in out
    assert "fill" not in out


def test_a_configs_plan(folder, capsys):
    code, out, _ = run(capsys, folder / "a", f"--config={folder / 'run.py'}")
    assert code == 0
    assert re.search(r"windows of train subjects.*windows +\d+", out, re.S)
    total, cls, written, ecg, ppg = map(
        int, re.search(r"tokens +(\d+): CLS (\d+) .*text (\d+) .*ecg (\d+) .*ppg (\d+)", out).groups()
    )
    assert total == cls + written + ecg + ppg and written > 0
    assert re.search(r"rows of 2560 tokens, \d+ visible, 24 windows", out)
    assert "padding each window to the longest would fill" in out


@pytest.mark.parametrize("overrides", [[], ["--config.tokens.modalities=('ppg',)", "--config.tokens.text_length=0"]])
def test_the_suggested_row_gives_the_fill_it_promises(folder, capsys, overrides):
    arguments = [folder / "a", f"--config={folder / 'run.py'}", *overrides]
    code, out, _ = run(capsys, *arguments, "--suggest")
    assert code == 0
    promised = re.findall(r"fill +tokens ([\d.]+)%, visible ([\d.]+)%", out)[-1]
    flags = re.findall(r"--config\.data\.row_\w+=\d+", out)
    assert len(flags) == 3 and float(promised[0]) >= 97
    code, out, _ = run(capsys, *arguments, *flags)
    assert code == 0 and re.findall(r"fill +tokens ([\d.]+)%, visible ([\d.]+)%", out)[-1] == promised


@pytest.mark.parametrize(
    "words, message",
    [
        (["missing"], "missing"),
        (["a", "--config=run.py", "--config.data.row_tokens=512"], "row_tokens.*--suggest"),
        (["a", "--config=run.py", "--config.data.mask.keep_signal=1.0"], "keep_signal"),
        (["a", "--config=none.py"], "--config"),
        (["a", "--suggest", "--config.data.row_tokens=512"], "no --config that it changes"),
        (["a", "--config=run.py", "--split=test"], "no window of test"),
    ],
)
def test_bad_input_is_one_line_and_code_2(folder, capsys, words, message):
    words = [re.sub(r"^(--config=)?(a|missing|\w+\.py)$", rf"\1{folder}/\2", w) for w in words]
    code, _, err = run(capsys, *words)
    assert code == 2 and re.search(message, err) and err.count("\n") == 1


def test_it_works_without_a_config(folder, capsys):
    code, out, _ = run(capsys, folder / "a", "--suggest")
    assert code == 0 and "--config.data.row_tokens=" in out
    assert config.Config().data.row_tokens == 2560
