"""The physical vocabulary: modalities (rate, patch, band, unit) and channels (names and ids).

Standard library only: the file is shipped verbatim beside the exported PyTorch model.

The vocabulary's order is part of every store and checkpoint: append, never reorder. Rows 1 to 13 are the channels of
CSFM in its own order (Gu et al. 2026, `network/model.py`), so its published tables are a slice of ours.
"""

from dataclasses import dataclass


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
    )
)
CHANNEL_ID: dict[str, int] = {c.name: c.id for c in CHANNELS}
PAD, CLS, TEXT = CHANNEL_ID["PAD"], CHANNEL_ID["CLS"], CHANNEL_ID["TEXT"]
CSFM_CHANNELS = tuple(range(1, 14))

_ALIASES = {
    "mlii": "II", "mli": "I", "mliii": "III", "avr": "aVR", "avl": "aVL", "avf": "aVF",
    "pleth": "PPG", "ppg": "PPG", "red_ppg": "PPG other", "ir_ppg": "PPG",
    "resp": "RESP", "airflow": "airflow", "sao2": "SpO2", "spo2": "SpO2", "abp": "ABP", "art": "ABP", "bp": "ABP",
    "cvp": "CVP", "pap": "PAP", "pcg": "PCG", "chin": "EMG chin",
    # bedside leads whose electrode position is not known: they are not V1 ... V6 (MIT-LCP/mimic-code#907)
    "v": "ECG other", "mcl": "ECG other", "mcl1": "ECG other", "ecg": "ECG other",
}  # fmt: skip
_BY_LOWER = {c.name.lower(): c.name for c in CHANNELS if c.modality not in ("", "text")}
_OTHER_BY_UNIT = {"mv": "ECG other", "mmhg": "pressure other"}


def standard_name(name: str, unit: str) -> str | None:
    """Maps a recorded channel name to the vocabulary.

    Args:
        name: the name in the file, e.g. "MLII", "PLETH", "ECG II", "aVF".
        unit: the unit in the file; decides for unknown names only ("mV" -> "ECG other", "mmHg" -> "pressure other").

    Returns:
        A name of `CHANNELS`, or None where neither name nor unit tells the modality (the channel is kept in the
        recording, reported, and not stored).
    """
    key = name.strip().lower()
    for candidate in (key, key.removeprefix("ecg ").removeprefix("lead ").strip()):
        if candidate in _BY_LOWER:
            return _BY_LOWER[candidate]
        if candidate in _ALIASES:
            return _ALIASES[candidate]
    return _OTHER_BY_UNIT.get(unit.strip().lower())


def modality_of(channel: int | str) -> Modality | None:
    """The modality of a channel id or standard name; None for PAD, CLS and TEXT."""
    kind = CHANNELS[channel if isinstance(channel, int) else CHANNEL_ID[channel]]
    return MODALITIES.get(kind.modality)
