"""The data report: right figures, whole in itself, nothing of a person in it."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from small_stores import mixed_store
from test_prepare import Cohort

from csfm_jax import cli
from csfm_jax.reporting.facts import gather
from data_pipelines.prepare import prepare
from data_pipelines.recording import Channel, Recording
from data_pipelines.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Twelve subjects, two recordings each; recording 7 has five seconds of noise that no ECG has, one name is odd."""
    source = Cohort(name="ward")
    rng = np.random.default_rng(0)
    beats = np.zeros(5000)
    beats[100::250] = 1
    clean = np.convolve(beats, np.hanning(16) * 1.2, "same") + 0.02 * rng.normal(size=5000)

    def read(entry):
        i = int(entry.study[-3:])
        signal = rng.normal(0, 0.3, 5000) if i == 7 else clean
        channels = (
            Channel("II", 250, "mV", signal.astype(np.float32)), Channel("Temp probe", 1, "C", np.ones(20, np.float32)),
            Channel("V1", 250, "mV", np.full(5000, np.nan, np.float32)),
        )  # fmt: skip
        labels = {"rhythm/AF": float(i % 4 == 0), "age": 40.0 + i}
        report = "Sinusrhythmus, Linkstyp und sonst normales EKG" if i % 2 else "normal sinus rhythm with otherwise"
        return Recording(channels, entry.subject, entry.study, "ward", f"{report} Zanzibarov", labels)

    source.read = read
    path = tmp_path_factory.mktemp("report") / "ward"
    prepare(source, path, keep_reports=True, shards=2)
    return Store.open(path)


def test_facts(store):
    facts = gather(store)
    assert facts.hours == {"ecg": pytest.approx(24 * 20 / 3600)} and facts.rates == {"ecg": {"250": 24}}
    assert facts.labels == {"rhythm/AF": (6, 24)} and facts.continuous["age"][1] == 51.5
    assert facts.reports == 24 and facts.languages == {"English": 0.5, "German": 0.5} and len(facts.words) == 24
    assert facts.missing == {"II": 0.0} and facts.amplitude["II"][1] == pytest.approx(1.2, abs=0.25)
    assert sum(n for n, _ in facts.splits.values()) == 24
    assert len(facts.worst) == 3 and facts.worst[0].quality < 0.5 < facts.worst[1].quality
    assert {row["name"]: row["kept"] for row in facts.names} == {"II": 24, "Temp probe": 0, "V1": 0}


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]


def test_the_page_is_whole_in_itself_and_names_nobody(store, tmp_path, capsys):
    output = tmp_path / "deep" / "report.html"
    assert cli.main(["data", "report", str(store.path), f"--output={output}"]) == 0
    page = output.read_text()
    found = Links()
    found.feed(page)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in found.links)
    assert "script" not in found.tags and found.tags.count("img") >= 4
    assert not re.search(r"url\((?!#)", page)
    for secret in ("Zanzibarov", "Doe_Jane", "patient-", *(s.decode() for s in store.index.subject[:3])):
        assert secret not in page
    for shown in ("24 recordings", "Temp probe", "German 50%", "rhythm/AF", "The worst windows", "flat or invalid"):
        assert shown in page
    assert sorted(p.name for p in output.parent.iterdir()) == ["report.html"]


def test_stores_of_many_kinds_and_without_quality(tmp_path, capsys):
    mixed_store(tmp_path / "stores" / "small", gaps=1)
    output = tmp_path / "r.html"
    assert cli.main(["data", "report", str(tmp_path / "stores"), f"--output={output}"]) == 0
    page = output.read_text()
    assert "Not measured" in page and "None kept" in page and "ppg" in page


def test_bad_input(store, tmp_path, capsys):
    for words in (["report"], ["report", str(store.path), "x"], ["report", str(store.path), "--output=x.pdf"],
                  ["report", str(tmp_path / "none")], [str(store.path), "second"]):  # fmt: skip
        assert cli.main(["data", *words]) == 2 and capsys.readouterr().err.count("\n") == 1
