"""HDF5: the layouts of SPH, CODE-15 and OpenSignals (PLUX), MATLAB 7.3 files, and any that a sidecar describes.

Only datasets of numbers that lie in the file itself are read, and only as many of their rows as are asked for: what
links, filters and chunks declare is compared with what is stored before anything is allocated.
"""

import contextlib
import mmap
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_pipelines.errors import BadInput
from data_pipelines.formats.sidecar import (
    ChannelNote,
    Sidecar,
    as_signal,
    find_sidecar,
    read_sidecar,
    recording_of,
    rows_of,
)
from data_pipelines.recording import Channel, Recording

_MAGIC = b"\x89HDF\r\n\x1a\n"
_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
_MOST_INFLATION = 1000  # deflate's limit is 1032 to one; ECGs come out at 2 to 5
_MOST_BYTES = 1 << 33
_HARD = 0  # H5L_TYPE_HARD: what is there is in the file itself


def recognises(path: Path, head: bytes) -> bool:
    """Whether it is an HDF5 file of a known layout, or one that a sidecar describes, or one whose layout is damaged."""
    if head[:8] != _MAGIC and head[512:520] != _MAGIC:
        return False
    try:
        return find_sidecar(path) is not None or _layout(path) is not None
    except BadInput:
        return True  # half a file: reading it gives the reason


def items(path: Path) -> list[str]:
    """Names of the recordings stacked in a file; [""] where it holds one. A name that comes twice is named once."""
    return list(dict.fromkeys(_names(path)))


def _names(path: Path) -> list[str]:
    if not find_sidecar(path) and _layout(path) == "opensignals":
        return [""]
    described = _described(path)
    if not described.items:
        return [""]
    with _opened(path) as file:
        names = _dataset(path, file, described.items)
        return [_name(value) for value in _read(path, names, slice(None))]


def read(path: str | Path, item: str = "") -> Recording:
    """Reads one recording of an HDF5 file.

    Args:
        path: of the file. item: which recording, where several are stacked; see `items`.

    Returns:
        Channels as the layout or the sidecar names them. CODE-15's padding with zeros at both ends is cut off.

    Raises:
        BadInput: no known layout, a link out of the file, a dataset that is not of numbers or that would inflate out
            of all proportion, no such item or two of its name, the library is not installed.
    """
    path = Path(path)
    if not find_sidecar(path) and _layout(path) == "opensignals":
        return _read_opensignals(path)
    described = _described(path)
    with _opened(path) as file:
        if described.dataset:
            dataset = _dataset(path, file, described.dataset)
            where = _position(path, item) if described.items else slice(None)
            signals = rows_of(path, described, _read(path, dataset, where))
        else:
            sources = (_dataset(path, file, note.place or note.name) for note in described.channels)
            signals = [_read(path, source, slice(None)).reshape(-1) for source in sources]
    if described.path == path and described.items:
        signals = _without_padding(signals)
    return recording_of(path, described, signals, item)


def _layout(path: Path) -> str | None:
    """Which known layout a file has: "code15", "sph", "opensignals", or None; BadInput where it cannot be seen."""
    with _opened(path) as file:
        names = set(file)
        if {"tracings", "exam_id"} <= names:
            return "code15"
        if names == {"ecg"}:
            return "sph"
        device = _within(file, next(iter(names))) if len(names) == 1 else None
        if device is not None and "sampling rate" in device.attrs and _within(device, "raw") is not None:
            return "opensignals"
    return None


def _within(group, name: str):
    """What a group holds under a name, where it is in the file itself; None for links, which nothing may follow."""
    return group[name] if _link(group, name) == _HARD else None


def _link(group, name: str) -> int | None:
    """The type of the link under a name; None where there is none. No link is followed to see it."""
    import h5py

    place = name.encode("utf-8", "surrogateescape")
    if not isinstance(group, h5py.Group) or name == "." or not group.id.links.exists(place):
        return None
    return group.id.links.get_info(place).type


def _described(path: Path) -> Sidecar:
    """The sidecar of a file, or what its layout says."""
    if sidecar := read_sidecar(path):
        return sidecar
    layout = _layout(path)
    twelve = tuple(ChannelNote(lead, "mV", "") for lead in _LEADS)
    if layout == "sph":  # Liu et al. 2022: float16 [12, n], mV, 500 Hz
        return Sidecar(path, 500.0, "", twelve, "ecg", "channels", "", "", 50.0)
    if layout == "code15":  # Ribeiro et al. 2021: float32 [exams, 4096, 12], 400 Hz
        return Sidecar(path, 400.0, "", twelve, "tracings", "samples", "exam_id", "", 60.0)
    raise BadInput(path, "no known layout", "that of SPH, CODE-15 or OpenSignals, or a sidecar", "see docs/formats.md")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator:
    try:
        import h5py
    except ImportError:
        remedy = "pip install 'csfm_jax[formats]'"
        raise BadInput(path, "an HDF5 file, and no h5py", "h5py", remedy) from None
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except BadInput:
        raise
    except Exception as error:  # h5py raises whatever comes to hand for damaged files
        found = f"a damaged HDF5 file ({type(error).__name__})"
        raise BadInput(path, found, "a whole one", "replace it by the original") from None


def _dataset(path: Path, file, name: str):
    """A dataset of numbers that lies in this file, by its path; no link on the way may leave the file."""
    import h5py

    place = file
    for part in filter(None, name.split("/")):
        link = _link(place, part)
        if link is None:
            raise BadInput(path, "no dataset where one is described", f"a dataset {name!r}", "correct the description")
        if link != _HARD:
            raise BadInput(path, "a link in place of a dataset", "data in the file itself", "copy the data into it")
        place = place[part]
    if not isinstance(place, h5py.Dataset) or place.dtype.kind not in "iufS" or place.is_virtual or place.external:
        found, remedy = "something else than numbers in the file itself", "convert the file"
        if isinstance(place, h5py.Dataset) and h5py.check_string_dtype(place.dtype):  # they lie in heaps of their own
            found, remedy = "texts of variable length", "write them with a fixed one, as NumPy's dtype 'S16'"
        raise BadInput(path, found, f"a dataset {name!r} of numbers or of texts of one length", remedy)
    return place


def _read(path: Path, dataset, where) -> np.ndarray:
    stored, whole = dataset.id.get_storage_size(), dataset.size * dataset.dtype.itemsize
    chunk = int(np.prod(dataset.chunks or (1,))) * dataset.dtype.itemsize
    if whole > _MOST_INFLATION * max(stored, 1 << 10) or max(whole if where == slice(None) else 0, chunk) > _MOST_BYTES:
        found = f"a dataset that {stored} stored bytes inflate to {whole}"
        raise BadInput(path, found, f"at most {_MOST_INFLATION} times as many", "convert the file")
    return np.asarray(dataset[where])


def _attribute(path: Path, of, name: str, default):
    """A number or a text; other types are not even looked at: HDF5's library crashes on a damaged sequence's."""
    import h5py

    if name not in of.attrs:
        return default
    kinds = h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING
    if h5py.h5a.open(of.id, name.encode()).get_type().get_class() not in kinds:
        expected, remedy = "a number or a text", "replace the file by the original"
        raise BadInput(path, f"an attribute {name!r} of another type", expected, remedy)
    return of.attrs[name]


def _name(value) -> str:
    return value.decode("latin-1").strip("\0 ") if isinstance(value, bytes) else str(value)


@lru_cache(maxsize=8)
def _positions(path: Path, modified: int) -> dict[str, int | None]:
    """Name -> row; None for a name that comes twice."""
    positions: dict[str, int | None] = {}
    for number, name in enumerate(_names(path)):
        positions[name] = None if name in positions else number
    return positions


def _position(path: Path, item: str) -> int:
    positions = _positions(path, path.stat().st_mtime_ns)
    position = positions.get(item)
    if position is None:
        found = "two recordings of that name" if item in positions else "no recording of that name"
        raise BadInput(path, found, "one of the file's", "list them with formats.hdf5.items")
    return position


def _without_padding(signals: list[np.ndarray]) -> list[np.ndarray]:
    """Cuts off the zeros that all channels have at both ends: CODE-15 centres what is shorter than 4,096 samples."""
    there = np.flatnonzero(np.any(np.stack(signals) != 0, axis=0))
    if not there.size:
        return signals
    return [signal[there[0] : there[-1] + 1] for signal in signals]


def _sound_heaps(path: Path) -> bool:
    """Whether the objects of each global heap, where texts of any length are, get to its end.

    HDF5's library goes through them for ever where one takes no room (File Format Specification III.E).
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        heap = content.find(b"GCOL")
        while heap >= 0:
            end = min(heap + int.from_bytes(content[heap + 8 : heap + 16], "little"), len(content))
            at = heap + 16
            while at + 16 <= end:
                index, size = (int.from_bytes(content[at + i : at + j], "little") for i, j in ((0, 2), (8, 16)))
                # object 0 is the free room, its own header included
                if size > len(content) or (index == 0 and size < 16):
                    return False
                at += size if index == 0 else 16 + size + -size % 8
            heap = content.find(b"GCOL", heap + 4)
    return True


def _read_opensignals(path: Path) -> Recording:
    """One device's raw channels, in counts of its converter: the transfer function depends on the sensor model."""
    if not _sound_heaps(path):
        raise BadInput(path, "a heap of texts without an end", "a whole file", "replace it by the original")
    with _opened(path) as file:
        device = _within(file, next(iter(file)))
        rate = float(_attribute(path, device, "sampling rate", 0))
        channels = []
        for name in sorted(n for n in _within(device, "raw") if n.startswith("channel_")):
            dataset = _dataset(path, file, f"{device.name}/raw/{name}")
            sensor = str(_attribute(path, dataset, "sensor", ""))
            known = {"BVP": "PPG", "EEG": "EEG other", "EMG": "EMG other", "ECG": "ECG other", "RESPIRATION": "RESP",
                     "FSPO2": "PPG other" if channels else "PPG"}  # fmt: skip
            label = known.get(sensor.upper(), f"channel {len(channels) + 1}")
            signal = as_signal(_read(path, dataset, slice(None)))
            channels.append(Channel(label, rate, "a.u.", signal))
    if not channels or not 0 < rate < 1e7:
        raise BadInput(path, "no raw channels", "OpenSignals channels", "export the recording again")
    return Recording(tuple(channels), subject=path.stem, study=path.stem, source="opensignals")
