"""The vocabulary: names found in the wild, and the order that stores and checkpoints rely on."""

import pytest

from data_pipelines.signals import CHANNEL_ID, CHANNELS, CSFM_CHANNELS, standard_name


@pytest.mark.parametrize(
    ("name", "unit", "expected"),
    [
        ("II", "mV", "II"), ("MLII", "mV", "II"), ("ECG II", "uV", "II"), ("Lead II", "mV", "II"), ("DII", "mV", "II"),
        ("MDC_ECG_LEAD_AVR", "uV", "aVR"), ("AVR", "mV", "aVR"), ("v6", "mV", "V6"), ("vz", "mV", "Vz"),
        ("II,", "mV", "II"), ("ecg_lead_v3", "mV", "V3"),
        ("V", "mV", "ECG other"), ("MCL", "mV", "ECG other"), ("MCL1", "mV", "ECG other"), ("ECG", "mV", "ECG other"),
        ("PLETH", "NU", "PPG"), ("Pleth", "mV", "PPG"), ("RED_PPG", "", "PPG other"), ("ABP", "mmHg", "ABP"),
        ("ART", "mmHg", "ABP"), ("probe 7", "mmHg", "pressure other"), ("probe 7", "mV", "ECG other"),
        ("C4-M1", "uV", "EEG C4-A1"), ("EEG C4-A1", "uV", "EEG C4-A1"), ("EEG Fpz-Cz", "uV", "EEG Fpz-Cz"),
        ("Fc5.", "uV", "EEG FC5"), ("Cz..", "uV", "EEG Cz"), ("T7..", "uV", "EEG T3"), ("EEG FP1-REF", "uV", "EEG Fp1"),
        ("Af7.", "uV", "EEG AF7"), ("O2", "uV", "EEG O2"), ("O2", "%", None), ("EEG sec", "uV", "EEG other"),
        ("EEG II", "uV", "EEG other"), ("E1-M2", "uV", "EOG left"), ("Chin1-Chin2", "uV", "EMG chin"),
        ("EMG submental", "uV", "EMG chin"), ("Resp nasal", "", "nasal pressure"), ("Resp oro-nasal", "", "airflow"),
        ("ABD", "", "abdomen effort"), ("CHEST", "", "thorax effort"), ("SaO2", "%", "SpO2"), ("PCG", "V", "PCG"),
        ("CO2", "mmHg", None), ("EtCO2", "mmHg", None), ("GSR", "mV", None), ("Event", "mV", None),
        ("Temp rectal", "DegC", None), ("HR", "bpm", None), ("CLS", "mV", "ECG other"), ("TEXT", "", None),
    ],
)  # fmt: skip
def test_names_found_in_the_wild(name, unit, expected):
    assert standard_name(name, unit) == expected


def test_every_standard_name_is_its_own():
    sensors = [kind for kind in CHANNELS if kind.modality not in ("", "text")]
    assert all(standard_name(kind.name, "") == kind.name for kind in sensors)


def test_the_vocabulary_only_grows_at_its_end():
    """Ids are in every store and checkpoint: these never change."""
    assert [CHANNELS[i].name for i in CSFM_CHANNELS] == "I II III aVR aVL aVF V1 V2 V3 V4 V5 V6 PPG".split()
    fixed = {
        "PAD": 0,
        "CLS": 14,
        "TEXT": 15,
        "RESP": 18,
        "ABP": 25,
        "EEG Fp1": 29,
        "PCG": 75,
        "PCG other": 76,
        "Vx": 77,
    }
    assert {name: CHANNEL_ID[name] for name in fixed} == fixed
    assert len(CHANNELS) == 77 + 3 + 36
