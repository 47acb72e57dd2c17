"""A TFDS dataset as a source: one that `tfds_builder` wrote, or any with a signal feature, described in the address.

tfds:FOLDER                                                  written by `tfds_builder`
tfds:FOLDER?signal=ecg&rate=500&channels=I,II&unit=mV        any other: [samples, channels], or [samples] of one
    &axis=channels &subject=patient_id &mains=50             rows are channels; who it is of; powerline frequency

FOLDER is the dataset's own, with `features.json` in it. TensorFlow is not needed for ArrayRecord files. `unit` may be
left out where the dataset records it (`tfds_units`), and must not contradict it; "unit=mV,a.u." is one a channel.
"""

import json
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np

from data_pipelines.datasets.source import Entry, Source, number, sorted_entries
from data_pipelines.datasets.tfds_units import units_of
from data_pipelines.errors import BadInput
from data_pipelines.recording import Channel, Recording

_OPTIONS = ("signal", "rate", "channels", "unit", "axis", "subject", "mains")
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


class TFDSSource(Source):
    """Examples of every split; a split of TFDS is the official one. Subjects of foreign datasets need a site's key."""

    def __init__(self, root: Path, options: dict[str, str]):
        super().__init__(root)
        self._options = options
        self.public = self.hashed = not options  # `tfds_builder` has hashed
        if not options:
            self.public = self._about.get("public", True)
            self.key, self.people = self._about.get("key", ""), self._about.get("people", "")
        self.mains = number(options["mains"]) if "mains" in options else None
        self.name = self.root.parent.name if self.root.name[:1].isdigit() else self.root.name

    @classmethod
    def from_text(cls, text: str) -> "TFDSSource":
        """Takes "tfds:FOLDER?..."; BadInput for no such dataset, or an option that is unknown or missing."""
        folder, _, query = text.removeprefix("tfds:").partition("?")
        root, options = Path(folder).resolve(), dict(parse_qsl(query))
        if not (root / "features.json").is_file():
            found = "no features.json" if root.is_dir() else "no such folder"
            raise BadInput(folder, found, "a TFDS dataset's folder, such as data/name/1.0.0", "correct the path")
        for name in options:
            if name not in _OPTIONS:
                raise BadInput("--source", f"an unknown option {name[:32]!r}", ", ".join(_OPTIONS), "correct it")
        source = cls(root, options)
        if options and not (options.get("signal") and options.get("channels") and number(options.get("rate", "")) > 0):
            raise BadInput("--source", "options without signal, rate and channels", "all three", "add them")
        missing = {options.get("signal", "lengths"), options.get("subject", "")} - {"", *source._features}
        if missing:
            expected = "signal=... and other options, since the dataset's features are " + ", ".join(source._features)
            raise BadInput(folder, "no such feature", expected, "add or correct them")
        if options:
            source._take_units()
        return source

    def _take_units(self) -> None:
        options, count = self._options, self._options["channels"].count(",") + 1
        self._units, where = units_of(self.root, options["signal"], options.get("unit"), count, self._about)
        if where and "unit" not in options:
            self.note = f"{', '.join(dict.fromkeys(self._units))} is the signal's unit, as {where} records"

    @cached_property
    def _features(self) -> list[str]:
        file = self.root / "features.json"
        try:
            return sorted(json.loads(file.read_bytes()).get("featuresDict", {}).get("features", {}))
        except (ValueError, AttributeError, TypeError):
            raise BadInput(file, "no description of features", "JSON as TFDS writes it", "build it again") from None

    @property
    def _about(self) -> dict:
        """What `tfds_builder` says of the whole dataset; empty for one of an earlier release."""
        file = self.root / "metadata.json"
        try:
            about = json.loads(file.read_bytes()) if file.is_file() else {}
        except ValueError:
            raise BadInput(file, "no JSON", "the file as TFDS wrote it", "build the dataset again") from None
        return about if isinstance(about, dict) else {}

    @cached_property
    def _data(self) -> dict:
        """Split -> random access to its examples."""
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder_from_directory(str(self.root))
            return {split: builder.as_data_source(split=split) for split in builder.info.splits}
        except Exception as error:  # TFDS raises whatever comes to hand
            found = f"a dataset that TFDS cannot open ({type(error).__name__})"
            raise BadInput(self.root, found, "one of ArrayRecord files", "build it with that format") from None

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "_data"}

    def entries(self) -> list[Entry]:
        who = self._options.get("subject", "" if self._options else "subject")
        entries = []
        for split, examples in self._data.items():
            for i in range(len(examples)):
                person = _text(examples[i][who]) if who else f"{split}-{i}"
                study = f"{split}-{i:09d}" if self._options else _text(examples[i]["study"])
                entries.append(Entry(person, study, _SPLITS.get(split, ""), f"{split}#{i}"))
        return sorted_entries(entries, self.root)

    def signals(self, entry: Entry) -> Recording:
        split, _, position = entry.path.partition("#")
        example = self._data[split][int(position)]
        return self._foreign(entry, example) if self._options else self._own(entry, example)

    def _own(self, entry: Entry, example) -> Recording:
        ends = np.cumsum(example["lengths"])
        names, units = (_text(example[key]).split("\n") for key in ("names", "units"))
        if not len(names) == len(units) == len(ends) or ends[-1] != len(example["signal"]):
            found = "an example whose names, units and lengths do not fit its signal"
            raise BadInput(self.root, found, "one of each a channel", "build the dataset again")
        parts = np.split(np.asarray(example["signal"], np.float32), ends[:-1])
        channels = tuple(
            Channel(name, float(rate), unit, part, float(start), bool(derived))
            for name, unit, rate, start, part, derived in zip(
                names, units, example["rates"], example["starts"], parts, example.get("derived", [False] * len(parts))
            )
        )
        mains = float(example.get("mains", np.nan))
        return Recording(
            channels, entry.subject, entry.study, self.name, report=_text(example["report"]) or None,
            labels=json.loads(_text(example["labels"])), mains=None if np.isnan(mains) else mains,
        )  # fmt: skip

    def _foreign(self, entry: Entry, example) -> Recording:
        options, signal = self._options, np.asarray(example[self._options["signal"]], np.float32)
        names = options["channels"].split(",")
        signal = signal[:, None] if signal.ndim == 1 else signal
        rows = signal if options.get("axis") == "channels" else signal.T
        if signal.ndim != 2 or len(rows) != len(names):
            expected = f"{len(names)} channels, as the source's options say"
            raise BadInput(self.root, f"a signal of shape {signal.shape}", expected, "correct the options")
        rate = float(options["rate"])
        channels = tuple(Channel(name, rate, unit, row.copy()) for name, unit, row in zip(names, self._units, rows))
        return Recording(channels, entry.subject, entry.study, self.name)

    def report(self, entry: Entry) -> str | None:
        if self._options:
            return None
        split, _, position = entry.path.partition("#")
        return _text(self._data[split][int(position)]["report"]) or None


def _text(value) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
