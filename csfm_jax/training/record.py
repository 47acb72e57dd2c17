"""The record of a run: what its folder and every checkpoint say about where the weights come from."""

import gzip
import hashlib
import importlib.metadata
import json
import platform
import socket
import zlib
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from csfm_jax.config import Config, from_dict
from csfm_jax.sharding import Share
from data_pipelines import storage
from data_pipelines.errors import BadInput
from data_pipelines.signals import CHANNELS
from data_pipelines.store import Store
from data_pipelines.subjects import PUBLIC_KEY, fingerprint

# What may differ when a run goes on: how and how often, where things lie, on which devices. All else decides what is
# learned.
FREE = (
    "training.log_every",
    "training.eval_every",
    "training.eval_batches",
    "training.save_every",
    "training.keep_checkpoints",
    "training.bad_steps",
    "training.keep_best",
    "training.accumulate",
    "training.hang_seconds",
    "training.profile",
    "data.stores",
    "data.tokenizer",
    "data.workers",
    "data.window.crops",
    "data.verify",
    "mesh",
    "encoder.attention",
    "encoder.remat",
)
# What may differ between the hosts of one run: where their files are, and how those are read.
OF_HOST = ("data.stores", "data.tokenizer", "data.workers", "data.verify")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy", "tokenizers")

SUBJECTS = "subjects-trained.txt.gz"  # of this run
SUBJECTS_BEFORE = "subjects-trained-before.txt.gz"  # of the weights that it began from


def trained_subjects(stores: list[Store], config: Config) -> list[str]:
    """Hashed ids of the subjects that this run may train on: of split "train", in stores of weight above 0; sorted."""
    used = [s.index.subject[s.index.split == 0] for s in stores if config.data.weights.get(s.name, 1.0) > 0]
    return sorted({subject.decode() for subject in np.concatenate(used)})


def describe(config: Config, stores: list[Store], tokenizer: str | None, command: str) -> dict:
    """The part of a checkpoint's `run` item that stays the same throughout a run; plain values.

    Args:
        config, stores: of the run. tokenizer: JSON text, or None without text. command: as it was given.
    """
    subjects = trained_subjects(stores, config)
    return {
        "config": config.to_dict(),
        "preprocessing": stores[0].spec.to_dict(),
        "channels": [channel.name for channel in CHANNELS],
        "tokenizer": tokenizer,
        "versions": versions(),
        "command": command,
        "subjects": summary(subjects),
        "stores": {store.name: _describe_store(store) for store in stores},
    }


def everywhere(config: Config) -> dict[str, str]:
    """What all processes of a run must agree on, by field: also how often they meet, and on which mesh."""
    flat = _flat(config.to_dict())
    return {f"config.{name}": json.dumps(value) for name, value in flat.items() if not name.startswith(OF_HOST)}


def summary(subjects: list[str]) -> dict:
    """Count and digest of a sorted list of hashed subjects."""
    return {"count": len(subjects), "sha256": hashlib.sha256("\n".join(subjects).encode()).hexdigest()}


def _describe_store(store: Store) -> dict:
    train = store.index.split == 0
    return {
        "digest": store.digest,
        "key": store.manifest["key"],
        "people": store.people,
        "recordings": int(np.count_nonzero(train)),
        "subjects": len(np.unique(store.index.subject[train])),
    }


def versions() -> dict[str, str]:
    """Python, machine and the packages that decide the numbers."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "machine": platform.machine(), **found}


def write_folder(folder: Path, record: dict, subjects: list[str]) -> None:
    """Writes the record beside the checkpoints, one file a part, for people and scripts that read no Orbax.

    config.json, preprocessing.json, channels.json, versions.json, stores.json, command.txt, subjects-trained.txt.gz
    (hashed, one a line) and, with text, tokenizer.json.
    """
    for name in ("config", "preprocessing", "channels", "versions", "stores"):
        (folder / f"{name}.json").write_text(json.dumps(record[name], indent=1) + "\n", encoding="utf-8")
    (folder / "command.txt").write_text(record["command"] + "\n", encoding="utf-8")
    if record["tokenizer"] is not None:
        (folder / "tokenizer.json").write_text(record["tokenizer"], encoding="utf-8")
    write_subjects(folder / SUBJECTS, subjects)


def write_subjects(path: Path, subjects: list[str]) -> None:
    """Writes hashed subjects, one a line; same subjects, same bytes."""
    path.write_bytes(gzip.compress("".join(f"{subject}\n" for subject in subjects).encode(), mtime=0))


@dataclass(frozen=True)
class TrainedOn:
    """Hashed subjects that weights were trained on.

    Attributes:
        subjects: as many as are known. complete: whether these are all of them.
        hashes: (fingerprint of the key, whose ids) of every store that they come from; None where it is not known.
    """

    subjects: set[bytes]
    complete: bool
    hashes: frozenset[tuple[str, str]] | None = frozenset()

    def incomparable(self, stores: list[Store]) -> list[str]:
        """Names of stores whose subjects' hashes cannot be looked for among these: hashed in another way.

        Published datasets share one key, and say themselves whose ids theirs are: people of two of them are others.
        """
        known = self.hashes or frozenset()
        ways = {s.name: (s.manifest["key"], s.people) for s in stores}
        public = fingerprint(PUBLIC_KEY) if any(key == fingerprint(PUBLIC_KEY) for key, _ in known) else None
        return sorted(name for name, way in ways.items() if way not in known and way[0] != public)


def trained_on(provenance: dict) -> TrainedOn:
    """The subjects of a checkpoint's run and of the weights that it began from, read from its work directory.

    Args:
        provenance: of a `LoadedEncoder`.

    Raises:
        BadInput: a list is not the one whose digest the checkpoint holds.
    """
    if "path" not in provenance:
        return TrainedOn(set(), complete=True)  # never trained
    folder = storage.parent(storage.parent(storage.place(provenance["path"])))
    initial = provenance.get("initial")
    lists = [_read_subjects(storage.join(folder, SUBJECTS), provenance.get("subjects"))]
    stores = (provenance.get("stores") or {}).values()
    ways = [[(s["key"], s["people"]) for s in stores] if stores and all("key" in s for s in stores) else None]
    if initial is not None:
        lists.append(_read_subjects(storage.join(folder, SUBJECTS_BEFORE), initial["subjects"]))
        ways.append(initial.get("hashes"))
    hashes = None if None in ways else frozenset((key, people) for way in ways for key, people in way)
    return TrainedOn(set().union(*(known for known in lists if known)), None not in lists, hashes)


def _read_subjects(path: storage.Place, expected: dict | None) -> set[bytes] | None:
    if expected is None or not storage.exists(path):
        return None
    written = storage.read_bytes(path)
    try:
        lines = gzip.decompress(written).split()
    except (gzip.BadGzipFile, EOFError, zlib.error):
        lines = []
    if (found := hashlib.sha256(b"\n".join(lines)).hexdigest()) != expected["sha256"]:
        remedy = "restore the file from a copy; without it, move it away and check by hand who was trained on"
        wanted = f"{expected['sha256'][:12]}... (of the checkpoint)"
        raise BadInput(str(path), f"SHA-256 {found[:12]}...", wanted, remedy)
    return set(lines)


def check_resumable(saved: dict, now: dict, where: str) -> None:
    """Refuses to go on with another run than the one that was saved.

    Args:
        saved: `run` of the checkpoint. now: `describe` of this command. where: the work directory.

    Raises:
        BadInput: names the config fields, the preprocessing versions, or the data that differ.
    """
    remedy = "give the same command as before, or another --workdir for another run"
    # a field that came after the run began has its default there
    before, after = _flat(from_dict(saved["config"]).to_dict()), _flat(now["config"])
    changed = [
        f"config.{name} = {after.get(name)} (was {before.get(name)})"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not name.startswith(FREE)
    ]
    if changed:
        raise BadInput(where, "a run with other settings: " + ", ".join(changed), "the settings it began with", remedy)
    if saved["preprocessing"] != now["preprocessing"]:
        old, new = (_name_of(r["preprocessing"]) for r in (saved, now))
        raise BadInput(where, f"stores prepared with {new}", f"{old}, as the run began with", remedy)
    if saved["channels"] != now["channels"][: len(saved["channels"])]:
        raise BadInput(where, "a run with another channel vocabulary", "this version's or a start of it", remedy)
    for part in ("tokenizer", "subjects"):
        if saved[part] != now[part]:
            raise BadInput(where, f"a run with other {part}", f"the {part} it began with", remedy)


def _name_of(spec: dict) -> str:
    return f"{spec['name']} version {spec['version']} ({hashlib.sha256(json.dumps(spec).encode()).hexdigest()[:8]})"


def _flat(tree: dict, path: str = "") -> dict:
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return flat


def device_line(share: Share, rows: int) -> str:
    """Devices in words: "8 x TPU v5 lite on 2 hosts; process 1 (NAME): 4 of them, rows 129 to 256 of 256".

    Args:
        share: this process's, of the `rows` of a global batch.
    """
    everyone = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    if jax.process_count() == 1:
        return everyone
    part = rows // share.parts
    read = f"rows {share.number * part + 1} to {(share.number + 1) * part} of {rows}"
    mine = f"process {jax.process_index()} ({socket.gethostname()}): {jax.local_device_count()} of them, {read}"
    return f"{everyone} on {jax.process_count()} hosts; {mine}"
