"""Any source as a TensorFlow dataset (TFDS) on disk, without TensorFlow: ArrayRecord files, signals as raw bytes.

One example a recording: the samples of all channels one after the other in "signal" (float32, physical units, NaN
where invalid), with "lengths", "rates" (Hz) and "starts" (s) of each, "names" (standard ones, or
`channel_names.shown_name`) and "units" one a line, the hashed
"subject" and "study", "report" (only where kept), and "labels" as JSON. Splits are those of `prepare`.
The metadata says how subjects were hashed (the key's fingerprint, whose ids), the powerline frequency and which
channels were derived, so that `tfds_source` knows a private site's dataset for one.
"""

import json
from pathlib import Path

import numpy as np

from data_pipelines.channel_names import shown_name
from data_pipelines.datasets.source import Source
from data_pipelines.errors import BadInput
from data_pipelines.subjects import PUBLIC_KEY, fingerprint, hashed, hashed_study, split_of

VERSION = "1.0.0"
_SPLITS = ("train", "validation", "test")


def build(source: Source, data_dir: str | Path, *, key: bytes | None = None, keep_reports: bool = False) -> Path:
    """Writes a source as a TFDS dataset.

    Args:
        source: what to read; recordings that cannot be read are left out.
        data_dir: the dataset comes to lie in `data_dir/<source.name>/1.0.0`.
        key: hashes subjects; not used for a public source. keep_reports: keep the reports.

    Returns:
        That folder, for `tfds.builder_from_directory`.

    Raises:
        BadInput: no key for a source that is not public.
    """
    import tensorflow_datasets as tfds

    if not source.public and key is None:
        raise BadInput(source.name, "no key to hash its subjects with", "the site's own key", "give --key-file")
    maker = _builder_class(tfds, source, PUBLIC_KEY if source.public else key, keep_reports)
    builder = maker(data_dir=str(data_dir), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def _builder_class(tfds, source: Source, key: bytes, keep_reports: bool):
    features = tfds.features
    raw = features.Encoding.BYTES
    about = {"key": fingerprint(key), "people": source.people or source.name, "public": source.public}

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(VERSION)
        name = source.name

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                metadata=tfds.core.MetadataDict(about),
                description=type(source).__doc__ or source.name,
                citation=source.citation,
                license=source.licence,
                features=features.FeaturesDict(
                    {
                        "signal": features.Tensor(
                            shape=(None,),
                            dtype=np.float32,
                            encoding=raw,
                            doc="samples of all channels one after the other, each in its unit of `units`, NaN invalid",
                        ),
                        "lengths": features.Tensor(shape=(None,), dtype=np.int64),
                        "rates": features.Tensor(shape=(None,), dtype=np.float64, encoding=raw),
                        "starts": features.Tensor(shape=(None,), dtype=np.float64, encoding=raw),
                        "derived": features.Tensor(shape=(None,), dtype=np.int64),
                        "mains": features.Scalar(dtype=np.float64),  # NaN = not known
                        **{
                            name: features.Text() for name in ("names", "units", "subject", "study", "report", "labels")
                        },
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            people = source.people or source.name
            entries: dict[str, list] = {split: [] for split in _SPLITS}
            for entry in source.entries():
                entries[entry.split or split_of(key, people, entry.subject)].append(entry)
            return {split: self._generate_examples(listed) for split, listed in entries.items() if listed}

        def _generate_examples(self, entries):
            for entry in entries:
                try:
                    recording = source.read(entry)
                except (BadInput, OSError):
                    continue  # `csfm prepare` says why
                yield entry.study, _example(source, entry, recording, key, keep_reports)

    return Builder


def _example(source, entry, recording, key, keep_reports) -> dict:
    channels = recording.channels
    labels = {name: value for name, value in recording.labels.items() if np.isfinite(value)}
    return {
        "signal": np.concatenate([c.signal.astype(np.float32) for c in channels]),
        "lengths": np.array([len(c.signal) for c in channels], np.int64),
        "rates": np.array([c.rate for c in channels], np.float64),
        "starts": np.array([c.start for c in channels], np.float64),
        "derived": np.array([c.derived for c in channels], np.int64),
        "mains": np.float64(np.nan if recording.mains is None else recording.mains),
        "names": "\n".join(shown_name(c.name, c.unit) for c in channels),
        "units": "\n".join(" ".join(c.unit.split()) for c in channels),
        "subject": hashed(key, source.people or source.name, entry.subject),
        "study": hashed_study(key, source.name, entry.study),
        "report": (recording.report or "") if keep_reports else "",
        "labels": json.dumps(labels, sort_keys=True),
    }
