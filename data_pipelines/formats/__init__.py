"""Readers of signal files, one format a module; each has `read(path) -> Recording`."""

import importlib
from pathlib import Path

from data_pipelines.errors import BadInput
from data_pipelines.recording import Recording

_READERS = {".hea": "data_pipelines.formats.wfdb"}


def read(path: str | Path) -> Recording:
    """Reads one recording.

    Args:
        path: a WFDB header (`x.hea`), one of its signal files (`x.dat`, `x.mat`), or the record's name without an
            extension (`x`).

    Returns:
        The recording; its study is the record's name, and so is its subject, since the file does not tell persons.

    Raises:
        BadInput: the file is missing, is in no known format, or contradicts itself.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        # both "rec.dat" and a record name with a dot in it ("s0010.v2") may have a header beside them
        headers = (path.with_name(path.name + ".hea"), path.with_suffix(".hea"))
        path = next((header for header in headers if header.is_file()), path)
    if path.suffix not in _READERS:
        found = "no such file" if not path.exists() else "a folder" if path.is_dir() else "a file without a WFDB header"
        raise BadInput(
            str(path), found, "a WFDB record (a .hea header and its signal files)", "give the path of a header"
        )
    return importlib.import_module(_READERS[path.suffix]).read(path)
