"""Embeddings of many recordings, batched and packed, to Parquet: recording, start (s) and embedding of every window.

INPUT is a recording, a folder of recordings or of known datasets, or prepared stores. A recording is named by its
study's hash in a store; of files, by its number, from 0, in the sorted list of their paths, because a path may hold a
patient's name (--keep-names writes the path itself). One that cannot be used does not stop the run: it is listed with
the reason in OUTPUT.quarantine.jsonl.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from csfm_jax.commands.options import WrittenHere
from data_pipelines import storage
from data_pipelines.errors import BadInput

_POOL = 4  # batches' worth of windows that are packed together: fills rows well, and bounds memory


def arguments(parser) -> None:
    parser.add_argument(
        "--checkpoint", required=True, help="work directory, its checkpoints folder, or one step; here, gs://, s3://"
    )
    parser.add_argument("--input", required=True, help="a recording, a folder of them, or prepared stores")
    parser.add_argument("--output", required=True, action=WrittenHere, help="the Parquet file to write")
    parser.add_argument("--keep-names", action="store_true", help="name recordings by their path within INPUT")
    parser.add_argument("--verify", choices=("full", "size"), default="full", help="how stores are checked before use")


def run(args) -> None:
    from csfm_jax.encoding import load
    from data_pipelines.storage import place
    from data_pipelines.store import stores_in

    target = args.output
    if target.suffix != ".parquet":
        raise BadInput("--output", "a name that does not end in .parquet", "one that does", "choose such a name")
    prepared = bool(stores_in(place(args.input.split(",")[0])))
    refused: list[dict] = []
    encoder = load(args.checkpoint)
    files = from_files(encoder, args.input, refused, keep_names=args.keep_names)
    tables = from_stores(encoder, args.input, args.verify) if prepared else files
    try:
        written = write(tables, encoder, target)
    finally:
        _write_quarantine(refused, target)
    print(f"wrote {written} windows to {target}")


def _write_quarantine(refused: list[dict], target: Path) -> None:
    listed = target.with_name(target.name + ".quarantine.jsonl")
    listed.unlink(missing_ok=True)  # of an earlier run
    if refused:
        listed.write_text("".join(json.dumps(entry) + "\n" for entry in refused), encoding="utf-8")
        print(f"{len(refused)} recordings or windows could not be used; reasons in {listed}")


@dataclass
class _Pool:
    """Windows that wait to be packed together, and how many tokens they have at most."""

    names: list[str] = field(default_factory=list)
    windows: list = field(default_factory=list)
    tokens: int = 0


# A table: recording names [n], starts [n] float32, embeddings [n, D] float32
Table = tuple[list[str], np.ndarray, np.ndarray]


def from_files(encoder, where: str, refused: list[dict], *, keep_names: bool = False) -> Iterator[Table]:
    """Embeds recordings as they are read.

    Args:
        encoder: a `LoadedEncoder`. where: a recording or a folder.
        refused: gets {"recording", "reason"} of every recording that cannot be used.
        keep_names: name a recording by its path, not by its number.
    """
    from tqdm import tqdm

    from data_pipelines.subjects import anonymous

    longest, pool = 1, _Pool()
    room = _POOL * encoder.config.data.rows * encoder.config.data.row_tokens
    for number, (path, read) in enumerate(tqdm(list(_listed(where)), unit="recording", disable=None)):
        name = path if keep_names else f"{number:07d}"
        try:
            windows = _windows(encoder, read())
        except BadInput as error:
            if Path(where).is_file():
                raise
            reason = f"found {error.found}; expected {error.expected}; {error.remedy}"
            refused.append({"recording": name, "reason": reason if keep_names else anonymous(reason, [path])})
            continue
        for window in windows:
            size = _most_tokens(encoder, window)
            longest = max(longest, size)  # only grows, so that few shapes of batches are compiled
            pool.names.append(name)
            pool.windows.append(window)
            pool.tokens += size
            if pool.tokens >= room:
                yield _embedded(encoder, pool, longest, refused)
                pool = _Pool()
    if pool.windows:
        yield _embedded(encoder, pool, longest, refused)


def _listed(where: str):
    """(name, function that reads it) of every recording at a place."""
    import data_pipelines
    from data_pipelines.datasets import open_sources

    path = Path(where)
    if path.is_file():
        yield path.name, lambda: data_pipelines.read(path)
        return
    sources = open_sources(where)
    for source in sources:
        for entry in source.entries():
            name = entry.path if len(sources) == 1 else f"{source.name}/{entry.path}"
            yield name, lambda source=source, entry=entry: source.read(entry)


def _windows(encoder, recording) -> list:
    from data_pipelines import preprocess

    given = [(c.name, c.rate, c.unit, c.start, c.signal) for c in recording.channels]
    return encoder.windows(preprocess.prepare(given, spec=encoder.spec, mains=recording.mains))


def _most_tokens(encoder, window) -> int:
    from data_pipelines.signals import modality_of

    patch = encoder.config.tokens.patch
    return 1 + sum(len(samples) // patch[modality_of(channel).name] for channel, samples in window.channels)


def _embedded(encoder, pool: _Pool, longest: int, refused: list[dict]) -> Table:
    from data_pipelines.loader import pack_windows

    pooled = np.full((len(pool.windows), encoder.width), np.nan, np.float32)
    there = np.zeros(len(pool.windows), bool)
    windows = [w.channels for w in pool.windows]
    batches = pack_windows(windows, encoder.config.tokens, **encoder.batch_shape(longest))
    for ids, some in encoder.embed_batches(batches):
        pooled[ids], there[ids] = some, True
    starts = np.array([w.start for w in pool.windows], np.float32)
    for i in np.flatnonzero(~there):
        refused.append({"recording": pool.names[i], "reason": f"no valid patch in the window from {starts[i]:g} s"})
    kept = np.flatnonzero(there)
    return [pool.names[i] for i in kept], starts[kept], pooled[kept]


def from_stores(encoder, where: str, verify: str) -> Iterator[Table]:
    """Embeds every window of prepared stores, in the order of packing; a recording is named by its study's hash."""
    from tqdm import tqdm

    from csfm_jax.evaluation.features import embed_stores
    from data_pipelines.store import SPLITS, open_stores

    stores = open_stores(where, verify)
    present = [split for i, split in enumerate(SPLITS) if any((s.index.split == i).any() for s in stores)]
    with tqdm(unit="window", disable=None) as progress:
        for split in present:
            for some in embed_stores(encoder, stores, split):
                order = np.lexsort((some.start, some.recording, some.store))
                rows = [(stores[some.store[i]].index.study[some.recording[i]]).decode() for i in order]
                progress.update(len(rows))
                yield rows, some.start[order], some.pooled[order]


def write(tables: Iterator[Table], encoder, target: Path) -> int:
    """Writes tables as row groups of one Parquet file, whole or not at all; returns the number of rows.

    Raises:
        BadInput: no table holds a row, so that there is nothing to write.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    about = {"csfm": json.dumps({**encoder.provenance, "preprocessing": str(encoder.spec), "pooling": encoder.pooling})}
    columns = {"recording": pa.string(), "start": pa.float32(), "embedding": pa.list_(pa.float32())}
    schema = pa.schema(list(columns.items()), metadata=about)
    written = 0
    storage.clear_unfinished(target)
    with storage.whole(target) as temporary:
        with pq.ParquetWriter(temporary, schema) as writer:
            for names, starts, pooled in tables:
                offsets = np.arange(len(names) + 1, dtype=np.int32) * pooled.shape[1]
                embedding = pa.ListArray.from_arrays(offsets, pooled.ravel())
                writer.write_table(pa.table([pa.array(names, pa.string()), starts, embedding], schema=schema))
                written += len(names)
        if not written:
            raise BadInput("--input", "no recording that can be used", "at least one", "see the quarantine list")
    return written
