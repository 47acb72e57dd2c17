"""MATLAB files of version 5: the layout of EPHNOGRAM, and any that a sidecar describes.

SciPy reads them, from memory and inflated here within bounds: from a file, or while it inflates, it allocates whatever
length an element declares. Its variables are listed before one is loaded. Files of version 7.3 are HDF5, and read as
such. Signals beside a WFDB header are read through the header.
"""

import io
import zlib
from pathlib import Path

import numpy as np

from data_pipelines.errors import BadInput
from data_pipelines.formats.sidecar import as_signal, find_sidecar, read_sidecar, recording_of, rows_of
from data_pipelines.recording import Channel, Recording

_MAGIC = b"MATLAB 5.0 MAT-file"
_MOST_INFLATION = 100
_COMPRESSED, _MATRIX = 15, 14
# types of a matrix's first parts (flags, dimensions, name) and of numbers; classes of arrays
_FIRST_PARTS, _NUMBER_TYPES = [6, 5, 1], {1, 2, 3, 4, 5, 6, 7, 9, 12, 13}
_NUMERIC_CLASSES, _OPAQUE = range(6, 16), 17


def recognises(path: Path, head: bytes) -> bool:
    """Whether it is a version 5 file: described by a sidecar, of EPHNOGRAM, or too damaged to list what it holds."""
    if not head.startswith(_MAGIC):
        return False
    if find_sidecar(path):
        return True
    try:
        return {"ECG", "PCG", "fs"} <= set(_variables(path, _inflated(path)))
    except BadInput:
        return True  # half a file: reading it gives the reason


def read(path: str | Path, item: str = "") -> Recording:
    """Reads a MATLAB file.

    Args:
        path: of the file.

    Returns:
        EPHNOGRAM: ECG and PCG in V at `fs` Hz; otherwise what the sidecar says.

    Raises:
        BadInput: a variable that is missing, is no array of numbers, or inflates out of all proportion; a damaged file.
    """
    path = Path(path)
    if sidecar := read_sidecar(path):
        names = [sidecar.dataset] if sidecar.dataset else [note.place or note.name for note in sidecar.channels]
        arrays = _load(path, names)
        if sidecar.dataset:
            return recording_of(path, sidecar, rows_of(path, sidecar, arrays[0]))
        return recording_of(path, sidecar, [array.reshape(-1) for array in arrays])
    ecg, pcg, rate = _load(path, ["ECG", "PCG", "fs"])
    if rate.size != 1 or not 0 < float(rate.item()) < 1e7:
        raise BadInput(path, "a sampling rate fs that is none", "one number of Hz", "replace the file")
    channels = tuple(
        Channel(name, float(rate.item()), "V", as_signal(signal)) for name, signal in (("ECG", ecg), ("PCG", pcg))
    )
    return Recording(channels, subject=path.stem, study=path.stem, source="matlab")


def _variables(path: Path, content: io.BytesIO) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, class) of every variable, without their values."""
    from scipy.io import whosmat

    try:
        return {name: (shape, kind) for name, shape, kind in whosmat(content)}
    except Exception as error:  # SciPy's parser raises whatever comes to hand
        raise _damaged(path, error) from None


def _load(path: Path, names: list[str]) -> list[np.ndarray]:
    from scipy.io import loadmat

    content = _inflated(path)
    size, listed = content.getbuffer().nbytes, _variables(path, content)
    for name in names:
        shape, kind = listed.get(name, ((), ""))
        if kind not in ("double", "single", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))):
            found = "no such variable" if name not in listed else f"a variable of class {kind}"
            raise BadInput(path, found, f"an array {name!r} of numbers", "correct the description")
        if not 0 < np.prod(shape, dtype=float) <= size:
            raise BadInput(path, "a variable out of all proportion to the file", "its samples", "replace the file")
    content.seek(0)
    try:
        values = loadmat(content, variable_names=names)
        arrays = [np.asarray(values[name]) for name in names]
    except Exception as error:
        raise _damaged(path, error) from None
    if any(array.dtype.kind not in "iuf" for array in arrays):
        raise BadInput(path, "complex numbers", "real ones", "correct the description")
    return arrays


def _damaged(path: Path, error: Exception) -> BadInput:
    found = f"a damaged MATLAB file ({type(error).__name__})"
    return BadInput(path, found, "a whole one", "replace it by the original")


def _inflated(path: Path) -> io.BytesIO:
    """The file with its compressed elements inflated; BadInput where that goes on for too long."""
    out = io.BytesIO()
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            out.write(file.read(128))
            order = "little" if out.getvalue()[126:128] == b"IM" else "big"
            while len(tag := file.read(8)) == 8:
                kind, length = int.from_bytes(tag[:4], order), int.from_bytes(tag[4:], order)
                if length > size:
                    raise BadInput(path, "an element longer than the file", "its samples", "replace the file")
                if kind == _COMPRESSED:
                    _inflate(path, file, length, out, _MOST_INFLATION * size)
                else:
                    out.write(tag + file.read(length))
    except (OSError, zlib.error) as error:
        raise _damaged(path, error) from None
    _check_elements(path, out.getbuffer(), order)
    out.seek(0)
    return out


def _check_elements(path: Path, content: memoryview, order: str) -> None:
    """BadInput where an element, or a part of a matrix, is longer than what it is in, or of an unknown type.

    SciPy allocates what a length says and looks an unknown type up beyond its table: the process ends there.
    """
    at = 128
    while at + 8 <= len(content):
        kind, length = (int.from_bytes(content[at + i : at + i + 4], order) for i in (0, 4))
        end = at + 8 + length
        if end > len(content) or (kind == _MATRIX and not _sound(content, at + 8, end, order)):
            raise BadInput(path, "an element that is not as its length or type says", "samples", "replace the file")
        at = end


def _sound(content: memoryview, part: int, end: int, order: str) -> bool:
    """Whether a matrix has flags, dimensions, a name, and numbers if its class is a numeric one, all inside it."""
    kinds, numeric, opaque = [], False, False
    while part + 8 <= end:
        kind, length = (int.from_bytes(content[part + i : part + i + 4], order) for i in (0, 4))
        small = kind >> 16  # up to four bytes stand in the tag itself, with their number in its upper half
        if small > 4:
            return False
        if not kinds:
            class_ = int.from_bytes(content[part + 8 : part + 12], order) & 0xFF
            numeric, opaque = class_ in _NUMERIC_CLASSES, class_ == _OPAQUE
        kinds.append(kind & 0xFFFF)
        part += 8 if small else 8 + length + -length % 8
    if part > end + 7 or kinds[:1] != _FIRST_PARTS[:1]:
        return False
    return opaque or (kinds[:3] == _FIRST_PARTS and (not numeric or set(kinds[3:]) <= _NUMBER_TYPES))


def _inflate(path: Path, file, left: int, out: io.BytesIO, most: int) -> None:
    stream = zlib.decompressobj()
    while left and (piece := file.read(min(left, 1 << 16))):
        left -= len(piece)
        while piece:
            out.write(stream.decompress(piece, 1 << 20))
            piece = stream.unconsumed_tail
            if out.tell() > most:
                raise BadInput(path, "an element that inflates without end", "samples", "replace the file")
