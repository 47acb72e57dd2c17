"""Files of predictions: a row a recording, written whole or not at all, and read back for figures."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from csfm_jax.evaluation.predictions import Predictions
from data_pipelines import storage
from data_pipelines.errors import BadInput
from data_pipelines.store import Store


class Read(NamedTuple):
    """A file of predictions.

    Attributes:
        outputs: names of the predictions' columns; labels_of: of the labels'.
        told: what was kept with the table.
        key: [n] str, store and hashed study: the same recording has the same key in every file.
        subject: [n] str, hashed. windows: [n] int. values: [n, outputs]. labels: [n, K], NaN = not labelled.
        fold: [n] int, of the models' folds where `join` has put several files together; else 0.
    """

    outputs: tuple[str, ...]
    labels_of: tuple[str, ...]
    told: dict
    key: np.ndarray
    subject: np.ndarray
    windows: np.ndarray
    values: np.ndarray
    labels: np.ndarray
    fold: np.ndarray

    def rows(self, chosen: np.ndarray) -> "Read":
        """Some rows, by number or by flag."""
        return self._replace(**{name: getattr(self, name)[chosen] for name in self._fields[3:]})


def write(
    found: Predictions,
    outputs: tuple[str, ...],
    labels: tuple[str, ...],
    told: dict,
    stores: list[Store],
    target: Path,
    more: dict[str, np.ndarray] | None = None,
) -> None:
    """Writes predictions as Parquet or (.npz) NumPy arrays.

    Args:
        found: of the stores. outputs, labels: names of the columns of its values and labels. told: plain values, kept
            with the table. target: the file; its name decides the format. more: further columns.
    """
    names = np.array([store.name for store in stores])[found.store]
    subjects, studies = (
        [getattr(stores[s].index, name)[r].decode() for s, r in zip(found.store, found.recording)]
        for name in ("subject", "study")
    )
    columns = {"store": names, "recording": np.array(studies, str), "subject": np.array(subjects, str)}
    columns["windows"] = found.windows
    columns |= {f"prediction/{name}": found.values[:, i] for i, name in enumerate(outputs)}
    columns |= more or {}
    columns |= {f"label/{name}": found.labels[:, i] for i, name in enumerate(labels)}
    with storage.whole(target) as temporary, open(temporary, "wb") as file:
        if target.suffix == ".npz":
            np.savez(file, **columns)
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            table = pa.table(columns).replace_schema_metadata({"csfm": json.dumps(told)})
            pq.write_table(table, file, write_page_checksum=True)


def join(files: list[Path], target: Path) -> None:
    """Writes files of predictions as one, with the columns that all of them have, whole or not at all.

    Args:
        files: of `write`, as Parquet, one a fold; what is told with the first is kept, of numbers the mean.

    Raises:
        BadInput: one is not a file of predictions.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [_table(file) for file in files]
    names = [name for name in tables[0].column_names if all(name in table.column_names for table in tables)]
    every = [json.loads(table.schema.metadata[b"csfm"]) for table in tables]
    means = {name: float(np.mean([told[name] for told in every])) for name in every[0] if name == "train_patients"}
    told = {"csfm": json.dumps(every[0] | means)}
    parts = [table.select(names).append_column("fold", pa.array(np.full(len(table), number, np.int32)))
             for number, table in enumerate(tables, 1)]  # fmt: skip
    # of a study that was begun earlier some may be float32
    whole = pa.concat_tables([part.replace_schema_metadata(told) for part in parts], promote_options="permissive")
    with storage.whole(target) as temporary:
        pq.write_table(whole, temporary, write_page_checksum=True)


def read(path: Path) -> Read:
    """Reads a Parquet file of `write`.

    Raises:
        BadInput: not a file of predictions, or a damaged one.
    """
    table = _table(path)
    stores, studies, subjects = (table[name].to_pylist() for name in ("store", "recording", "subject"))
    outputs, labels = (
        tuple(name.removeprefix(head) for name in table.column_names if name.startswith(head))
        for head in ("prediction/", "label/")
    )
    columns = [
        np.stack([table[f"{head}{name}"].to_numpy() for name in names], axis=1).astype(np.float64)
        for head, names in (("prediction/", outputs), ("label/", labels))
    ]
    key = np.array([f"{store}/{study}" for store, study in zip(stores, studies)])
    told = json.loads((table.schema.metadata or {}).get(b"csfm", b"{}"))
    fold = table["fold"].to_numpy() if "fold" in table.column_names else np.zeros(len(key), np.int32)
    return Read(outputs, labels, told, key, np.array(subjects), table["windows"].to_numpy(), *columns, fold)


def _table(path: Path):
    """A pyarrow.Table of one of these files; errors as of `read`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    expected, remedy = "predictions of csfm", "remove it, to have it made"
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException) as error:  # a page whose checksum differs is an OSError
        raise BadInput(str(path), type(error).__name__, expected, remedy) from None
    if missing := {"store", "recording", "subject", "windows"} - {*table.column_names}:
        raise BadInput(str(path), f"no column {min(missing)}", expected, remedy)
    return table
