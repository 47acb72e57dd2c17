"""One rule for links and paths: nothing outside a source's folder is read."""

from pathlib import Path

from data_pipelines.errors import BadInput


def inside(path: Path, *folders: Path) -> Path:
    """The path itself, where what it leads to lies in one of the folders.

    Args:
        path: of a file, or of one that may not be there. folders: any of them will do.

    Raises:
        BadInput: a link, or "..", that leads out of all of them; a link that leads to itself.
    """
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # RuntimeError before Python 3.13
        raise BadInput(path, "a link that leads nowhere", "files inside the folder", "copy the file there") from None
    if not any(target.is_relative_to(folder.resolve()) for folder in folders):
        raise BadInput(path, "a link that leads out of the folder", "files inside it", "copy the file there")
    return path
