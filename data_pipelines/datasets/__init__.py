"""The datasets this package knows, one a module: where their files, subjects, splits, labels and reports are."""

import importlib
import os
import re
from pathlib import Path

from data_pipelines import formats
from data_pipelines.datasets.source import Entry, Source
from data_pipelines.errors import BadInput

__all__ = ["Entry", "Source", "known_datasets", "left_out", "open_sources"]

_KNOWN = (
    "ptbxl:PTBXL", "ptbxl:PTBXLExtra", "mimic_iv_ecg:MIMICIVECG", "mimic3_waveform:MIMIC3Waveform", "code15:CODE15",
    "code15:CODE15HDF5", "cinc2021:CinC2021", "vtac:VTaC", "cinc2015:CinC2015", "bidmc:BIDMC", "mitdb:MITDB",
    "cinc2016:CinC2016", "cinc2017:CinC2017", "ephnogram:EPHNOGRAM", "cinc2018:CinC2018", "sleep_edf:SleepEDF",
    "echonext:EchoNext", "sph:SPH",
)  # fmt: skip


def open_sources(where: str | Path, labels: Path | None = None) -> list[Source]:
    """Finds the datasets at a place.

    Args:
        where: "simulated" (options: "simulated:subjects=200,seed=0"); "tfds:FOLDER" (see `tfds_source`); the folder of
            a known dataset; a folder of such folders; or any other folder with recordings, which becomes one source
            named after the folder.
        labels: a table of a site's own labels (`site_labels.read_labels`) for that other folder.

    Returns:
        One source or, for a folder of datasets, one for each that is recognised, by folder name.

    Raises:
        BadInput: the folder is missing, or no recording is in it; or labels are given of anything else.
    """
    sources = _found(where, labels)
    if labels is not None and not isinstance(sources[0], _folder_class()):
        found = f"{', '.join(source.name for source in sources)}, which has labels of its own"
        raise BadInput("--labels", found, "a folder of recordings that is no known dataset", "leave it out")
    return sources


def _folder_class() -> type[Source]:
    from data_pipelines.datasets.folder import RecordingFolder

    return RecordingFolder


def _found(where: str | Path, labels: Path | None) -> list[Source]:
    if str(where).split(":")[0] == "simulated":
        from data_pipelines.datasets.simulated import Simulated

        return [Simulated.from_text(str(where))]
    if str(where).startswith("tfds:"):
        from data_pipelines.datasets.tfds_source import TFDSSource

        return [TFDSSource.from_text(str(where))]
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(where)):
        raise BadInput("--source", "an address", "a folder on this machine", "download it first, or mount it")
    folder = Path(where)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise BadInput(folder, found, "a folder of recordings, tfds:FOLDER or simulated", "check the path")
    folder = folder.resolve()
    if source := _recognise(folder):
        return [source]
    children = sorted(child for child in folder.iterdir() if child.is_dir())
    if sources := [source for child in children if (source := _recognise(child))]:
        return sources
    if not _holds_recordings(folder):
        expected = f"recordings ({', '.join(formats.READERS)}) or a known dataset"
        notes = formats.left_out_notes(formats.find(folder)[1], folder)
        found = "; ".join(["no recording", *notes])
        raise BadInput(folder, found, expected, "check the path or the download")
    return [_folder_class()(folder, labels)]


def left_out(where: str | Path, sources: list[Source]) -> list[str]:
    """Subfolders with recordings that none of `open_sources(where)` reads: what a user might take to be included."""
    folder = Path(where).resolve()
    if not folder.is_dir() or any(source.root in (folder, *folder.parents) for source in sources):
        return []
    others = sorted({child for child in folder.iterdir() if child.is_dir()} - {source.root for source in sources})
    return [child.name for child in others if _holds_recordings(child)]


def _holds_recordings(folder: Path) -> bool:
    return any(formats.reader_of(path) for path in folder.rglob("*") if path.is_file())


def known_datasets() -> list[type[Source]]:
    """The classes of the public datasets, in the order in which a folder is tried."""
    pairs = (known.split(":") for known in _KNOWN)
    return [getattr(importlib.import_module(f"data_pipelines.datasets.{module}"), name) for module, name in pairs]


def _recognise(folder: Path) -> Source | None:
    if not os.access(folder, os.R_OK | os.X_OK):  # listing it tells; a closed folder beside others is left out
        return None
    return next((dataset(folder) for dataset in known_datasets() if dataset.recognises(folder)), None)
