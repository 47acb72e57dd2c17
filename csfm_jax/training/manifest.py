"""The manifest of a checkpoint's step: size and SHA-256 of every file, beside the step, written when all else is there.

    CHECKPOINTS/<step>/...                   what Orbax wrote
    CHECKPOINTS/<step>.manifest.json         {"format", "step", "files": {name: {"size", "sha256"}}}

A step without one is unfinished. Orbax notices no flipped bit; this does.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from data_pipelines import storage
from data_pipelines.errors import BadInput
from data_pipelines.storage import Place

_NAME = re.compile(r"(\d+)\.manifest\.json")
_FILE_KEYS = {"size", "sha256"}  # what a manifest says of each file

Difference = tuple[str, str, str]  # a file's name, what was found, what was expected


def finished_steps(folder: Place) -> list[int]:
    """Steps that have both a folder and a manifest, ascending; here or in an object store."""
    names = {storage.name_of(path) for path in storage.list_folder(folder)}
    return sorted(int(m[1]) for name in names if (m := _NAME.fullmatch(name)) and m[1] in names)


def unfinished(folder: Place) -> list[Place]:
    """What a killed save has left in a folder of checkpoints: all that begins with a step's number and is no part of a
    finished step."""
    finished, found = set(finished_steps(folder)), []
    for path in storage.list_folder(folder):
        number = re.match(r"\d+", name := storage.name_of(path))
        if number and not (int(number[0]) in finished and name in (number[0], f"{number[0]}.manifest.json")):
            found.append(path)
    return found


def manifest_path(step: Place) -> Place:
    return storage.join(storage.parent(step), f"{storage.name_of(step)}.manifest.json")


def digest(step: Place) -> str:
    """SHA-256 of a finished step's manifest: which weights these are, whatever their path and number."""
    return hashlib.sha256(storage.read_bytes(manifest_path(step))).hexdigest()


def manifest_text(step: Place, files: dict) -> str:
    """The manifest of a step; `files`: name -> {"size", "sha256"}."""
    return json.dumps({"format": 1, "step": int(storage.name_of(step)), "files": files}, indent=1)


def write_manifest(step: Path) -> None:
    """Writes the size and SHA-256 of every file of a committed step beside it, atomically."""
    files = {
        path.relative_to(step).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(step.rglob("*"))
        if path.is_file()
    }
    target = manifest_path(step)
    temporary = target.with_suffix(".tmp")
    temporary.write_text(manifest_text(step, files))
    os.replace(temporary, target)


def read_manifest(step: Place) -> dict | None:
    """{name: {"size", "sha256"}} of a step's files; None where there is no manifest, or one that was changed.

    Raises:
        BadInput, OSError: the object store or the disk gives no answer, which says nothing of the step.
    """
    try:
        written = storage.read_bytes(manifest_path(step))
    except storage.Missing:
        return None
    try:
        text = written.decode()
        files = json.loads(text)["files"]
        # written in exactly one way, so that a change shows anywhere in it
        whole = text == manifest_text(step, files) and all(f.keys() == _FILE_KEYS for f in files.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return files if whole else None


def no_manifest(step: Place) -> Difference:
    """What there is to say of a step where `read_manifest` found none."""
    name = storage.name_of(manifest_path(step))
    return f"../{name}", "no readable manifest", "the one written after the commit"


def differences(step: Path, shard: int, shards: int, content: bool) -> Iterator[Difference]:
    """What of a step here is not as its manifest says; arguments as `verify_step`."""
    files = read_manifest(step)
    if files is None:
        yield no_manifest(step)
        return
    for name in sorted(files)[shard::shards]:
        path, wanted = step / name, files[name]
        try:
            size = storage.file_size(path)
        except storage.Missing:
            yield name, "no such file", f"{wanted['size']} bytes"
            continue
        if size != wanted["size"]:
            yield other_size(name, size, wanted)
        elif content and (actual := _sha256(path)) != wanted["sha256"]:
            yield other_content(name, actual, wanted)


def other_size(name: str, size: int, wanted: dict) -> Difference:
    return name, f"{size} bytes", f"{wanted['size']} bytes (truncated or changed)"


def other_content(name: str, sha256: str, wanted: dict) -> Difference:
    return name, f"SHA-256 {sha256[:12]}...", f"{wanted['sha256'][:12]}... (the file's content has changed)"


def verify_step(step: Path, *, shard: int = 0, shards: int = 1, content: bool = True) -> None:
    """Compares a step with its manifest.

    Args:
        step: CHECKPOINTS/<step>.
        shard, shards: this process checks every `shards`-th file from `shard` on.
        content: compare SHA-256 too; False compares sizes only.

    Raises:
        BadInput: names the first file that is missing, has another size or another content.
    """
    for name, found, expected in differences(step, shard, shards, content):
        raise BadInput(str(step / name), found, expected, way_back(step))


def way_back(step: Path) -> str:
    """What to do about a damaged step."""
    others = [s for s in finished_steps(step.parent) if s < int(step.name)]
    for other in reversed(others):
        if not any(differences(step.parent / str(other), 0, 1, True)):
            back = f"delete the folder {step} to go on from step {other} (intact)"
            return f"restore the file from a copy, or {back}"
    return "restore the file from a copy; no older step here is intact"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
