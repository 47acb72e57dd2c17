"""Channel names: a site's table, derived leads, and what a store tells of every name."""

import json

import numpy as np
import pytest
from test_prepare import Cohort, content

from csfm_jax import cli
from data_pipelines.channel_names import RARE, derive_leads, read_channel_table, shown_name
from data_pipelines.errors import BadInput
from data_pipelines.prepare import prepare
from data_pipelines.recording import Channel, Recording
from data_pipelines.signals import CHANNEL_ID
from data_pipelines.store import Store

NOISE = np.random.default_rng(0).normal(size=(3, 1250)).astype(np.float32)


def source_of(*channels, subjects=4):
    source = Cohort(subjects=subjects)
    source.read = lambda entry: Recording(channels, entry.subject, entry.study, source.name)
    return source


def test_a_sites_table_comes_before_the_vocabulary(tmp_path):
    table = tmp_path / "names.csv"
    table.write_text("name,standard\nwave 7,ABP\nII,\nsensor lead,V1\n")
    names = read_channel_table(table)
    channels = (
        Channel("Wave 7", 125, "mmHg", NOISE[0]), Channel("II", 250, "mV", NOISE[1]),
        Channel("SENSOR LEAD", 250, "mV", NOISE[2]),
    )  # fmt: skip
    summary = prepare(source_of(*channels), tmp_path / "s", names=names)
    store = Store.open(tmp_path / "s")
    assert store.index.channel_sets == ((CHANNEL_ID["V1"], CHANNEL_ID["ABP"]),)
    rows = {row["name"]: row for row in store.manifest["channels"]}
    assert (rows["Wave 7"]["as"], rows["Wave 7"]["kept"], rows["Wave 7"]["known"]) == ("ABP", 8, False)
    assert rows["II"]["left_out"] == {"left out by the site's table": 8}
    assert summary.unknown == {"Wave 7 as ABP": 8, "SENSOR LEAD as V1": 8}
    with pytest.raises(BadInput, match="another channel names"):
        prepare(source_of(*channels), tmp_path / "s")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("channel,to\n", "other columns"), ("name,standard\nx,V9\n", "unknown standard name"),
        ("name,standard\nx,CLS\n", "unknown standard name"), ("name,standard\nx,V1\nX,V2\n", "came before"),
        ("name,standard\nx\n", "1 fields"), ("", "other columns"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused(tmp_path, text, found, capsys):
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(BadInput, match=found):
        read_channel_table(tmp_path / "names.csv")
    words = ["prepare", "--source=simulated", f"--output={tmp_path / 's'}", f"--channels={tmp_path / 'names.csv'}"]
    assert cli.main(words) == 2 and capsys.readouterr().err.count("\n") == 1


def test_leads_are_derived_on_request_and_marked(tmp_path):
    channels = (Channel("I", 250, "mV", NOISE[0]), Channel("MLII", 250, "mV", NOISE[1]))
    made = {c.name: c for c in derive_leads(Recording(channels, "s", "r", "x")).channels}
    np.testing.assert_allclose(made["III"].signal, NOISE[1] - NOISE[0], atol=1e-6)
    np.testing.assert_allclose(made["aVR"].signal, -(NOISE[0] + NOISE[1]) / 2, atol=1e-6)
    np.testing.assert_allclose(made["aVL"].signal, NOISE[0] - NOISE[1] / 2, atol=1e-6)
    np.testing.assert_allclose(made["aVF"].signal, NOISE[1] - NOISE[0] / 2, atol=1e-6)
    assert [c.derived for c in made.values()] == [False, False, True, True, True, True]
    prepare(source_of(*channels), tmp_path / "plain")
    prepare(source_of(*channels), tmp_path / "derived", derive=True)
    plain, derived = Store.open(tmp_path / "plain").index, Store.open(tmp_path / "derived").index
    assert plain.channel_sets == ((1, 2),) and not plain.derived.any()
    assert derived.channel_sets == ((1, 2, 3, 4, 5, 6),) and derived.derived.all()


def test_leads_that_are_there_or_do_not_fit_are_left_alone():
    one, two = Channel("I", 250, "mV", NOISE[0]), Channel("II", 250, "mV", NOISE[1])
    stored = Channel("aVF", 250, "mV", NOISE[2])
    kept = derive_leads(Recording((one, two, stored), "s", "r", "x")).channels
    assert [c.name for c in kept] == ["I", "II", "aVF", "III", "aVR", "aVL"] and kept[2].signal is stored.signal
    for other in (Channel("II", 500, "mV", NOISE[1]), Channel("II", 250, "uV", NOISE[1])):
        assert len(derive_leads(Recording((one, other), "s", "r", "x")).channels) == 2
    assert len(derive_leads(Recording((one,), "s", "r", "x")).channels) == 1


def test_a_name_of_few_subjects_is_not_shown(tmp_path):
    """A name that the vocabulary does not know, in one person's files only, may be that person's name."""
    source = Cohort(subjects=5)
    channels = (Channel("II", 250, "mV", NOISE[0]),)
    source.read = lambda entry: Recording(
        (*channels, Channel("Doe Jane 1970" if entry.subject.endswith("1") else "Temp probe", 250, "", NOISE[1])),
        entry.subject, entry.study, source.name,
    )  # fmt: skip
    summary = prepare(source, tmp_path / "s")
    assert summary.unknown == {"Temp probe": 8, RARE: 2} and "Doe" not in str(summary)
    assert not any(b"Doe" in data for data in content(tmp_path / "s").values())
    assert json.dumps(Store.open(tmp_path / "s").manifest["channels"]).count(RARE) == 1


def test_rates_are_counted_as_recorded(tmp_path):
    prepare(Cohort(subjects=3), tmp_path / "s")
    assert Store.open(tmp_path / "s").manifest["rates"] == {"ecg": {"250": 6}, "ppg": {"125": 6}}


def test_a_name_of_many_subjects_is_shown(tmp_path):
    for subjects, shown in ((19, RARE), (20, "frobnicator")):
        source = source_of(Channel("II", 250, "mV", NOISE[0]), Channel("frobnicator", 250, "", NOISE[1]))
        source.subjects = subjects
        assert prepare(source, tmp_path / str(subjects)).unknown == {shown: 2 * subjects}


@pytest.mark.parametrize(
    ("name", "unit", "shown"),
    [
        ("EEG Zanzibarov", "uV", "EEG other"), ("Zanzibarov", "mV", "ECG other"), ("Zanzibarov", "", RARE),
        ("Wu Li", "", RARE), ("19570312", "", RARE), ("7", "", RARE), ("Temp 19570312", "", RARE), ("J K", "", RARE),
        ("MLII", "mV", "II"), ("EEG C4-M1", "uV", "EEG C4-A1"), ("EEG F7-Fz", "uV", "EEG F7-Fz"),
        ("Temp probe 2", "", "Temp probe 2"), ("acc_x", "g", "acc_x"), ("EtCO2", "%", "EtCO2"),
    ],
)  # fmt: skip
def test_only_names_of_recorders_are_shown(name, unit, shown):
    assert shown_name(name, unit) == shown


def test_a_name_behind_a_known_word_is_not_known(tmp_path):
    source = source_of(Channel("II", 250, "mV", NOISE[0]), Channel("EEG Zanzibarov", 250, "uV", NOISE[1]))
    summary = prepare(source, tmp_path / "s")
    assert summary.unknown == {f"{RARE} as EEG other": 8} and "Zanzibarov" not in str(summary)
    assert not any(b"Zanzibarov" in data for data in content(tmp_path / "s").values())
