"""PTB-XL: 21,799 twelve-lead ECGs of 10 s with a report, SCP-ECG codes and official folds (Wagner et al. 2020)."""

import ast
import math
from functools import cached_property
from pathlib import Path

from data_pipelines.datasets.source import Entry, Source, number, read_table, sorted_entries, table_columns
from data_pipelines.errors import BadInput
from data_pipelines.recording import Recording

SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
# Which statements are of which kind: `scp_statements.csv`; four are diagnostic and of form.
KINDS = {
    "diagnostic": "NDT NST_ DIG LNGQT NORM IMI ASMI LVH LAFB ISC_ IRBBB 1AVB IVCD ISCAL CRBBB CLBBB ILMI LAO/LAE AMI "
    "ALMI ISCIN INJAS LMI ISCIL LPFB ISCAS INJAL ISCLA RVH ANEUR RAO/RAE EL WPW ILBBB IPLMI ISCAN IPMI SEHYP INJIN "
    "INJLA PMI 3AVB INJIL 2AVB".split(),
    "form": "NDT NST_ DIG LNGQT ABQRS PVC STD_ VCLVH QWAVE LOWT NT_ PAC LPR INVT LVOLT HVOLT TAB_ STE_ PRC(S)".split(),
    "rhythm": "SR AFIB STACH SARRH SBRAD PACE SVARR BIGU AFLT SVTAC PSVT TRIGU".split(),
}
_OVER_89 = 90.0  # PTB-XL writes 300 for everybody over 89


class PTBXL(Source):
    """The dataset as published on PhysioNet: `ptbxl_database.csv`, `scp_statements.csv`, `records500/`.

    Folds 1-8 train, 9 validates, 10 tests (Wagner et al. 2020, "Usage Notes"). A code counts as present whatever its
    likelihood, as in the authors' example and in Strodthoff et al. 2021: form and rhythm codes carry likelihood 0.
    Where no diagnostic code is present diagnostic statements, subclasses and superclasses are not labelled (NaN), and
    so for form and for rhythm: the benchmark leaves these records out.
    Sex: 0 male, 1 female. Age: 90 stands for "over 89".
    """

    name = "ptbxl"
    mains = 50.0
    licence = "CC BY 4.0"
    citation = "Wagner P, et al. PTB-XL, a large publicly available electrocardiography dataset. Sci Data 7:154, 2020."
    download = "wget -r -N -c -np https://physionet.org/files/ptb-xl/1.0.3/"
    table = "ptbxl_database.csv"
    columns = ("ecg_id", "patient_id", "strat_fold", "filename_hr", "filename_lr", "age", "sex", "report", "scp_codes")

    @staticmethod
    def recognises(folder: Path) -> bool:
        return (folder / PTBXL.table).is_file()

    def __init__(self, root: Path):
        super().__init__(root)
        self._file = "filename_hr"
        if not (self.root / "records500").is_dir() and (self.root / "records100").is_dir():
            self._file = "filename_lr"
            self.note = "the 100 Hz records are used, because this copy has no records500"

    @cached_property
    def _rows(self) -> dict[str, dict[str, str]]:
        rows = read_table(self.root / self.table, self.columns, unique=self._file)
        return {row[self._file]: row for row in rows}

    @cached_property
    def _statements(self) -> list[dict[str, str]]:
        path = self.root / "scp_statements.csv"
        return read_table(path, ("", "diagnostic", "diagnostic_class"))

    @cached_property
    def _codes(self) -> dict[str, str]:
        """Every SCP code -> its diagnostic superclass, "" for form and rhythm codes."""
        return {row[""]: row["diagnostic_class"] if number(row["diagnostic"]) == 1 else "" for row in self._statements}

    @cached_property
    def _subclasses(self) -> dict[str, str]:
        """Every diagnostic SCP code -> its subclass."""
        named = ((row, row.get("diagnostic_subclass")) for row in self._statements)
        return {row[""]: name for row, name in named if name and number(row["diagnostic"]) == 1}

    def entries(self) -> list[Entry]:
        folds = {str(fold): "train" for fold in range(1, 9)} | {"9": "validation", "10": "test"}
        entries = []
        self._codes  # noqa: B018  # a missing table of codes stops the source, not every single recording
        for file, row in self._rows.items():
            patient, fold = number(row["patient_id"]), row["strat_fold"].removesuffix(".0")
            if not math.isfinite(patient) or fold not in folds or not row["ecg_id"].strip().isdecimal():
                where, expected = self.root / self.table, "an ecg_id, a patient_id and a fold from 1 to 10"
                raise BadInput(where, "a row without one of them", expected, "use the original file")
            entries.append(Entry(str(int(patient)), f"{int(row['ecg_id']):05d}", folds[fold], f"{file}.hea"))
        return sorted_entries(entries, self.root / self.table)

    def labels(self, entry: Entry, recording: Recording) -> dict[str, float]:
        row = self._row(entry)
        codes = _literal(row["scp_codes"], self.root / self.table)
        superclasses = {self._codes[code] for code in codes if self._codes.get(code)}
        subclasses = {self._subclasses[code] for code in codes if code in self._subclasses}
        present = {f"scp/{code}": float(code in codes) for code in self._codes}
        every = sorted(set(self._subclasses.values()))
        present |= {f"subclass/{name}": float(name in subclasses) if subclasses else math.nan for name in every}
        return _person(row) | _superclass_labels(superclasses) | present | _kind_labels(set(codes))

    def report(self, entry: Entry) -> str | None:
        return self._row(entry)["report"].strip() or None

    def _row(self, entry: Entry) -> dict[str, str]:
        return self._rows[entry.path.removesuffix(".hea")]


class PTBXLExtra(PTBXL):
    """Further PTB-XL records with their labels in one `records.csv`, superclasses worked out; the same folds."""

    name = "ptbxl_extra"
    table = "records.csv"
    columns = (
        "ecg_id",
        "patient_id",
        "strat_fold",
        "filename_hr",
        "age",
        "sex",
        "report",
        "diagnostic_superclass",
        "scp_statements",
    )

    @staticmethod
    def recognises(folder: Path) -> bool:
        return {"diagnostic_superclass", "filename_hr"} <= set(table_columns(folder / "records.csv"))

    @cached_property
    def _codes(self) -> dict[str, str]:
        codes = {code for row in self._rows.values() for code in row["scp_statements"].split(";") if code}
        return dict.fromkeys(sorted(codes), "")

    def labels(self, entry: Entry, recording: Recording) -> dict[str, float]:
        row = self._row(entry)
        superclasses = set(_literal(row["diagnostic_superclass"], self.root / self.table))
        codes = row["scp_statements"].split(";")
        present = {f"scp/{code}": float(code in codes) for code in self._codes} if codes != [""] else {}
        return _person(row) | _superclass_labels(superclasses) | present | _kind_labels(set(codes))


def _superclass_labels(present: set[str]) -> dict[str, float]:
    return {f"superclass/{name}": float(name in present) if present else math.nan for name in SUPERCLASSES}


def _kind_labels(codes: set[str]) -> dict[str, float]:
    found = {}
    for kind, ours in KINDS.items():
        known = not codes.isdisjoint(ours)
        found |= {f"{kind}/{code}": float(code in codes) if known else math.nan for code in ours}
    return found


def _person(row: dict[str, str]) -> dict[str, float]:
    age = number(row["age"])
    return {"age": _OVER_89 if age > 89 else age, "sex": number(row["sex"])}


def _literal(text: str, where: Path):
    """A Python literal from a CSV field: `{'NORM': 100.0}` or `['CD', 'STTC']`; "" is an empty one."""
    try:
        value = ast.literal_eval(text) if text.strip() else {}
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, dict | list):
        raise BadInput(
            where, "codes that are no dict or list", "a literal like {'NORM': 100.0}", "use the original file"
        )
    return value
