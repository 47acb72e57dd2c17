"""Readers of signal files, one format a module, chosen by a file's content and not by its name.

Each module has

    recognises(path, head) -> bool      from the file's first `HEAD` bytes (and, for WFDB, a header beside it)
    read(path, item="") -> Recording    BadInput for whatever is wrong with the file

and, where its format has them,

    person(path, item="") -> str        the id of the patient in the file, without reading signals; "" = not told
    items(path) -> list[str]            names of the recordings in a file that holds several: read as "path#item"
    parts(path) -> list[Path]           other files that belong to the recording

and imports the library it needs only when it reads: the extra `[formats]` installs them.
"""

import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from data_pipelines.errors import BadInput
from data_pipelines.formats.sidecar import find_sidecar, read_sidecar
from data_pipelines.inside import inside
from data_pipelines.recording import Recording

HEAD = 4096
# what files beside recordings are; another suffix may be a part of a name ("record.Miller")
_USUAL_SUFFIXES = frozenset(
    "atr avi bak bdf bmp bz2 cfg csv dat db dcm doc docx edf eeg gif gz h5 hdf5 hdr hea htm html ini ipynb jpeg jpg "
    "json jsonl log lst m mat md mov mp3 mp4 npy npz parquet pdf pickle pkl png ppt pptx ps py qrs r rar rtf sh svg "
    "tar tex tgz tif tiff toml tsv txt vhdr vmrk wav xls xlsx xml xyz yaml yml xz zip zst".split()
)
# those with an unmistakable beginning come first; `tables` takes any text, if a sidecar describes it
READERS = ("edf", "dicom", "hdf5", "matlab", "wav", "arrays", "vendor", "wfdb", "tables")
_DESCRIBED = tuple(f"{__name__}.{name}" for name in ("hdf5", "matlab", "wav", "arrays", "tables"))  # by a sidecar


def read(path: str | Path, root: str | Path | None = None) -> Recording:
    """Reads one recording.

    Args:
        path: any file of it: a WFDB header or signal file or the record's name without an extension, an EDF file, ...;
            "file#item" where a file holds several recordings.
        root: folder that neither the file nor those which it names may lead out of; None: the file's own folder.

    Returns:
        The recording; its study is the file's name, and so is its subject where the file does not tell persons.

    Raises:
        BadInput: the file is missing, is in no known format, or contradicts itself.
    """
    file, item = split_item(Path(path))
    file = _with_header(file)
    module = reader_of(file)
    if module is None:
        found = "no such file" if not file.exists() else "a folder" if file.is_dir() else "a file of no known format"
        raise BadInput(str(path), found, f"a file in one of the formats {', '.join(READERS)}", "check the path")
    _stay_inside(module, file, Path(root) if root is not None else None)
    return module.read(file, item)


def reader_of(path: Path) -> ModuleType | None:
    """The module that reads a file, by its content; None where none does, or there is no such file."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    modules = (importlib.import_module(f"data_pipelines.formats.{name}") for name in READERS)
    return next((module for module in modules if module.recognises(path, head)), None)


def find(folder: Path, without: Path | None = None) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """The recordings below a folder.

    Args:
        without: a file that is none, a table of the folder's labels.

    Returns:
        (path relative to the folder, or "path#item"; person, or "") of each, sorted; and, by suffix ("other" where it
        is no usual one, "unreadable" where it cannot be opened), how many other files there are that no reader knows.
        A file that belongs to another's recording is in neither.
    """
    found: dict[Path, ModuleType] = {}
    unknown: list[Path] = []
    belonging: set[Path] = set()
    for path in sorted(Path(place, name) for place, _, names in os.walk(folder) for name in names):
        if path.name.startswith(".") or not path.is_file() or (without and path.samefile(without)):
            continue
        if module := reader_of(path):
            found[path] = module
            belonging.update(_parts(module, path))
            if described := find_sidecar(path):
                belonging.add(described)
        else:
            unknown.append(path)
    out = []
    for path, module in found.items():
        if path in belonging:
            continue
        name = path.relative_to(folder).as_posix()
        told = _subject(path, folder)
        for item in _items(module, path, folder):
            out.append((f"{name}#{item}" if item else name, _person(module, path, item, folder) or told))
    suffixes: dict[str, int] = {}
    for path in unknown:
        if path not in belonging:
            suffix = path.suffix.lower()
            suffix = suffix if suffix.removeprefix(".") in {"", *_USUAL_SUFFIXES} else "other"
            suffix = suffix if os.access(path, os.R_OK) else "unreadable"
            suffixes[suffix] = suffixes.get(suffix, 0) + 1
    return out, suffixes


def left_out_notes(suffixes: dict[str, int], folder: Path) -> list[str]:
    """What a user might take to be read below a folder, and is not, in words without any name.

    Args:
        suffixes: as `find` counts them.
    """
    notes = []
    if suffixes:
        kinds = ", ".join(f"{suffix or 'no suffix'} ({n})" for suffix, n in sorted(suffixes.items()))
        notes.append(f"{sum(suffixes.values())} files of no known format were left out: {kinds}")
    closed: list[OSError] = []
    links = sum(
        os.path.islink(os.path.join(place, name))
        for place, names, _ in os.walk(folder, onerror=closed.append)
        for name in names
    )
    if closed:
        notes.append(f"folders that cannot be opened were left out: {len(closed)}")
    if links:
        notes.append(f"links to folders were not followed: {links}")
    return notes


# A damaged file is listed all the same: reading it raises, and bulk work writes the reason down.
def _parts(module: ModuleType, path: Path) -> list[Path]:
    try:
        return module.parts(path) if hasattr(module, "parts") else []
    except BadInput:
        return []


def _items(module: ModuleType, path: Path, folder: Path) -> list[str]:
    try:
        _stay_inside(module, path, folder, parts=())
        return module.items(path) if hasattr(module, "items") else [""]
    except BadInput:
        return [""]


def _person(module: ModuleType, path: Path, item: str, folder: Path) -> str:
    try:
        return module.person(inside(path, folder), item) if hasattr(module, "person") else ""
    except BadInput:
        return ""


def _subject(path: Path, folder: Path) -> str:
    """Whom the sidecar names: for files of every format, since one may lie beside any."""
    try:
        described = find_sidecar(path)
        return read_sidecar(path).subject if described and inside(described, folder) else ""
    except BadInput:
        return ""


def split_item(path: Path) -> tuple[Path, str]:
    """File and item; both may have "#" in their names, so the longest name of a file counts."""
    name = str(path)
    at = len(name)
    while at > 0:
        if os.path.isfile(name[:at]):
            return Path(name[:at]), name[at + 1 :]
        at = name.rfind("#", 0, at)
    return path, ""


def _with_header(path: Path) -> Path:
    """The WFDB header of a record's name or of one of its signal files, else the path itself."""
    if path.suffix != ".hea":
        # both "rec.dat" and a record name with a dot in it ("s0010.v2") may have a header beside them
        for header in (path.with_name(path.name + ".hea"), path.with_suffix(".hea")):
            if header.is_file():
                return header
    return path


def _stay_inside(module: ModuleType, path: Path, root: Path | None, parts: Iterable[Path] | None = None) -> None:
    if parts is None:
        parts = module.parts(path) if hasattr(module, "parts") else ()
    # the file's own folder, or that of what it links to: its signal files lie there
    folders = [root] if root is not None else [path.parent, inside(path, Path("/")).resolve().parent]
    for file in (path, *parts):
        inside(file, *folders)
    if module.__name__ in _DESCRIBED and (described := find_sidecar(path)):
        inside(described, root if root is not None else described.parent)
