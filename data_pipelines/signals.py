"""The physical vocabulary: modalities (rate, patch, band, unit) and channels (names and ids).

Standard library only: the file is shipped verbatim beside the exported PyTorch model.

The vocabulary's order is part of every store and checkpoint: append, never reorder. Rows 1 to 13 are the channels of
CSFM in its own order (Gu et al. 2026, `network/model.py`), so its published tables are a slice of ours.
"""

import re
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Modality:
    """What every channel of one kind of sensor shares.

    Attributes:
        name: key used in configs, stores and metrics.
        rate: canonical rate, Hz (an integer, so that a one-minute chunk holds a whole number of samples).
        patch: default patch length, samples at `rate`; a config may override it (`tokens.patch`).
        band: pass band (low, high) in Hz; None at an end leaves it open.
        unit: canonical unit; "a.u." marks sensors without a physical scale, which are divided by their robust
            standard deviation before quantisation.
        step: size of one int16 count, in `unit`.
        powerline: whether the mains frequency is removed.
        source: where the numbers come from.
    """

    name: str
    rate: int
    patch: int
    band: tuple[float | None, float | None]
    unit: str
    step: float
    powerline: bool
    source: str


MODALITIES: dict[str, Modality] = {
    m.name: m
    for m in (
        Modality("ecg", 250, 25, (0.5, None), "mV", 0.001, True, "CSFM: 250 Hz, patch 25, 0.5 Hz high-pass, powerline"),
        Modality("ppg", 250, 25, (0.5, 8.0), "a.u.", 0.001, False, "CSFM: 250 Hz, patch 25; Elgendi band 0.5-8 Hz"),
        Modality("resp", 25, 25, (0.05, 3.0), "a.u.", 0.001, False, "breathing is below 1.5 Hz; AASM airflow and effort 0.1-15 Hz, here the part that a 25 Hz rate keeps safely"),
        Modality("spo2", 1, 5, (None, None), "%", 0.01, False, "AASM: oximeters average over 3 s, so 1 Hz loses nothing"),
        Modality("abp", 125, 25, (None, 20.0), "mmHg", 0.02, False, "MIMIC waveforms: 125 Hz; pressure energy is below 20 Hz; the mean carries meaning, so no high-pass"),
        Modality("eeg", 200, 40, (0.3, 75.0), "uV", 0.1, True, "PhysioOmni: 200 Hz; AASM band from 0.3 Hz"),
        Modality("eog", 200, 40, (0.3, 35.0), "uV", 0.1, True, "PhysioOmni: 200 Hz; AASM band 0.3-35 Hz"),
        Modality("emg", 200, 40, (10.0, None), "uV", 0.1, True, "AASM: 10 Hz high-pass; 200 Hz as for EEG, so that sleep montages share one rate"),
        Modality("pcg", 2000, 200, (25.0, 400.0), "a.u.", 0.001, False, "CinC 2016: 2 kHz, 25-400 Hz"),
    )
}  # fmt: skip

_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
_EEG = (
    "Fp1 Fp2 F7 F3 Fz F4 F8 T3 C3 Cz C4 T4 T5 P3 Pz P4 T6 O1 Oz O2 A1 A2 FC1 FC2 FC5 FC6 CP1 CP2 CP5 CP6 "
    "C4-A1 C3-A2 F4-A1 F3-A2 O2-A1 O1-A2 Fpz-Cz Pz-Oz"
).split()
_EEG_10_10 = (
    "Fpz AF7 AF3 AFz AF4 AF8 F5 F1 F2 F6 FT7 FT8 FC3 FCz FC4 C5 C1 C2 C6 T9 T10 TP7 TP8 CP3 CPz CP4 P5 P1 P2 P6 "
    "PO7 PO3 POz PO4 PO8 Iz"
).split()


@dataclass(frozen=True)
class ChannelKind:
    """One row of the channel vocabulary: its id, its standard name, and the modality it belongs to ("" for marks)."""

    id: int
    name: str
    modality: str


CHANNELS: tuple[ChannelKind, ...] = tuple(
    ChannelKind(i, name, modality)
    for i, (name, modality) in enumerate(
        [("PAD", "")]
        + [(lead, "ecg") for lead in _LEADS]
        + [("PPG", "ppg"), ("CLS", ""), ("TEXT", "text")]
        + [("ECG other", "ecg"), ("PPG other", "ppg")]
        + [(n, "resp") for n in ("RESP", "airflow", "nasal pressure", "thorax effort", "abdomen effort", "RESP other")]
        + [("SpO2", "spo2")]
        + [(n, "abp") for n in ("ABP", "CVP", "PAP", "pressure other")]
        + [(f"EEG {n}", "eeg") for n in _EEG]
        + [("EEG other", "eeg")]
        + [(n, "eog") for n in ("EOG left", "EOG right", "EOG other")]
        + [(n, "emg") for n in ("EMG chin", "EMG leg left", "EMG leg right", "EMG other")]
        + [(n, "pcg") for n in ("PCG", "PCG other")]
        + [(n, "ecg") for n in ("Vx", "Vy", "Vz")]  # Frank
        + [(f"EEG {n}", "eeg") for n in _EEG_10_10]
    )
)
CHANNEL_ID: dict[str, int] = {c.name: c.id for c in CHANNELS}
PAD, CLS, TEXT = CHANNEL_ID["PAD"], CHANNEL_ID["CLS"], CHANNEL_ID["TEXT"]
CSFM_CHANNELS = tuple(range(1, 14))

# What recorders write -> our name; in lower case, "_" and double spaces as one space.
_ALIASES = {
    "mlii": "II", "mli": "I", "mliii": "III", "ml2": "II", "avr": "aVR", "avl": "aVL", "avf": "aVF",
    "di": "I", "dii": "II", "diii": "III", "d1": "I", "d2": "II", "d3": "III",
    "pleth": "PPG", "plethysmogram": "PPG", "ppg": "PPG", "bvp": "PPG", "ir ppg": "PPG", "ppg ir": "PPG",
    "red ppg": "PPG other", "ppg red": "PPG other", "green ppg": "PPG other", "ppg green": "PPG other",
    "resp": "RESP", "resp imp": "RESP", "impedance respiration": "RESP",
    "airflow": "airflow", "flow": "airflow", "resp oro-nasal": "airflow", "therm": "airflow", "thermistor": "airflow",
    "resp nasal": "nasal pressure", "nasal press": "nasal pressure", "nasal pressure": "nasal pressure",
    "cannula": "nasal pressure", "cannula flow": "nasal pressure", "ptaf": "nasal pressure",
    "chest": "thorax effort", "thorax": "thorax effort", "thor res": "thorax effort", "thx": "thorax effort",
    "resp thorax": "thorax effort", "effort tho": "thorax effort", "thoracic": "thorax effort",
    "abd": "abdomen effort", "abdo": "abdomen effort", "abdomen": "abdomen effort", "abdo res": "abdomen effort",
    "resp abdomen": "abdomen effort", "effort abd": "abdomen effort", "abdominal": "abdomen effort",
    "sao2": "SpO2", "spo2": "SpO2", "osat": "SpO2",
    "abp": "ABP", "art": "ABP", "bp": "ABP", "ibp": "ABP", "art line": "ABP", "abp1": "ABP", "uap": "ABP",
    "cvp": "CVP", "pap": "PAP", "uvp": "pressure other", "icp": "pressure other", "lap": "pressure other",
    "eog": "EOG other", "eog horizontal": "EOG other", "eog vertical": "EOG other", "horizontal eog": "EOG other",
    "loc": "EOG left", "eog(l)": "EOG left", "e1": "EOG left", "e1-m2": "EOG left", "eog left": "EOG left",
    "roc": "EOG right", "eog(r)": "EOG right", "e2": "EOG right", "e2-m1": "EOG right", "e2-m2": "EOG right",
    "emg": "EMG other", "chin": "EMG chin", "emg chin": "EMG chin", "chin emg": "EMG chin", "chin1-chin2": "EMG chin",
    "chin 1-chin 2": "EMG chin", "emg submental": "EMG chin", "submental emg": "EMG chin", "emg1-emg2": "EMG chin",
    "lat": "EMG leg left", "leg/l": "EMG leg left", "leg l": "EMG leg left", "l leg": "EMG leg left",
    "rat": "EMG leg right", "leg/r": "EMG leg right", "leg r": "EMG leg right", "r leg": "EMG leg right",
    "pcg": "PCG", "heart sound": "PCG", "phonocardiogram": "PCG",
    # bedside leads whose electrode position is not known: they are not V1 ... V6 (MIT-LCP/mimic-code#907)
    "v": "ECG other", "mcl": "ECG other", "mcl1": "ECG other", "ecg": "ECG other", "ekg": "ECG other",
    "ecg1": "ECG other", "ecg2": "ECG other", "ecg1-ecg2": "ECG other", "ecg other": "ECG other",
}  # fmt: skip
_BY_LOWER = {c.name.lower(): c.name for c in CHANNELS if c.modality not in ("", "text")}
_OTHER_BY_UNIT = {"mv": "ECG other", "mmhg": "pressure other"}
# what monitors write with mmHg and mV, and is neither a pressure of the blood nor an ECG
_NO_WAVE = {
    "co2", "etco2", "imco2", "fico2", "ico2", "o2", "po2", "pco2", "tco2", "gsr", "eda", "hr", "pr", "rr", "event",
    "events", "marker", "mark", "trigger", "temp", "status", "battery", "pace", "pacer",
}  # fmt: skip
_VOLTAGES = ("v", "mv", "uv", "µv", "μv", "nv")
_PREFIXES = ("ecg lead ", "mdc ecg lead ", "ecg ", "ekg ", "lead ", "eeg ")
# the 10-10 system's names of four positions that the 10-20 system called otherwise; mastoids for ear lobes
_EEG_RENAMED = {"t7": "t3", "t8": "t4", "p7": "t5", "p8": "t6", "m1": "a1", "m2": "a2"}
_EEG_REFERENCES = ("-ref", "-le", "-avg", "-av", "-ar", " ref")


@lru_cache(maxsize=4096)
def standard_name(name: str, unit: str) -> str | None:
    """Maps a recorded channel name to the vocabulary.

    Args:
        name: the name in the file, e.g. "MLII", "PLETH", "ECG II", "EEG C4-M1", "Fc5..".
        unit: the unit in the file; decides for unknown names ("mV" -> "ECG other", "mmHg" -> "pressure other"), and
            whether a bare "O2" or "C3" is an electrode (a voltage) or something else. (BioSemi's own grid also has a
            "C3": a site's table must say so.)

    Returns:
        A name of `CHANNELS`, or None where neither name nor unit tells the modality (the channel is kept in the
        recording, reported, and not stored).
    """
    if (exact := known_name(name, unit)) is not None:
        return exact
    # what else the name says may be anything, a person's name too
    if _key(name).startswith("eeg"):
        return "EEG other"
    if _NO_WAVE & set(re.findall("[a-z]+[0-9]*", _key(name))):
        return None
    return _OTHER_BY_UNIT.get(unit.strip().lower())


def known_name(name: str, unit: str = "") -> str | None:
    """As `standard_name`, but None where the whole name is neither of the vocabulary nor an alias of it."""
    key = _key(name)
    for candidate in (key, *(key.removeprefix(prefix) for prefix in _PREFIXES if key.startswith(prefix))):
        # "EEG II" or "ECG C4" are neither
        if candidate in _BY_LOWER and not (key.startswith("eeg ") and candidate != key):
            return _BY_LOWER[candidate]
        if candidate in _ALIASES and not key.startswith("eeg "):
            return _ALIASES[candidate]
    electrodes = _electrodes(key.removeprefix("eeg "))
    if key.startswith("eeg") or unit.strip().lower() in _VOLTAGES:
        if electrodes in _BY_LOWER:
            return _BY_LOWER[electrodes]
    return None


def _key(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).lower().strip(" .,:")


def _electrodes(key: str) -> str:
    """Of "t7-m2" and "c3-ref": "eeg t3-a2" and "eeg c3"."""
    for reference in _EEG_REFERENCES:
        key = key.removesuffix(reference)
    return "eeg " + "-".join(_EEG_RENAMED.get(part, part) for part in key.split("-"))


def modality_of(channel: int | str) -> Modality | None:
    """The modality of a channel id or standard name; None for PAD, CLS and TEXT."""
    kind = CHANNELS[channel if isinstance(channel, int) else CHANNEL_ID[channel]]
    return MODALITIES.get(kind.modality)
