"""The sidecar: what a user writes beside files that do not say everything themselves.

`x.csv.json` describes `x.csv`; `recordings.json` describes every such file of its folder and of those below. Fields:

    {
      "rate": 250,                        Hz; of a table with a time column, may be left out: "time": "t"
      "channels": ["II", "PPG"],          in the file's order, or {"name": "II", "unit": "mV", "from": "lead2"} each,
                                          "from" being a column of a table, a dataset of an HDF5 file, a variable
      "unit": "mV",                       of channels that give none
      "dataset": "tracings",              where one array holds all channels
      "axis": "samples",                  what the array's rows are: "samples" or "channels"
      "items": "exam_id",                 the dataset that names the recordings stacked along the array's first axis
      "subject": "ward-7-0012",           who it is of
      "mains": 50                         powerline frequency, Hz
    }
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.errors import BadInput
from data_pipelines.recording import Channel, Recording

FOLDER_NAME = "recordings.json"
_FIELDS = ("rate", "time", "channels", "unit", "dataset", "axis", "items", "subject", "mains")
_LARGEST = 1 << 20  # bytes
_PARENTS = 3
_HIGHEST_MAINS = 1000  # Hz; aircraft have 400


@dataclass(frozen=True)
class ChannelNote:
    """One channel: its name, its unit, and where in the file it is ("" = by position)."""

    name: str
    unit: str
    place: str


@dataclass(frozen=True)
class Sidecar:
    """A checked sidecar; see the module. `rate` is 0.0 where a time column tells it; `path` is named in errors."""

    path: Path
    rate: float
    time: str
    channels: tuple[ChannelNote, ...]
    dataset: str
    axis: str
    items: str
    subject: str
    mains: float | None


def find_sidecar(path: Path) -> Path | None:
    """The description of a file, its own or its folder's; None where there is none."""
    own = path.with_name(path.name + ".json")
    folders = [path.parent, *path.parent.parents][: _PARENTS + 1]
    return next((p for p in (own, *(folder / FOLDER_NAME for folder in folders)) if p.is_file()), None)


def read_sidecar(path: Path) -> Sidecar | None:
    """The description of a data file; None where there is none.

    Raises:
        BadInput: the description is no JSON, or has an unknown, missing or senseless field.
    """
    file = find_sidecar(path)
    if file is None:
        return None
    try:
        values = json.loads(file.read_bytes()) if file.stat().st_size <= _LARGEST else None
    except (OSError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise BadInput(file, "no JSON object", "a description of recordings", "see docs/formats.md")
    for name in values:
        if name not in _FIELDS:
            raise BadInput(file, f"an unknown field {str(name)[:32]!r}", ", ".join(_FIELDS), "correct it")
    return _checked(file, values)


def _checked(file: Path, values: dict) -> Sidecar:
    def get(name, kind, default):
        value = values.get(name, default)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise BadInput(f"{file}: {name}", "a value of another kind", "see docs/formats.md", "correct it")
        return value

    rate, mains = get("rate", (int, float), 0), get("mains", (int, float, type(None)), None)
    if mains is not None and not 0 < mains < _HIGHEST_MAINS:
        raise BadInput(f"{file}: mains", "no frequency of mains", "a number of Hz, as 50 or 60", "correct it")
    if not (0 < rate < 1e7 or (rate == 0 and "time" in values)):
        raise BadInput(f"{file}: rate", "no rate", "a number of Hz above 0, or a time column", "add it")
    if get("axis", str, "samples") not in ("samples", "channels"):
        raise BadInput(f"{file}: axis", "another word", '"samples" or "channels"', "correct it")
    channels = tuple(_channel(file, note, get("unit", str, "")) for note in get("channels", list, None))
    if not channels:
        raise BadInput(f"{file}: channels", "none", "at least one", "name them")
    return Sidecar(
        file, float(rate), get("time", str, ""), channels, get("dataset", str, ""), get("axis", str, "samples"),
        get("items", str, ""), get("subject", str, ""), float(mains) if mains is not None else None,
    )  # fmt: skip


def _channel(file: Path, note, unit: str) -> ChannelNote:
    note = {"name": note} if isinstance(note, str) else note
    known = isinstance(note, dict) and set(note) <= {"name", "unit", "from"}
    if not known or not all(isinstance(value, str) for value in note.values()) or not note.get("name"):
        raise BadInput(f"{file}: channels", "another form", 'a name, or {"name", "unit", "from"}', "correct it")
    return ChannelNote(note["name"], note.get("unit", unit), note.get("from", ""))


def recording_of(path: Path, sidecar: Sidecar, signals: list[np.ndarray], item: str = "") -> Recording:
    """A recording from what a sidecar says and one array [samples] a channel; not finite = invalid."""
    study = f"{path.stem}#{item}" if item else path.stem
    channels = tuple(
        Channel(note.name, sidecar.rate, note.unit, as_signal(signal))
        for note, signal in zip(sidecar.channels, signals)
    )
    if not any(len(channel.signal) for channel in channels):
        raise BadInput(path, "no samples", "at least one", "leave the file out")
    return Recording(channels, sidecar.subject or study, study, path.suffix.lstrip("."), mains=sidecar.mains)


def rows_of(path: Path, sidecar: Sidecar, array: np.ndarray) -> list[np.ndarray]:
    """The channels of one array, [samples, channels] or [channels, samples] as the sidecar says."""
    array = np.atleast_2d(array) if sidecar.axis == "channels" or array.ndim > 1 else array[:, None]
    rows = array if sidecar.axis == "channels" else array.T
    if array.ndim != 2 or len(rows) != len(sidecar.channels):
        found = f"an array of shape {array.shape}"
        expected = f"{len(sidecar.channels)} channels, with {sidecar.axis} as rows, as {sidecar.path.name} says"
        raise BadInput(path, found, expected, "correct the description")
    return list(rows)


def as_signal(values: np.ndarray) -> np.ndarray:
    """float32, NaN where not finite."""
    with np.errstate(over="ignore"):
        signal = np.array(values, np.float32).reshape(-1)
    signal[~np.isfinite(signal)] = np.nan
    return signal
