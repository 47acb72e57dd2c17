"""Who a recording is of, as a keyed hash, and the split that follows; nothing else of a subject leaves a source."""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from data_pipelines.errors import BadInput

# Published datasets are hashed alike everywhere, so that stores made at two places can be compared and merged.
PUBLIC_KEY = b"csfm_jax: subjects of published datasets"


def keyed(key: bytes, *parts: str) -> str:
    """64 hex digits: HMAC-SHA256 of the parts."""
    return hmac.new(key, "\0".join(parts).encode(), hashlib.sha256).hexdigest()


def hashed(key: bytes, people: str, of: str) -> str:
    """16 hex digits that stand for a subject or a study of a source in every store made with the same key."""
    return keyed(key, people, of)[:16]


def hashed_study(key: bytes, source: str, study: str) -> str:
    """As `hashed`, for a recording, so that a study and a subject of one name do not share a hash."""
    return hashed(key, source, "study\0" + study)


def split_of(key: bytes, people: str, subject: str) -> str:
    """Split of a subject without an official one: by keyed hash, 80 % train, 10 % validation, 10 % test."""
    share = int(keyed(key, people, subject, "split")[:8], 16) / 2**32
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def anonymous(reason: str, names: Iterable[str]) -> str:
    """A reason without any of the names, or any part of one that is a path (which may be a patient's name)."""
    words = {word for name in names for word in (name, *re.split(r"[/.#]", name))}
    for word in sorted(filter(None, words), key=len, reverse=True):
        reason = re.sub(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", "<hidden>", reason)
    return reason


def fingerprint(key: bytes) -> str:
    """16 hex digits that tell whether two stores were made with one key, and nothing about the key."""
    return hashlib.sha256(key).hexdigest()[:16]


def new_key(path: Path) -> bytes:
    """Makes a site's key: 64 random hex digits in a file that only its owner can read; BadInput if it exists."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
    except FileExistsError:
        raise BadInput(f"--new-key={path}", "an existing file", "a new one", "use it with --key-file") from None
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"--new-key={path}", "no such folder", "a file in an existing folder", "correct it") from None
    return read_key(path)


def read_key(path: Path) -> bytes:
    """A site's key; BadInput if the file is not there or too short to keep ids from being guessed."""
    try:
        key = Path(path).read_bytes().strip()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        found = "a folder" if isinstance(error, IsADirectoryError) else "no such file"
        raise BadInput(f"--key-file={path}", found, "a key", "make one with --new-key") from None
    if len(key) < 32:
        raise BadInput(f"--key-file={path}", f"{len(key)} bytes", "32 or more", "make one with --new-key")
    return key
