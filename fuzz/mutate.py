"""Damage as it happens and as an attacker would do it: a pure function of the seed, the format and a number."""

import os
import random
import re
from pathlib import Path

from fuzz.seeds import Seed

_NUMBER = re.compile(rb"[-+]?\d+(?:\.\d+)?")
_WORDS = (
    b"0", b"-1", b"1", b"nan", b"inf", b"-inf", b"1e99", b"1e-99", b"1e400", b"99999999", b"4294967295", b"2147483648",
    b"9223372036854775808", b"-32769", b"0.0000001", b"", b" ", b"\xff\xfe", b"\xd9\xa3", b"..", b"../x", b"/dev/zero",
    b"~", b"\0", b"\n", b"\x14", b"\x1b[2J", b"%s%n", b"{}", b"null", b"true", b'"', b"x" * 300,
)  # fmt: skip
_INTEGERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def damaged(seed: Seed, rng: random.Random) -> dict[str, bytes]:
    """The seed's files with one to six faults, mostly in the header of the main one."""
    files = {name: bytearray(content) for name, content in seed.files.items()}
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        name = seed.main if rng.random() < 0.75 else rng.choice(sorted(files))
        whole = name != seed.main or rng.random() < 0.25
        end = len(files[name]) if whole else min(seed.head, len(files[name]))
        rng.choice(_FAULTS)(files[name], end, rng)
    return {name: bytes(content) for name, content in files.items()}


def misplaced(folder: Path, rng: random.Random) -> None:
    """Puts what is no file in place of one: a link to itself, to nothing, out of the folder, to a device; a pipe."""
    path = rng.choice(sorted(folder.iterdir()))
    path.unlink()
    target = rng.choice((path.name, "nothing", "../outside", "/dev/zero", "/etc/passwd", ".", None))
    if target is None:
        os.mkfifo(path)
    else:
        path.symlink_to(target)


def _bit(content: bytearray, end: int, rng: random.Random) -> None:
    if end:
        content[rng.randrange(end)] ^= 1 << rng.randrange(8)


def _byte(content: bytearray, end: int, rng: random.Random) -> None:
    if end:
        content[rng.randrange(end)] = rng.choice((0, 0x20, 0x2D, 0x30, 0x39, 0xFF, rng.randrange(256)))


def _binary(content: bytearray, end: int, rng: random.Random) -> None:
    size, at = rng.choice((1, 2, 4, 8)), rng.randrange(end + 1)
    value = rng.choice(_INTEGERS) + rng.choice((0, 0, -1, 1))
    content[at : at + size] = (value % 256**size).to_bytes(size, rng.choice(("little", "big")))


def _number(content: bytearray, end: int, rng: random.Random) -> None:
    """Another number, or no number, where one stands in text; of the same width where fields are fixed."""
    found = list(_NUMBER.finditer(bytes(content[:end])))
    if not found:
        return
    place, word = rng.choice(found), rng.choice((*_WORDS, b"%d" % rng.randrange(10 ** rng.randrange(1, 12))))
    if rng.random() < 0.6:
        size = max(place.end() - place.start(), min(len(word), 8))
        content[place.start() : place.start() + size] = word[:size].ljust(size)
    else:
        content[place.start() : place.end()] = word


def _word(content: bytearray, end: int, rng: random.Random) -> None:
    at, word = rng.randrange(end + 1), rng.choice(_WORDS)
    content[at : at + rng.choice((0, len(word)))] = word


def _cut(content: bytearray, end: int, rng: random.Random) -> None:
    del content[rng.randrange(end + 1) :]


def _remove(content: bytearray, end: int, rng: random.Random) -> None:
    at = rng.randrange(end + 1)
    del content[at : at + rng.choice((1, 2, 8, 64, 256))]


def _repeat(content: bytearray, end: int, rng: random.Random) -> None:
    at, size = rng.randrange(end + 1), rng.choice((1, 8, 16, 80, 256, 1024))
    content[at:at] = content[at : at + size] * rng.choice((1, 2, 8))


def _move(content: bytearray, end: int, rng: random.Random) -> None:
    source, to, size = rng.randrange(end + 1), rng.randrange(end + 1), rng.choice((1, 2, 4, 8, 16, 80))
    content[to : to + size] = content[source : source + size]


def _fill(content: bytearray, end: int, rng: random.Random) -> None:
    at, size = rng.randrange(end + 1), rng.choice((4, 16, 64, 256))
    stretch = len(content[at : at + size])
    content[at : at + size] = rng.randbytes(stretch) if rng.random() < 0.5 else bytes([rng.choice((0, 255))]) * stretch


def _extend(content: bytearray, end: int, rng: random.Random) -> None:
    content += rng.randbytes(rng.choice((1, 2, 3, 100, 5000)))


_FAULTS = (
    _bit,
    _byte,
    _binary,
    _binary,
    _number,
    _number,
    _number,
    _word,
    _cut,
    _remove,
    _repeat,
    _move,
    _fill,
    _extend,
)
