"""Reports: a vocabulary that singles nobody out, the choice of tokenizer, token ids of bounded length."""

import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import text
from data_pipelines.config import TokenConfig
from data_pipelines.errors import BadInput

COMMON = "sinus rhythm normal ecg atrial fibrillation".split()
SECRET = "Wojciechowska"


def reports_of(subjects, rare=()):
    """Every subject's report has the common words; `rare` is (word, how many subjects have it)."""
    texts = []
    for i in range(subjects):
        words = list(COMMON) + [word for word, n in rare if i < n]
        texts.append("Sinus rhythm. " + " ".join(np.random.default_rng(i).permutation(words)))
    return texts, [f"s{i}" for i in range(subjects)]


def vocabulary(texts, subjects, **more):
    return text.train_tokenizer(texts, subjects, **more).get_vocab()


def test_words_of_a_few_people_leave_no_trace():
    texts, subjects = reports_of(60, [(SECRET, 19), ("pacemaker", 20), ("30.02.1961", 5)])
    texts *= 3  # however often one person's report is given, it is one person
    entries = vocabulary(texts, subjects * 3)
    whole = [e for e in entries if not e.startswith(("##", "["))]
    assert "pacemaker" in whole and set(COMMON) <= set(whole)
    allowed = {*COMMON, "pacemaker", ".", ","}
    for entry in set(entries) - set(text.SPECIAL_TOKENS):
        piece = entry.removeprefix("##")
        assert any(piece in word for word in allowed), "an entry that is no piece of a common word"
    for letter in "wj0369":  # letters and digits of rare words only
        assert letter not in entries and "##" + letter not in entries
    assert not any(SECRET.lower()[i : i + 4] in e for e in entries for i in range(len(SECRET) - 3))
    ids = text.train_tokenizer(texts, subjects * 3).encode(SECRET).tokens
    assert ids == ["[UNK]"]


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 8), st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_the_threshold_counts_subjects(minimum, counts):
    rare = [(chr(ord("a") + i) * 5, n) for i, n in enumerate(counts)]
    entries = vocabulary(*reports_of(12, rare), minimum_subjects=minimum)
    for word, n in rare:
        assert (word in entries) == (n >= minimum)


def test_special_tokens_size_and_lower_case():
    texts, subjects = reports_of(40)
    trained = text.train_tokenizer(texts, subjects, vocabulary_size=60)
    assert [trained.token_to_id(t) for t in text.SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert trained.get_vocab_size() <= 60
    numbers = sorted(trained.get_vocab().values())
    assert numbers == list(range(len(numbers)))
    assert trained.encode("SINUS").ids == trained.encode("sinus").ids
    assert trained.decode(trained.encode("atrial fibrillation").ids) == "atrial fibrillation"


def test_the_same_reports_give_the_same_bytes_in_every_process(tmp_path):
    code = (
        "import sys; sys.path.insert(0, 'tests'); import test_text as t;"
        "print(t.text.train_tokenizer(*t.reports_of(40)).to_str())"
    )
    run = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert run[0].stdout == run[1].stdout
    assert json.loads(run[0].stdout) == json.loads(text.train_tokenizer(*reports_of(40)).to_str())


@pytest.mark.parametrize(
    "report, cleaned",
    [
        ("Sinus rhythm.\nNormal ECG.", "Sinus rhythm, Normal ECG"),
        ("Sinus rhythm. Compared to the previous tracing, no change.", "Sinus rhythm"),
        ("TRACING #2\nAF with  rate 90", "AF with rate 90"),
        ("QT 0.44 s. COMPARED WITH ECG OF MAY", "QT 0.44 s"),
        ("...", ""),
        ("", ""),
    ],
)
def test_cleaning(report, cleaned):
    assert text.clean_report(report) == cleaned


def store_with(folder, name, reports, tokenizer=None):
    path = folder / name
    path.mkdir()
    if tokenizer:
        (path / "tokenizer.json").write_text(tokenizer)
    index = SimpleNamespace(has_report=np.array([r is not None for r in reports]), seconds=np.ones(len(reports)))
    return FakeStore(name, path, index, reports)


class FakeStore:
    def __init__(self, name, path, index, reports):
        self.name, self.path, self.index, self._reports = name, path, index, reports

    def reports(self):
        return self._reports


@pytest.fixture
def trained():
    return text.train_tokenizer(*reports_of(40)).to_str()


def test_the_choice_of_tokenizer(tmp_path, trained):
    tokens = TokenConfig()
    other = text.train_tokenizer(*reports_of(40, [("paced", 30)])).to_str()
    a = store_with(tmp_path, "a", ["sinus", None], trained)
    same = store_with(tmp_path, "b", ["ecg"], trained)
    different = store_with(tmp_path, "c", ["paced"], other)
    silent = store_with(tmp_path, "d", [None], None)
    assert text.choose_tokenizer([a, same, silent], tokens) == trained
    assert text.choose_tokenizer([silent], tokens) is None
    assert text.choose_tokenizer([a], TokenConfig(text_length=0)) is None
    with pytest.raises(BadInput, match="data.tokenizer.*2 tokenizers.*tokenizer.json"):
        text.choose_tokenizer([a, different], tokens)
    named = tmp_path / "c" / "tokenizer.json"
    assert text.choose_tokenizer([a, different], tokens, str(named)) == other
    with pytest.raises(BadInput, match="no tokenizer"):
        text.choose_tokenizer([store_with(tmp_path, "e", ["ecg"])], tokens)
    with pytest.raises(BadInput, match="text_vocabulary = 10"):
        text.choose_tokenizer([a], TokenConfig(text_vocabulary=10))
    with pytest.raises(BadInput, match="no such file"):
        text.choose_tokenizer([a], tokens, str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(BadInput, match="cannot read"):
        text.choose_tokenizer([a], tokens, str(tmp_path / "bad.json"))


def test_ids_are_truncated_counted_and_lost_on_the_way_to_a_worker(tmp_path, trained):
    store = store_with(tmp_path, "a", ["sinus rhythm " * 50, None, "normal ecg.", "..."], trained)
    reports = text.Reports([store], TokenConfig(text_length=8), trained)
    ids = [reports.ids(0, i) for i in range(4)]
    assert [len(i) for i in ids] == [8, 0, 2, 0] == list(reports.counts()[0])
    again = pickle.loads(pickle.dumps(reports))
    assert again._ids == {} and again._texts == {}  # what a worker is sent holds no report
    np.testing.assert_array_equal(again.ids(0, 0), ids[0])
    assert (text.Reports([store], TokenConfig(), None).counts()[0] == 0).all()
    assert text.Reports([store], TokenConfig(text_length=9), trained).digest != reports.digest


def test_no_report_in_an_error(tmp_path):
    store = store_with(tmp_path, "a", [SECRET])
    with pytest.raises(BadInput) as error:
        text.choose_tokenizer([store], TokenConfig())
    assert SECRET not in str(error.value)
