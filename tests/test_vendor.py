"""Vendors' XML through ecgdatakit: samples, leads, units and rates of generated files; bombs are refused."""

import numpy as np
import pytest

import data_pipelines
from data_pipelines.errors import BadInput
from data_pipelines.formats import reader_of, vendor
from fuzz.seeds import aecg_xml, muse_xml

pytest.importorskip("ecgdatakit", reason="the extra [formats] is not installed")

DOCTYPE = '<!DOCTYPE RestingECG SYSTEM "restecg.dtd">'
LEADS = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
DIGITAL = np.random.default_rng(0).integers(-800, 800, (8, 5000)).astype("<i2")


def muse(path, scale="4.88", unit="MICROVOLTS", doctype=DOCTYPE):
    path.write_bytes(muse_xml(LEADS, DIGITAL, scale, unit, doctype))
    return path


@pytest.mark.parametrize(("unit", "factor"), [("MICROVOLTS", 0.001), ("MILLIVOLTS", 1.0)])
def test_muse(tmp_path, unit, factor):
    scale = "4.88" if unit == "MICROVOLTS" else "0.00488"
    recording = data_pipelines.read(muse(tmp_path / "x.xml", scale, unit))
    assert [c.name for c in recording.channels] == list(LEADS) and recording.labels == {"sex": 1.0, "age": 61.0}
    for channel, row in zip(recording.channels, DIGITAL):
        assert (channel.rate, channel.unit) == (500, "mV")
        np.testing.assert_allclose(channel.signal, row * float(scale) * factor, rtol=1e-6)
    assert vendor.person(tmp_path / "x.xml") == recording.subject == "P-7" and "Zanzibarov" not in repr(recording)


def test_aecg(tmp_path):
    (tmp_path / "x.xml").write_bytes(aecg_xml(LEADS, DIGITAL))
    recording = data_pipelines.read(tmp_path / "x.xml")
    assert [c.name for c in recording.channels] == list(LEADS)
    for channel, row in zip(recording.channels, DIGITAL):
        assert channel.rate == 500
        np.testing.assert_allclose(channel.signal, row * 0.0025, rtol=1e-6)


def test_declarations_are_refused_before_parsing(tmp_path, monkeypatch):
    bomb = '<!DOCTYPE RestingECG [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    outside = '<!DOCTYPE RestingECG [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    monkeypatch.setattr("ecgdatakit.FileParser.parse", lambda *_, **__: pytest.fail("it was parsed"))
    for doctype in (bomb, outside, "<!DOCTYPE RestingECG [\n]>"):
        path = muse(tmp_path / "x.xml", doctype=doctype)
        assert reader_of(path) is vendor
        with pytest.raises(BadInput, match="DTD or entities"):
            data_pipelines.read(path)


def test_damage_and_missing_scales_are_refused(tmp_path):
    path = muse(tmp_path / "x.xml")
    content = path.read_text(encoding="latin-1")
    changes = {
        "MICROVOLTS": "PINTS", "<SampleBase>500": "<SampleBase>0", "<WaveFormData>": "<WaveFormData>*",
        "</RestingECG>": "",
    }  # fmt: skip
    for old, new in changes.items():
        damaged = content.replace(old, new)
        path.write_text(damaged, encoding="latin-1")
        with pytest.raises(BadInput, match="x.xml") as caught:
            data_pipelines.read(path)
        assert "Zanzibarov" not in str(caught.value)
    other = tmp_path / "y.xml"
    other.write_text('<?xml version="1.0"?><notes>RestingECG</notes>')
    assert reader_of(other) is None
