"""The files of an exported folder: nothing in it is used, and no code in it is imported, before it was verified.

Needs the standard library alone, and is the one file that nothing else can check.
"""

import hashlib
import json
from pathlib import Path

MANIFEST = "manifest.json"


class Refused(ValueError):
    """A file of the folder is missing, was changed or does not belong to the others, or the input cannot be used; the
    message is one line."""


def verify(folder, suffixes=None):
    """Compares the files of an exported folder with its manifest: sizes and SHA-256.

    Args:
        folder: an exported folder.
        suffixes: look only at files with these endings, e.g. (".py",); None takes all.

    Raises:
        Refused: naming the first file that is missing, truncated or changed.
    """
    folder = Path(folder)
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        files = json.loads(text)["files"]
        # it is written in exactly one way, so that a flipped bit shows anywhere in it, also in a blank
        whole = text == manifest_text(files)
    except FileNotFoundError:
        raise Refused(f"{folder / MANIFEST}: found no such file; expected the manifest; export again") from None
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise Refused(f"{folder / MANIFEST}: found a changed manifest; expected the one written; export or copy again")
    for name, entry in sorted(files.items()):
        if suffixes is None or name.endswith(suffixes):
            _verify_file(folder / name, entry)


def manifest_text(files):
    """The manifest that lists `files`: name -> {"size", "sha256"}."""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    content = {"format": "csfm-export", "version": 1, "files": files, "digest": digest}
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _verify_file(path, entry):
    remedy = "export or copy the folder again"
    if not path.is_file():
        raise Refused(f"{path}: found no such file; expected {entry['size']} bytes; {remedy}")
    if path.stat().st_size != entry["size"]:
        raise Refused(f"{path}: found {path.stat().st_size} bytes; expected {entry['size']}; {remedy}")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    if digest.hexdigest() != entry["sha256"]:
        raise Refused(f"{path}: found changed content; expected the SHA-256 of {MANIFEST}; {remedy}")


def verify_beside(file, suffixes=None):
    """Verifies the folder that a file of it lies in; the copy that transformers keeps in its own cache has no manifest
    beside it, and is let pass unless everything (no suffixes) is asked for."""
    here = Path(file).resolve().parent
    if suffixes is None or (here / MANIFEST).is_file():
        verify(here, suffixes)
