"""Files of predicted signals: a folder of one NumPy file a recording, and a table that says whose they are.

OUTPUT/recordings.parquet       written last, a row a recording: number, store, recording (its study's hash), subject
                                (hashed), windows, and CHANNEL/FIGURE (`task.MEASURED`) of every target
OUTPUT/recording-000000.npz     of that number: start [windows] float64, seconds; for every target that the recording
                                has, predicted/CHANNEL and recorded/CHANNEL [windows, samples] float32 in the unit
                                unit/CHANNEL, at rate/CHANNEL Hz; NaN where the recording has no valid signal. Of
                                predictions without truth, no recorded/CHANNEL
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from csfm_jax.evaluation.translated import Translated
from data_pipelines import storage
from data_pipelines.errors import BadInput
from data_pipelines.signals import modality_of
from data_pipelines.store import Store

if TYPE_CHECKING:
    from csfm_jax.evaluation.fine_tuned import FineTuned

TABLE = "recordings.parquet"
# what a sample of 1 is, of sensors without a physical scale (`preprocess`)
_NO_UNIT = "robust deviations of the recording"


class SignalFiles:
    """Writes recordings one by one; `finish` writes the table.

    Raises:
        BadInput: the folder holds something already.
    """

    def __init__(self, folder: Path, model: "FineTuned", stores: list[Store]):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput("--output", "a folder that is not empty", "a new one", "choose another")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._model, self._stores = folder, model, stores
        self._rows: list[tuple] = []

    def add(self, one: Translated) -> None:
        arrays = {"start": one.start}
        for name, signal in one.signals.items():
            modality = modality_of(name)
            arrays[f"predicted/{name}"] = signal.predicted
            if np.isfinite(signal.recorded).any():
                arrays[f"recorded/{name}"] = signal.recorded
            arrays |= {f"rate/{name}": np.float64(modality.rate)}
            arrays |= {f"unit/{name}": np.array(_NO_UNIT if modality.unit == "a.u." else modality.unit)}
        number, index = len(self._rows), self._stores[one.store].index
        np.savez(self._folder / f"recording-{number:06d}.npz", **arrays)
        about = self._stores[one.store].name, index.study[one.recording].decode(), index.subject[one.recording].decode()
        self._rows.append((number, *about, len(one.start), *one.values.tolist()))

    def finish(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = ("number", "store", "recording", "subject", "windows", *self._model.outputs)
        told = {"task": self._model.task.name, "preprocessing": str(self._model.spec)}
        told |= {name: self._model.provenance[name] for name in ("path", "step") if name in self._model.provenance}
        table = pa.table(dict(zip(names, zip(*self._rows)))).replace_schema_metadata({"csfm": json.dumps(told)})
        with storage.whole(self._folder / TABLE) as temporary:
            pq.write_table(table, temporary)
