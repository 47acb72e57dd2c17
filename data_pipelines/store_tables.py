"""The tables of a store (index, labels, reports, events), written shard by shard, so that memory stays flat."""

import os
from pathlib import Path

import numpy as np

from data_pipelines.quality import MEASURES, Quality
from data_pipelines.signals import modality_of
from data_pipelines.store import SPLITS
from data_pipelines.store_format import INDEX_SCHEMA

_ROWS = 1 << 16  # of a row group, at least


class Merged:
    """What must be known of all shards before a row is written, and what the manifest says of them together."""

    def __init__(self):
        self.files: dict[str, dict] = {}
        self.table_counts: dict[str, int] = {}
        self.sets: set[tuple[int, ...]] = set()
        self.labels: set[str] = set()
        self.recordings = self.subjects = self.reports = self.events = self.mixed = 0
        self.splits = dict.fromkeys(SPLITS, 0)
        self.milliseconds: dict[str, int] = {}
        self._digests: list[np.ndarray] = []  # 8 bytes a recording

    def survey(self, part: dict) -> None:
        """Takes in one shard's part: {"files", "rows"}."""
        rows = part["rows"]
        self.files |= part["files"]
        self.recordings += len(rows)
        self.subjects += len({row["subject"] for row in rows})  # no subject lies in two shards
        self._digests.append(np.array([int(row["digest"], 16) for row in rows], np.uint64))
        sexes: dict[str, set[float]] = {}
        for row in rows:
            if "sex" in row["labels"]:
                sexes.setdefault(row["subject"], set()).add(row["labels"]["sex"])
        self.mixed += sum(len(found) > 1 for found in sexes.values())
        for row in rows:
            self.sets.add(tuple(row["channels"]))
            self.labels.update(row["labels"])
            self.reports += bool(row["report"])
            self.events += len(row["events"])
            self.splits[row["split"]] += 1
            for modality in {modality_of(channel).name for channel in row["channels"]}:
                self.milliseconds[modality] = self.milliseconds.get(modality, 0) + row["milliseconds"]

    def totals(self) -> dict:
        """Recordings, subjects, by split and in hours by modality (a recording counts once for each it holds).

        "duplicates" are recordings whose stored samples equal those of an earlier one, bit by bit; "of both sexes",
        where there are any, subjects whose recordings contradict each other there.
        """
        return {
            **({"of both sexes": self.mixed} if self.mixed else {}),
            "recordings": self.recordings,
            "subjects": self.subjects,
            "duplicates": self.recordings - len(np.unique(np.concatenate(self._digests))),
            "splits": self.splits,
            "hours": {name: round(ms / 3.6e6, 6) for name, ms in sorted(self.milliseconds.items())},
        }


class IndexTable:
    """One row a recording: `store_format.INDEX_SCHEMA`."""

    types = INDEX_SCHEMA

    def __init__(self, merged: Merged):
        self._set_number = {channels: number for number, channels in enumerate(sorted(merged.sets))}

    def columns(self, rows: list[dict], first: int) -> dict:
        made = {
            "split": [SPLITS.index(row["split"]) for row in rows],
            "channel_set": [self._set_number[tuple(row["channels"])] for row in rows],
            "has_report": [bool(row["report"]) for row in rows],
        }
        return {name: made[name] if name in made else [row[name] for row in rows] for name in INDEX_SCHEMA}


class LabelTable:
    """One float32 column a label, NaN = not labelled."""

    def __init__(self, merged: Merged):
        self._names = sorted(merged.labels)
        self._number = {name: number for number, name in enumerate(self._names)}
        self.types = {"recording": "int32"} | dict.fromkeys(self._names, "float32")

    def columns(self, rows: list[dict], first: int) -> dict:
        values = np.full((len(self._names), len(rows)), np.nan, np.float32)
        for position, row in enumerate(rows):
            for name, value in row["labels"].items():
                values[self._number[name], position] = value
        numbers = np.arange(first, first + len(rows), dtype=np.int32)
        return {"recording": numbers} | dict(zip(self._names, values))


class ReportTable:
    """(recording, text) of recordings that have one."""

    types = {"recording": "int32", "text": "string"}

    def columns(self, rows: list[dict], first: int) -> dict:
        kept = [(first + i, row["report"]) for i, row in enumerate(rows) if row["report"]]
        return {"recording": [i for i, _ in kept], "text": [text for _, text in kept]}


class EventTable:
    """(recording, time and length in seconds, code), in order of recording and time."""

    types = {"recording": "int32", "time": "float64", "seconds": "float32", "code": "string"}

    def columns(self, rows: list[dict], first: int) -> dict:
        found = [(first + i, *event) for i, row in enumerate(rows) for event in sorted(row["events"])]
        return {name: [event[i] for event in found] for i, name in enumerate(self.types)}


def write_quality(path: Path, temporary: Path, qualities: list[tuple[int, Quality]]) -> int:
    """Writes one shard's quality: a row a channel and segment; recordings count from the shard's first.

    Args:
        path: of the file. temporary: of the file while it is being written, on the same disk.
        qualities: (recording, its quality) in order.

    Returns:
        The number of rows.
    """
    columns: dict[str, list] = {"recording": [], "channel": [], "segment": []}
    for recording, quality in qualities:
        channels, segments, _ = quality.table.shape
        columns["recording"].append(np.full(channels * segments, recording, np.int32))
        columns["channel"].append(np.repeat(quality.channels.astype(np.int16), segments))
        columns["segment"].append(np.tile(np.arange(segments, dtype=np.int32), channels))
    values = np.concatenate([quality.table.reshape(-1, len(MEASURES)) for _, quality in qualities])
    joined = {name: np.concatenate(parts) for name, parts in columns.items()} | dict(zip(MEASURES, values.T.copy()))
    types = {"recording": "int32", "channel": "int16", "segment": "int32"} | dict.fromkeys(MEASURES, "uint8")
    writer = TableWriter(path, temporary, types)
    try:
        writer.add(joined)
        return writer.close()
    finally:
        writer.abandon()


class TableWriter:
    """A Parquet file written by row groups as `temporary`, and renamed by `close`."""

    def __init__(self, path: Path, temporary: Path, types: dict[str, str]):
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = {"float32": pa.float32(), "float64": pa.float64(), "bool": pa.bool_()}
        self._schema = pa.schema([(name, kinds.get(t) or pa.type_for_alias(t)) for name, t in types.items()])
        self._path, self._temporary = path, temporary
        self._file = pa.OSFile(str(self._temporary), "wb")
        self._writer = pq.ParquetWriter(self._file, self._schema)
        self._waiting: list = []
        self._rows = 0

    def add(self, columns: dict) -> None:
        import pyarrow as pa

        self._waiting.append(pa.table(columns, schema=self._schema))
        if sum(table.num_rows for table in self._waiting) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        table = pa.concat_tables(self._waiting).combine_chunks()
        self._waiting = []
        self._rows += table.num_rows
        self._writer.write_table(table)

    def close(self) -> int:
        """Puts the file in its place; returns its rows."""
        self._flush()
        self._writer.close()
        self._file.close()
        with open(self._temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self._temporary, self._path)
        return self._rows

    def abandon(self) -> None:
        """Removes an unfinished file; nothing after `close`."""
        if not self._file.closed:
            self._writer.close()
            self._file.close()
        self._temporary.unlink(missing_ok=True)
