"""Steps of checkpoints that lie in an object store: brought to a local folder, each file verified on its way.

What several hosts have saved lies apart, `ITEM/ocdbt.process_<n>/` from each; Orbax reads it through an index over all
of them (`ITEM/manifest.ocdbt`), which needs no more than the files here and is made when they have come together.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tensorstore

from csfm_jax.training.manifest import (
    Difference,
    finished_steps,
    manifest_text,
    no_manifest,
    other_content,
    other_size,
    read_manifest,
)
from data_pipelines import storage

_FILES_AT_ONCE = 4  # each large one comes in several parts at once besides
_HOSTS = "ocdbt.process_*"
_INDEX = ("manifest.ocdbt", "d")  # of an item, with its own data; what `join_hosts` makes


def fetch(step: str, folder: Path, items: tuple[str, ...] | None = None) -> Difference | None:
    """Copies a step from an object store.

    Args:
        step: CHECKPOINTS/<step>. folder: where it goes; made here. items: those wanted ("params", ...); None: all, and
            the manifest beside the folder.

    Returns:
        What is not as the manifest says, then the copy is worthless; None where all is well.

    Raises:
        BadInput: the object store does not answer.
    """
    if (files := read_manifest(step)) is None:
        return no_manifest(step)
    there = storage.file_sizes(step)
    wanted = {n: entry for n, entry in files.items() if items is None or "/" not in n or n.split("/")[0] in items}
    for name, entry in sorted(wanted.items()):
        if name not in there:
            return name, "no such object", f"{entry['size']} bytes"
        if there[name] != entry["size"]:
            return other_size(name, there[name], entry)

    def download(name: str) -> str:
        return storage.download(storage.join(step, name), folder / name, size=wanted[name]["size"])

    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for name, digest in zip(wanted, pool.map(download, wanted)):
            if digest != wanted[name]["sha256"]:
                pool.shutdown(cancel_futures=True)
                return other_content(name, digest, wanted[name])
    join_hosts(folder)
    if items is None:
        storage.write_bytes(folder.with_name(f"{folder.name}.manifest.json"), manifest_text(folder, files).encode())
    return None


def own_files(files: dict, process: int, processes: int) -> dict:
    """Of the files in a process's folder, those that a step of all processes is made of.

    Args:
        files: by name. process, processes: which of how many. Process 0's hold all that is the same everywhere.
    """
    if processes == 1:
        return files

    def own(name: str) -> bool:
        part = name.split("/")[1] if "/" in name else ""
        return part not in _INDEX if process == 0 else part.startswith(_HOSTS[:-1])

    return {name: entry for name, entry in files.items() if own(name)}


def join_hosts(step: Path) -> None:
    """Makes the index of each item that several hosts have saved and that has none yet."""
    for item in sorted({path.parent for path in step.glob(f"*/{_HOSTS}")}):
        if (item / _INDEX[0]).exists():
            continue
        context = tensorstore.Context()  # one for all: only then are data referred to, not copied

        def opened(folder: Path, context=context):
            spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
            return tensorstore.KvStore.open(spec, context=context).result()

        index = opened(item)
        with tensorstore.Transaction(atomic=True) as transaction:
            for host in sorted(item.glob(_HOSTS)):
                opened(host).experimental_copy_range_to(index.with_transaction(transaction)).result()


def way_back(step: str) -> str:
    """What to do about a damaged step."""
    others = [str(s) for s in finished_steps(storage.parent(step)) if s != int(storage.name_of(step))]
    back = f", or take another step: {', '.join(others)}" if others else "; there is no other step"
    return f"restore the object from a copy{back}"
