"""EchoNext: 100,000 twelve-lead ECGs of 36,286 patients with labels from the echocardiogram (Elias et al. 2025)."""

from functools import cached_property
from pathlib import Path

import numpy as np

from data_pipelines.datasets.source import Entry, Source, number, read_table, sorted_entries
from data_pipelines.errors import BadInput
from data_pipelines.inside import inside
from data_pipelines.recording import Channel, Recording

_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_RATE, _SAMPLES = 250.0, 2500
_TABLES = ("EchoNext_metadata_100k.csv", "echonext_metadata_100k.csv")


class EchoNext(Source):
    """`EchoNext_metadata_100k.csv` and `EchoNext_<split>_waveforms.npy` of shape (N, 1, 2500, 12).

    A split's rows in the table and in its array are in one order. The arrays are published filtered, clipped and
    standardised over the whole dataset: the scale in mV is lost, and one unit (a standard deviation) is taken as 1 mV
    here, which no model that normalises each window notices. Patients of the published "no_split" rows may also be in
    other splits, so those rows are left out. Labels: every column that ends in "_flag", under "echo/", age and sex.
    The order of the leads is the standard one; the release does not state it elsewhere.
    """

    name = "echonext"
    mains = 60.0
    licence = "PhysioNet Restricted Health Data License 1.5.0"
    citation = "Elias P, et al. EchoNext: a dataset for detecting echocardiogram-confirmed structural heart disease."
    download = "wget -r -N -c -np --user YOU --ask-password https://physionet.org/files/echonext/1.1.1/"
    columns = ("ecg_key", "patient_key", "split")

    @staticmethod
    def recognises(folder: Path) -> bool:
        return any((folder / name).is_file() for name in _TABLES)

    @cached_property
    def _listed(self) -> tuple[dict[str, dict[str, str]], dict[str, int]]:
        """Key -> row of the table with its position in the split's array, and how many rows each split has."""
        table = next(self.root / name for name in _TABLES if (self.root / name).is_file())
        rows, counts = {}, dict.fromkeys(_SPLITS, 0)
        for row in read_table(table, self.columns, unique="ecg_key"):
            split = row["split"].strip().lower()
            if split in _SPLITS:
                rows[row["ecg_key"]] = row | {"row": str(counts[split]), "split": split}
                counts[split] += 1
        return rows, counts

    @property
    def _rows(self) -> dict[str, dict[str, str]]:
        return self._listed[0]

    def entries(self) -> list[Entry]:
        return sorted_entries(
            [Entry(row["patient_key"], key, _SPLITS[row["split"]], _waveforms(row)) for key, row in self._rows.items()],
            self.root,
        )

    def signals(self, entry: Entry) -> Recording:
        name, _, row = entry.path.partition("#")
        file = inside(self.root / name, self.root)
        array, listed = _mapped(file), self._listed[1][self._rows[entry.study]["split"]]
        if len(array) != listed:  # rows are matched by their position
            expected = f"the {listed} that the table has of this split"
            raise BadInput(file, f"{len(array)} rows", expected, "use the table and the arrays of one release")
        window = np.asarray(array[int(row), 0], np.float32)
        channels = tuple(Channel(lead, _RATE, "mV", window[:, i].copy()) for i, lead in enumerate(_LEADS))
        return Recording(channels, entry.subject, entry.study, self.name)

    def labels(self, entry: Entry, recording: Recording) -> dict[str, float]:
        row = self._rows[entry.study]
        flags = {f"echo/{name.removesuffix('_flag')}": number(row[name]) for name in row if name.endswith("_flag")}
        sex = {"male": 0.0, "female": 1.0, "m": 0.0, "f": 1.0}.get(row.get("sex", "").strip().lower(), float("nan"))
        return flags | {"age": number(row.get("age_at_ecg", "")), "sex": sex}


def _waveforms(row: dict[str, str]) -> str:
    return f"EchoNext_{row['split']}_waveforms.npy#{row['row']}"


def _mapped(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        found = f"an array that cannot be read ({type(error).__name__})"
        raise BadInput(path, found, "the published array", "complete the download") from None
    if array.ndim != 4 or array.shape[1:] != (1, _SAMPLES, len(_LEADS)):
        raise BadInput(path, f"shape {array.shape}", f"(N, 1, {_SAMPLES}, {len(_LEADS)})", "use the published array")
    return array
