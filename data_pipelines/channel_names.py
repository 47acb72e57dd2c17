"""Channel names found in the wild: a site's own table, leads that follow from others, the count of every name."""

import csv
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipelines.errors import BadInput
from data_pipelines.recording import Recording
from data_pipelines.signals import CHANNEL_ID, CHANNELS, known_name, modality_of, standard_name

# A name that the vocabulary does not know might be a person's: it is shown only when so many subjects have it, or when
# it is made of words that recorders use.
FEWEST_SUBJECTS = 20
RARE = f"(a name of fewer than {FEWEST_SUBJECTS} subjects)"
_TECHNICAL = frozenset(
    "acc accelerometer activity alarm ambient angle annotation annotations aux axis battery bcg beat body breath "
    "button cardiac ch chan channel clock co2 count cpap device diff differential dia diastolic differentiated "
    "digital dir ecg edf eda eeg ekg electrode emg eog etco2 event external fft flow force gsr gyro heart hr "
    "humidity icp imp impedance index input intensity lead leak left level light lights mag marker mask mean "
    "microphone mic min motion move movement mv mask nibp nbp noise off on output oxygen pat pleth pos position "
    "ppg press pressure probe pulse quality rate rectal ref reference resp respiration right rpm sensor signal "
    "sig skin snore snoring sound status step stim sum sync sys systolic temp temperature time tidal trig trigger "
    "unknown vol volume wave waveform".split()
)
# "Fpz-Cz", "A1": whole words, so that no other word of two letters counts
_ELECTRODES = frozenset("m1 m2 p7 p8 t7 t8".split()).union(
    *(c.name[4:].lower().split("-") for c in CHANNELS if c.modality == "eeg")
)
_MOST_DIGITS = 2  # of a technical name: more may be a date or a number in a hospital


def read_channel_table(path: Path) -> dict[str, str]:
    """A site's own names: a CSV file of two columns, "name" and "standard".

    Args:
        path: rows such as `NIBP wave,ABP`; an empty second field leaves the channel out, whatever its unit.

    Returns:
        Name, in lower case -> standard name, or "".

    Raises:
        BadInput: no such file or columns, a standard name that is not of the vocabulary, one name twice.
    """
    table: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        found = f"a file that cannot be read ({type(error).__name__})"
        raise BadInput(path, found, "a CSV file of name,standard", "check the path") from None
    if not rows or [field.strip().lower() for field in rows[0]] != ["name", "standard"]:
        raise BadInput(path, "other columns", "a first line name,standard", "add it")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != 2 or not row[0].strip():
            raise BadInput(f"{path} line {number}", f"{len(row)} fields", "a name and a standard name", "correct it")
        name, standard = row[0].strip().lower(), row[1].strip()
        if standard and (standard not in CHANNEL_ID or modality_of(standard) is None):
            where, expected = f"{path} line {number}", "a sensor of the vocabulary (docs/formats.md)"
            raise BadInput(where, "an unknown standard name", expected, "correct it, or leave it empty")
        if name in table:
            raise BadInput(f"{path} line {number}", "a name that came before", "each name once", "remove one")
        table[name] = standard
    return table


_DERIVED = {"III": (-1.0, 1.0), "aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}  # of I and II


def derive_leads(recording: Recording) -> Recording:
    """Adds III, aVR, aVL and aVF where only I and II are stored (Einthoven, Goldberger), marked as derived.

    A recording without I and II of one rate, unit, start and length, or which has a lead already, is left as it is
    there.
    """
    names = {standard_name(channel.name, channel.unit): channel for channel in reversed(recording.channels)}
    first, second = names.get("I"), names.get("II")
    if first is None or second is None:
        return recording
    if (first.rate, first.unit, first.start, len(first.signal)) != (
        second.rate,
        second.unit,
        second.start,
        len(second.signal),
    ):
        return recording
    made = tuple(
        first._replace(name=lead, signal=np.float32(a) * first.signal + np.float32(b) * second.signal, derived=True)
        for lead, (a, b) in _DERIVED.items()
        if lead not in names
    )
    return replace(recording, channels=(*recording.channels, *made))


class ChannelCount:
    """Counts under which names channels came, what became of them, and at which rates; plain values go in and out."""

    def __init__(self):
        self.names: dict[str, dict] = {}
        self.rates: dict[str, Counter] = {}

    def add(self, report: list[dict], subject: str) -> None:
        """Counts one recording's `PreparedRecording.report`; `subject` is a hash."""
        for channel in report:
            name, standard = " ".join(channel["name"].split())[:32], channel["channel"]
            # a name that needs its unit or a site's table to be understood is shown with what it became
            entry = self.names.setdefault(f"{name}\t{standard or ''}", {"kept": 0, "left_out": {}, "subjects": []})
            if channel["status"] == "kept":
                entry["kept"] += 1
                rate = f"{channel['rate']:g}"
                self.rates.setdefault(channel["modality"], Counter())[rate] += 1
            else:
                entry["left_out"][channel["reason"]] = entry["left_out"].get(channel["reason"], 0) + 1
            _remember(entry["subjects"], subject)

    def to_dict(self) -> dict:
        return {"names": self.names, "rates": {modality: dict(rates) for modality, rates in self.rates.items()}}

    def merge(self, other: dict) -> None:
        """Adds another shard's `to_dict`."""
        for key, theirs in other["names"].items():
            entry = self.names.setdefault(key, {"kept": 0, "left_out": {}, "subjects": []})
            entry["kept"] += theirs["kept"]
            for reason, n in theirs["left_out"].items():
                entry["left_out"][reason] = entry["left_out"].get(reason, 0) + n
            for subject in theirs["subjects"]:
                _remember(entry["subjects"], subject)
        for modality, rates in other["rates"].items():
            self.rates.setdefault(modality, Counter()).update(rates)

    def table(self) -> list[dict]:
        """For the manifest: {"name", "as" (or None), "known" (by its name alone), "kept", "left_out"} each."""
        rows: dict[tuple, dict] = {}
        for key, entry in self.names.items():
            name, standard = key.split("\t")
            known = known_name(name) is not None
            if not known and len(entry["subjects"]) < FEWEST_SUBJECTS and not _technical(name):
                name = RARE
            row = {"name": name, "as": standard or None, "known": known, "kept": 0, "left_out": {}}
            row = rows.setdefault((name, standard), row)
            row["kept"] += entry["kept"]
            for reason, n in entry["left_out"].items():
                row["left_out"][reason] = row["left_out"].get(reason, 0) + n
        return [rows[key] for key in sorted(rows)]


def shown_name(name: str, unit: str) -> str:
    """What one recording's channel may be called outside its file: never with a word that may be a person's name.

    Returns:
        The standard name where the name is known, the name itself where it is made of words that recorders use, else
        the standard name that its unit tells, or `RARE`.
    """
    if (known := known_name(name, unit)) is not None:
        return known
    return " ".join(name.split()) if _technical(name) else standard_name(name, unit) or RARE


def _technical(name: str) -> bool:
    """Whether a name is made of words that recorders use, numbered perhaps ("sensor 2", "Fz-x"), and nothing else."""
    words = re.findall(r"[^\W_]+", name.lower())
    rest = " ".join(word for word in words if word not in _TECHNICAL and word not in _ELECTRODES)
    letters = set(re.findall(r"[^\W\d_]+", rest))
    told = len(rest.split()) < len(words) or letters & _TECHNICAL
    return bool(told) and sum(map(str.isdigit, rest)) <= _MOST_DIGITS and letters <= _TECHNICAL | {"x", "y", "z"}


def _remember(subjects: list[str], subject: str) -> None:
    if len(subjects) < FEWEST_SUBJECTS and subject not in subjects:
        subjects.append(subject)
