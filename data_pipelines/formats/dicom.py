"""DICOM waveforms (ECG, haemodynamic, respiration, ...), read with `pydicom`."""

import contextlib
import math
import mmap
import re
import warnings
from pathlib import Path

import numpy as np

from data_pipelines.errors import BadInput
from data_pipelines.formats.scaling import physical
from data_pipelines.recording import Channel, Recording

_MAGIC = b"DICM"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205")  # the last two: JPIP
_LEAD = re.compile(r"(?:lead )?(i{1,3}|av[rlf]|v[1-6])\b", re.IGNORECASE)
# SCP-ECG and MDC number leads alike ("5.6.3-9-1", "2:1"), whatever language the code's meaning is in
_LEAD_CODE = re.compile(r"(?:5\.6\.3-9-|2:)(\d{1,2})", re.ASCII)
_LEAD_NUMBERS = {1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF"} | {i + 2: f"V{i}" for i in range(1, 7)}
# UCUM codes of ChannelSensitivityUnits -> ours
_UNITS = {"uv": "uV", "mv": "mV", "v": "V", "nv": "nV", "mm[hg]": "mmHg", "mmhg": "mmHg", "%": "%"}
_BITS = {"SB": "i1", "UB": "u1", "SS": "i2", "US": "u2", "SL": "i4", "UL": "u4"}
_AGE = re.compile(r"(\d{3})([YMWD])", re.ASCII)
_AGES_A_YEAR = {"Y": 1.0, "M": 12.0, "W": 365.25 / 7, "D": 365.25}


def recognises(path: Path, head: bytes) -> bool:
    """Whether it is a DICOM file (with its preamble)."""
    return head[128:132] == _MAGIC


def person(path: Path, item: str = "") -> str:
    """PatientID, "" if there is none; no waveform is read for it."""
    with _whatever_it_raises(path):
        return _patient(_dataset(path, ["PatientID"]))


def read(path: str | Path, item: str = "") -> Recording:
    """Reads the waveforms of a DICOM file.

    Args:
        path: of the file.

    Returns:
        The channels of every multiplex group, each group at its rate and time offset; padding is NaN. Leads are called
        "I" ... "V6"; other channels as their source's code says. Groups that were computed, such as median beats, come
        last and are marked as derived. Labels: sex and age, where told.

    Raises:
        BadInput: no waveforms, samples that do not fit their declared number, an unknown encoding, a damaged or
            deflated file, or the library is not installed.
    """
    path = Path(path)
    with _whatever_it_raises(path):
        dataset = _dataset(path, None)
        groups = dataset.get("WaveformSequence") or []
        if not groups:
            raise BadInput(path, "no waveforms", "a DICOM object with a waveform sequence", "leave the file out")
        order = ">" if dataset.file_meta.get("TransferSyntaxUID") == _BIG_ENDIAN else "<"
        channels = [channel for group in groups for channel in _group(path, group, order)]
        subject, labels = _patient(dataset) or path.stem, _labels(dataset)
    earliest = min(channel.start for channel in channels)
    channels = [channel._replace(start=channel.start - earliest) for channel in channels]
    channels.sort(key=lambda channel: channel.derived)
    return Recording(tuple(channels), subject=subject, study=path.stem, source="dicom", labels=labels)


@contextlib.contextmanager
def _whatever_it_raises(path: Path):
    """BadInput in place of whatever comes to hand for damaged files; no warnings, which quote the file's values."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BadInput:
        raise
    except Exception as error:
        found = f"a damaged DICOM file, or one that is not as the standard has it ({type(error).__name__})"
        raise BadInput(path, found, "PS3.3 C.10.9", "replace it by the original, or export it again") from None


def _dataset(path: Path, tags: list[str] | None):
    """The file's elements, or only those of `tags`."""
    try:
        import pydicom
    except ImportError:
        raise BadInput(path, "a DICOM file, and no pydicom", "pydicom", "pip install 'csfm_jax[formats]'") from None
    # mapped: reading an element of whatever declared length ends where the file does, before anything is allocated
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        content.seek(132)
        meta = pydicom.filereader.read_dataset(content, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        if str(meta.get("TransferSyntaxUID", "")) in _DEFLATED:  # the library inflates all of it, without a bound
            raise BadInput(path, "a deflated file", "an uncompressed one", "convert it with dcmconv +te")
        content.seek(0)
        return pydicom.dcmread(content, specific_tags=tags)


def _patient(dataset) -> str:
    return str(dataset.get("PatientID", "") or "").strip()


def _group(path: Path, group, order: str) -> list[Channel]:
    count, samples, rate = (
        int(group.NumberOfWaveformChannels), int(group.NumberOfWaveformSamples), float(group.SamplingFrequency),
    )  # fmt: skip
    kind, bits = _BITS.get(str(group.WaveformSampleInterpretation)), int(group.WaveformBitsAllocated)
    if kind is None or bits != 8 * int(kind[1]) or not 1e-5 < rate < 1e7:
        raise BadInput(path, "an unknown sample format or rate", f"one of {', '.join(_BITS)}", "export it again")
    kind, data = np.dtype(order + kind), group.WaveformData
    if not (count > 0 and samples > 0 and count * samples * kind.itemsize <= len(data)):
        found, expected = f"{len(data)} bytes of samples", f"{samples} samples of {count} channels"
        raise BadInput(path, found, expected, "replace it by the original")
    definitions = group.ChannelDefinitionSequence
    if len(definitions) != count:
        found, expected = f"{len(definitions)} channel definitions", f"{count}, as the group declares"
        raise BadInput(path, found, expected, "replace it by the original")
    digital = np.frombuffer(data, kind, count * samples).reshape(samples, count).T
    padding = group.get("WaveformPaddingValue")
    if padding is not None:
        padding = np.frombuffer(padding, kind)[0] if isinstance(padding, bytes) else int(padding)
    start = float(group.get("MultiplexGroupTimeOffset") or 0) / 1000
    derived = str(group.get("WaveformOriginality", "")) == "DERIVED"
    channels = [_channel(definition, row, padding, rate, start) for definition, row in zip(definitions, digital)]
    if not all(math.isfinite(channel.start) for channel in channels):
        raise BadInput(path, "a time offset that is no number", "milliseconds", "export it again")
    return [channel._replace(derived=derived) for channel in channels]


def _channel(definition, digital: np.ndarray, padding, rate: float, start: float) -> Channel:
    source = definition.ChannelSourceSequence[0]
    name = _lead_name(str(source.get("CodeValue", "")), str(source.get("CodeMeaning", "")))
    # PS3.3 C.10.9.1: sample x sensitivity x correction factor, then the baseline, which is in the sensitivity's units
    gain = _decimal(definition, "ChannelSensitivity", 1.0) * _decimal(
        definition, "ChannelSensitivityCorrectionFactor", 1.0
    )
    signal = physical(digital, gain, after=_decimal(definition, "ChannelBaseline", 0.0), missing=padding)
    units = definition.get("ChannelSensitivityUnitsSequence") or []
    code = str(units[0].get("CodeValue", "")) if units else ""
    late = _decimal(definition, "ChannelTimeSkew", 0.0) + _decimal(definition, "ChannelSampleSkew", 0.0) / rate
    return Channel(name, rate, _UNITS.get(code.lower(), code or "a.u."), signal, start + late)


def _decimal(definition, keyword: str, default: float) -> float:
    value = definition.get(keyword)
    return default if value is None or value == "" else float(value)


def _lead_name(code: str, meaning: str) -> str:
    number, lead = _LEAD_CODE.fullmatch(code), _LEAD.match(meaning)
    if number and int(number[1]) in _LEAD_NUMBERS:
        return _LEAD_NUMBERS[int(number[1])]
    return lead[1] if lead else " ".join(meaning.split())[:32]


def _labels(dataset) -> dict[str, float]:
    labels = {}
    if dataset.get("PatientSex") in ("M", "F"):
        labels["sex"] = float(dataset.PatientSex == "F")
    if age := _AGE.fullmatch(str(dataset.get("PatientAge") or "")):
        labels["age"] = int(age[1]) / _AGES_A_YEAR[age[2]]
    return labels
