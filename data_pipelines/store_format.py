"""What a store's files are called, how its manifest is written, and how both are checked. See `store.py`."""

import hashlib
import json
from pathlib import Path

from data_pipelines import storage
from data_pipelines.errors import BadInput
from data_pipelines.preprocess import Spec, mismatch
from data_pipelines.signals import CHANNELS

FORMAT = 2
CHUNK_SECONDS = 60
MANIFEST = "manifest.json"
WORK = ".partial"  # what an unfinished `csfm prepare` needs to go on

# column -> Arrow type
INDEX_SCHEMA = {
    "subject": "string",  # 16 hex digits of a keyed hash
    "study": "string",  # 16 hex digits of a keyed hash
    "split": "int8",  # position in store.SPLITS
    "milliseconds": "int64",  # length, rounded down
    "channel_set": "int32",  # position in the manifest's "channel_sets"
    "shard": "int32",
    "first": "int32",  # record number of the first chunk in its shard
    "chunks": "int32",
    "has_report": "bool",
    "derived": "bool",  # whether a lead was computed from others
}


def sample_count(milliseconds: int, rate: int) -> int:
    """Samples that a recording of that length has at `rate` Hz."""
    return int(milliseconds) * rate // 1000


def shard_name(shard: int, shards: int) -> str:
    return f"shards/shard-{shard:05d}-of-{shards:05d}.array_record"


def quality_name(shard: int, shards: int) -> str:
    return f"quality/quality-{shard:05d}-of-{shards:05d}.parquet"


def vocabulary_digest(channels: int) -> str:
    """SHA-256 of the first so many rows of the channel vocabulary (which may only grow at its end)."""
    return hashlib.sha256("\n".join(f"{c.name}|{c.modality}" for c in CHANNELS[:channels]).encode()).hexdigest()


def check_spec(found: Spec | dict, expected: Spec, where: str) -> None:
    """Raises BadInput, naming both versions, where something was prepared in another way than is expected."""
    if isinstance(found, dict):
        try:
            found = Spec.from_dict(found)
        except (TypeError, KeyError) as error:
            name, version = found.get("name"), found.get("version")
            raise BadInput(
                where, f"preprocessing {name} version {version}", f"{expected}", "prepare it with this release"
            ) from error
    if different := mismatch(found, expected):
        raise BadInput(
            where,
            f"preprocessing {different}",
            f"{expected}",
            "prepare the recordings again, or use the release that made it",
        )


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_bytes(manifest: dict) -> bytes:
    """The one way a manifest is written: with its own digest, so that any other byte is refused."""
    lines = [f"{json.dumps(k)}: {json.dumps(manifest[k], sort_keys=True)}" for k in sorted(manifest) if k != "digest"]
    body = ",\n".join(lines)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return f'{{\n{body},\n"digest": "{digest}"\n}}\n'.encode()


def record_count(path: Path) -> int:
    """Records of an ArrayRecord file; a truncated one opens as empty, without an error."""
    reader = open_reader(path)
    try:
        return reader.num_records()
    finally:
        reader.close()


def open_reader(path):
    from array_record.python.array_record_module import ArrayRecordReader

    # no readahead: windows are read in random order
    return ArrayRecordReader(str(path), options="readahead_buffer_size:0", file_reader_buffer_size=32768)


def chunk_samples(milliseconds: int, rate: int, chunk: int) -> int:
    """Samples of one channel in chunk number `chunk` of a recording."""
    return max(0, min(sample_count(milliseconds, rate) - chunk * CHUNK_SECONDS * rate, CHUNK_SECONDS * rate))


def chunk_count(milliseconds: int) -> int:
    return max(1, -(-int(milliseconds) // (CHUNK_SECONDS * 1000)))


def read_manifest(path: storage.Place) -> dict:
    """The manifest of a store, checked in itself: every byte, format version, vocabulary.

    Raises:
        BadInput: not a store, an unfinished one, a changed manifest, or one of another format or vocabulary.
    """
    file = storage.join(path, MANIFEST)
    try:
        data = storage.read_bytes(file)
    except storage.Missing:
        if storage.exists(storage.join(path, WORK)):
            raise BadInput(
                str(path), "an unfinished store", "a finished one", "give the same `csfm prepare` again: it goes on"
            ) from None
        found = f"no {MANIFEST}" if storage.exists(path) else "no such folder"
        raise BadInput(str(path), found, "a store made by `csfm prepare`", "correct the path") from None
    try:
        manifest = json.loads(data)
        intact = data == manifest_bytes(manifest)
    except (ValueError, AttributeError, TypeError, LookupError):  # any JSON may have come to lie here
        intact = False
    if not intact:
        raise BadInput(str(file), "changed bytes", "the manifest as written", "restore the file or prepare again")
    if manifest.get("format") != FORMAT:
        raise BadInput(
            str(file), f"store format {manifest.get('format')}", f"format {FORMAT}", "prepare again with this release"
        )
    vocabulary = manifest["vocabulary"]
    if vocabulary["channels"] > len(CHANNELS) or vocabulary_digest(vocabulary["channels"]) != vocabulary["digest"]:
        raise BadInput(
            str(file),
            f"a vocabulary of {vocabulary['channels']} channels that is not the beginning of this one",
            f"this release's {len(CHANNELS)} channels or their beginning",
            "prepare again with this release",
        )
    return manifest


def verify_file(folder: Path, name: str, expected: dict, full: bool = True) -> None:
    """Compares one file of a store with its manifest entry; BadInput names it."""
    path, remedy = folder / name, "restore the file or prepare the store again"
    if not path.is_file():
        raise BadInput(str(path), "no such file", "the file in the manifest", remedy)
    if (size := path.stat().st_size) != expected["size"]:
        raise BadInput(str(path), f"{size} bytes", f"{expected['size']} bytes", remedy)
    if full and file_sha256(path) != expected["sha256"]:
        raise BadInput(str(path), "changed content", "the SHA-256 in the manifest", remedy)
    if path.suffix == ".array_record" and (count := record_count(path)) != expected["count"]:
        raise BadInput(str(path), f"{count} records", f"{expected['count']} records", remedy)
