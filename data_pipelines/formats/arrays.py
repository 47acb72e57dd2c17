"""NumPy arrays (.npy, .npz), described by a sidecar. Nothing is unpickled."""

import zipfile
from pathlib import Path

import numpy as np

from data_pipelines.errors import BadInput
from data_pipelines.formats.sidecar import find_sidecar, read_sidecar, recording_of, rows_of
from data_pipelines.recording import Recording

_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_MOST_INFLATION = 100
_MOST_HEADER = 10_000  # bytes; NumPy's own limit


def recognises(path: Path, head: bytes) -> bool:
    """Whether it is a NumPy file that a sidecar describes."""
    array = head.startswith(_NPY) or (head.startswith(_ZIP) and path.suffix == ".npz")
    return array and find_sidecar(path) is not None


def read(path: str | Path, item: str = "") -> Recording:
    """Reads a NumPy file.

    Args:
        path: of an array of all channels, or of an archive of which the sidecar says what to take.

    Raises:
        BadInput: no array of numbers, one that declares more than the file holds, an archive that inflates out of all
            proportion, a shape that is not the sidecar's.
    """
    path = Path(path)
    sidecar = read_sidecar(path)
    if sidecar is None:
        raise BadInput(path, "no sidecar", f"{path.name}.json", "describe rate, channels and unit in it")
    try:
        if path.suffix == ".npz":
            names = [sidecar.dataset] if sidecar.dataset else [n.place or n.name for n in sidecar.channels]
            arrays = _archive(path, names)
        else:
            arrays = [_array(path)]
    except BadInput:
        raise
    except Exception as error:  # NumPy's header is tokenized as Python, and a zip file may have any damage
        found = f"a damaged file, or one of objects ({type(error).__name__})"
        raise BadInput(path, found, "an array of numbers", "save it again without objects") from None
    whole = path.suffix != ".npz" or bool(sidecar.dataset)
    signals = rows_of(path, sidecar, arrays[0]) if whole else [array.reshape(-1) for array in arrays]
    return recording_of(path, sidecar, signals)


def _array(path: Path) -> np.ndarray:
    # mapped: a header that declares more than the file holds fails before anything is allocated
    array = np.load(path, mmap_mode="r", allow_pickle=False, max_header_size=_MOST_HEADER)
    return _numbers(array)


def _archive(path: Path, names: list[str]) -> list[np.ndarray]:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        for name in names:
            info = members.get(f"{name}.npy")
            if info is None:
                raise BadInput(path, "no such array", f"an array {name!r}", "correct the description")
            if info.file_size > _MOST_INFLATION * size:
                raise BadInput(path, "an archive that inflates out of all proportion", "samples", "replace the file")
            with archive.open(info) as member:
                _check_header(member, info.file_size)
    with np.load(path, allow_pickle=False, max_header_size=_MOST_HEADER) as arrays:
        return [_numbers(arrays[name]) for name in names]


def _check_header(member, size: int) -> None:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member, max_header_size=_MOST_HEADER)
    if np.prod(shape, dtype=float) * dtype.itemsize > size:
        raise ValueError("declares more than it holds")


def _numbers(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2):
        raise ValueError("no numbers")
    return array
