"""TFDS both ways, with no TensorFlow: a source written and read again is the same; a foreign dataset is described."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_prepare import Cohort

from csfm_jax import cli
from data_pipelines.channel_names import RARE, shown_name
from data_pipelines.datasets import open_sources, tfds_builder
from data_pipelines.errors import BadInput
from data_pipelines.prepare import prepare
from data_pipelines.store import Store
from data_pipelines.subjects import PUBLIC_KEY, fingerprint, hashed, split_of


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return tfds_builder.build(Cohort(subjects=6), tmp_path_factory.mktemp("tfds"), keep_reports=True)


def test_a_round_trip(written):
    (source,) = open_sources(f"tfds:{written}")
    assert source.name == "cohort" and source.public
    original = {hashed(PUBLIC_KEY, "cohort", e.subject): [] for e in Cohort(subjects=6).entries()}
    for entry in Cohort(subjects=6).entries():
        original[hashed(PUBLIC_KEY, "cohort", entry.subject)].append(Cohort(subjects=6).read(entry))
    entries = source.entries()
    assert len(entries) == 12
    for entry in entries:
        found = source.read(entry)
        same = [r for r in original[entry.subject] if r.report == found.report]
        (theirs,) = same
        assert found.labels == theirs.labels
        for mine, other in zip(found.channels, theirs.channels, strict=True):
            assert (mine.name, mine.rate, mine.unit) == (shown_name(other.name, other.unit), other.rate, other.unit)
            np.testing.assert_array_equal(mine.signal, np.asarray(other.signal, np.float32))
    people = {e.subject: split_of(PUBLIC_KEY, "cohort", e.subject) for e in Cohort(subjects=6).entries()}
    assert {e.subject: e.split for e in entries} == {hashed(PUBLIC_KEY, "cohort", p): s for p, s in people.items()}


class Named(Cohort):
    """A cohort in whose files a person's name stands as a channel's too."""

    def read(self, entry):
        recording = super().read(entry)
        names = ("MLII", "Temp probe", "EEG Doe_Jane", "Doe_Jane")
        return replace(recording, channels=tuple(c._replace(name=n) for c, n in zip(recording.channels, names)))


def test_no_name_in_any_example(tmp_path):
    """The bytes of a file may be packed: what is looked through are the examples, decoded."""
    import tensorflow_datasets as tfds

    folder = tfds_builder.build(Named(subjects=6, name="named"), tmp_path)
    builder, examples = tfds.builder_from_directory(str(folder)), 0
    for split in builder.info.splits:
        for example in builder.as_data_source(split=split):
            texts = {name: value.decode() for name, value in example.items() if isinstance(value, bytes)}
            assert len(texts) == 6 and not any("patient-" in text or "Doe" in text for text in texts.values())
            assert texts["names"].split("\n") == ["II", "Temp probe", "EEG other", "ECG other"]
            examples += 1
    assert examples == 12 and shown_name("Doe Jane", "furlong") == RARE
    for path in folder.rglob("*"):
        assert "Doe" not in path.name
        assert path.suffix != ".json" or not any(s in path.read_text() for s in ("patient-", "Doe"))


def test_no_tensorflow(written):
    code = (
        "import sys; from data_pipelines.datasets import open_sources\n"
        f"source = open_sources('tfds:{written}')[0]; source.read(source.entries()[0])\n"
        "assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr


def test_prepared_from_tfds(written, tmp_path):
    (source,) = open_sources(f"tfds:{written}")
    summary = prepare(source, tmp_path / "s", keep_reports=True)
    direct = prepare(Cohort(subjects=6), tmp_path / "direct")
    a, b = Store.open(tmp_path / "s").index, Store.open(direct.path).index
    for column in ("subject", "study", "split"):  # whoever comes this way is known as the same person
        assert sorted(getattr(a, column).tolist()) == sorted(getattr(b, column).tolist())
    assert summary.totals["recordings"] == 12 and summary.totals["subjects"] == 6
    assert all(report.startswith("Sinus rhythm number") for report in Store.open(tmp_path / "s").reports())


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Folder and signals of a dataset that others wrote: two leads, with nothing said of their unit."""
    import tensorflow_datasets as tfds

    data = np.random.default_rng(0).normal(size=(3, 500, 2)).astype(np.float32)

    class Foreign(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION, name = tfds.core.Version("2.0.0"), "foreign"

        def _info(self):
            features = {"ecg": tfds.features.Tensor(shape=(None, 2), dtype=np.float32), "who": tfds.features.Text()}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, x in enumerate(data):
                yield i, {"ecg": x, "who": f"p{i % 2}"}

    builder = Foreign(data_dir=str(tmp_path_factory.mktemp("foreign")), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir), data


def test_a_foreign_dataset_is_described_in_its_address(foreign):
    where, data = f"tfds:{foreign[0]}", foreign[1]
    (source,) = open_sources(f"{where}?signal=ecg&rate=250&channels=I,II&unit=mV&subject=who&mains=60")
    entries = source.entries()
    assert (source.name, source.public, source.mains) == ("foreign", False, 60) and {e.subject for e in entries} == {
        "p0",
        "p1",
    }
    found = [source.read(entry) for entry in entries]
    assert sorted(float(r.channels[0].signal[0]) for r in found) == sorted(float(x[0, 0]) for x in data)
    assert [c.name for c in found[0].channels] == ["I", "II"] and found[0].channels[0].rate == 250
    wrong_rate = "?signal=ecg&rate=0&channels=I"
    for wrong in ("", "?signal=eeg&rate=250&channels=I,II", "?signal=ecg&channels=I,II", wrong_rate, "?sig=ecg"):
        with pytest.raises(BadInput):
            open_sources(where + wrong)
    (short,) = open_sources(f"{where}?signal=ecg&rate=250&channels=I&unit=mV")
    with pytest.raises(BadInput, match="shape"):
        short.read(short.entries()[0])


def recorded(folder, to, doc=None, value_range=None, dtype=None, metadata=None):
    """A copy of a foreign dataset that records more of its signal, as TFDS writes it."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    about = json.loads((to / "features.json").read_text())
    feature = about["featuresDict"]["features"]["ecg"]
    feature |= {key: text for key, text in (("description", doc), ("valueRange", value_range)) if text}
    feature["tensor"]["dtype"] = dtype or "float32"
    (to / "features.json").write_text(json.dumps(about))
    if metadata:
        (to / "metadata.json").write_text(json.dumps(metadata))
    return f"tfds:{to}?signal=ecg&rate=250&channels=I,II"


UV, MV, BOTH = {"metadata": {"units": {"ecg": "uV"}}}, {"metadata": {"unit": "mV"}}, {"doc": "in mV; noise of 5 uV"}


@pytest.mark.parametrize(
    ("says", "option", "units"),
    [
        ({}, "mV", ["mV", "mV"]), ({}, "mV,a.u.", ["mV", "a.u."]), ({}, "", "no unit"), ({}, "mV,mV,mV", "3 units"),
        (UV, "", ["uV", "uV"]), (UV, "uv", ["uV", "uV"]), (UV, "mV", "as metadata.json records"), (MV, "", ["mV"] * 2),
        ({"metadata": {"units": ["mV", "NU"]}}, "", ["mV", "NU"]), ({"metadata": {"units": ["mV"]}}, "", "no unit"),
        ({"doc": "Two leads, in microvolts."}, "", ["uV", "uV"]), ({"value_range": "-5 to 5 mV"}, "", ["mV", "mV"]),
        ({"doc": "ECG [\u00b5V]"}, "", ["uV"] * 2), ({"doc": "in mV"}, "uV", "as features.json records"),
        ({"doc": "counts, 200 per mV"}, "", "no unit"), ({"doc": "Leads I, V1"}, "", "no unit"), (BOTH, "", "no unit"),
        ({"doc": "in mV", "dtype": "int16"}, "", "no unit"), ({"doc": "in mV", "dtype": "int16"}, "uV", ["uV"] * 2),
    ],
)  # fmt: skip
def test_the_unit_is_the_recorded_one_or_the_users(foreign, tmp_path, says, option, units):
    where = recorded(foreign[0], tmp_path / "2.0.0", **says) + (f"&unit={option}" if option else "")
    if isinstance(units, str):
        with pytest.raises(BadInput, match=units):
            open_sources(where)
        return
    (source,) = open_sources(where)
    assert [channel.unit for channel in source.read(source.entries()[0]).channels] == units
    assert bool(source.note) == (not option)  # where nobody said it, it is told


def test_an_example_that_does_not_fit_itself_is_refused(written):
    (source,) = open_sources(f"tfds:{written}")
    entry = source.entries()[0]
    split, position = entry.path.split("#")
    example = dict(source._data[split][int(position)])
    assert [c.unit for c in source._own(entry, example).channels] == example["units"].decode().split("\n")
    for damage in ({"units": b"mV"}, {"signal": example["signal"][1:]}, {"names": b"I"}):
        with pytest.raises(BadInput, match="do not fit its signal"):
            source._own(entry, example | damage)


def test_no_such_dataset(tmp_path, capsys):
    assert cli.main(["prepare", f"--source=tfds:{tmp_path}", f"--output={tmp_path / 's'}"]) == 2
    assert "features.json" in capsys.readouterr().err
    for text in ("no JSON", "[1]"):
        (tmp_path / "features.json").write_text(text)
        assert cli.main(["prepare", f"--source=tfds:{tmp_path}", f"--output={tmp_path / 's'}"]) == 2
        assert "features.json: found no description of features" in capsys.readouterr().err
    with pytest.raises(BadInput, match="no key"):
        tfds_builder.build(Cohort(public=False), tmp_path)


def test_a_private_sites_dataset_stays_one(tmp_path):
    key, other = b"0123456789abcdef" * 2, b"fedcba9876543210" * 2
    site = Cohort(subjects=6, name="ward", people="site", public=False)
    read = site.read
    site.read = lambda entry: _derived(replace(read(entry), mains=60.0))
    (source,) = open_sources(f"tfds:{tfds_builder.build(site, tmp_path, key=key)}")
    assert (source.public, source.people, source.key) == (False, "site", fingerprint(key))
    found = source.read(source.entries()[0])
    assert found.mains == 60 and [c.derived for c in found.channels] == [True, False, False, False]
    with pytest.raises(BadInput, match="no key"):
        prepare(source, tmp_path / "s")
    with pytest.raises(BadInput, match="another key"):
        prepare(source, tmp_path / "s", key=other)
    prepare(source, tmp_path / "s", key=key)
    prepare(site, tmp_path / "direct", key=key)
    a, b = Store.open(tmp_path / "s"), Store.open(tmp_path / "direct")
    assert (a.manifest["key"], a.people) == (b.manifest["key"], b.people) == (fingerprint(key), "site")
    assert sorted(a.index.subject.tolist()) == sorted(b.index.subject.tolist())


def _derived(recording):
    first, *others = recording.channels
    return replace(recording, channels=(first._replace(derived=True), *others))
