"""DICOM waveforms (ECG, haemodynamic, respiration, ...), read with `pydicom`."""

import re
from pathlib import Path

import numpy as np

from data_pipelines.errors import BadInput
from data_pipelines.recording import Channel, Recording

_MAGIC = b"DICM"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_MOST_BYTES = 1 << 31
_LEAD = re.compile(r"(?:lead )?(i{1,3}|av[rlf]|v[1-6])\b", re.IGNORECASE)
# UCUM codes of ChannelSensitivityUnits -> ours
_UNITS = {"uv": "uV", "mv": "mV", "v": "V", "nv": "nV", "mm[hg]": "mmHg", "mmhg": "mmHg", "%": "%"}
_BITS = {"SB": "<i1", "UB": "u1", "SS": "<i2", "US": "<u2", "SL": "<i4", "UL": "<u4"}


def recognises(path: Path, head: bytes) -> bool:
    """Whether it is a DICOM file (with its preamble)."""
    return head[128:132] == _MAGIC


def person(path: Path, item: str = "") -> str:
    """PatientID, "" if there is none."""
    return str(_dataset(path).get("PatientID", "") or "").strip()


def read(path: str | Path, item: str = "") -> Recording:
    """Reads the waveforms of a DICOM file.

    Args:
        path: of the file.

    Returns:
        The channels of every multiplex group, each group at its rate and time offset; padding is NaN. Leads are called
        "I" ... "V6"; other channels as their source's code says. Labels: sex and age, where told.

    Raises:
        BadInput: no waveforms, samples that do not fit their declared number, an unknown encoding, a damaged file, or
            the library is not installed.
    """
    path = Path(path)
    dataset = _dataset(path)
    groups = dataset.get("WaveformSequence") or []
    if not groups:
        raise BadInput(path, "no waveforms", "a DICOM object with a waveform sequence", "leave the file out")
    try:
        channels = [channel for group in groups for channel in _group(path, group)]
    except BadInput:
        raise
    except Exception as error:  # elements that are missing or of another kind
        found = f"a waveform that is not as the standard has it ({type(error).__name__})"
        raise BadInput(path, found, "PS3.3 C.10.9", "export it again") from None
    if not any(len(channel.signal) for channel in channels):
        raise BadInput(path, "no samples", "at least one", "leave the file out")
    earliest = min(channel.start for channel in channels)
    channels = tuple(Channel(c.name, c.rate, c.unit, c.signal, c.start - earliest) for c in channels)
    name = str(dataset.get("PatientID", "") or "").strip() or path.stem
    return Recording(channels, subject=name, study=path.stem, source="dicom", labels=_labels(dataset))


def _dataset(path: Path):
    try:
        import pydicom
    except ImportError:
        raise BadInput(path, "a DICOM file, and no pydicom", "pydicom", "pip install 'csfm_jax[formats]'") from None
    try:
        with open(path, "rb") as file:
            meta = pydicom.filereader.read_file_meta_info(path)
            if meta.get("TransferSyntaxUID") == _DEFLATED:  # inflates as a whole, without a bound
                raise BadInput(path, "a deflated file", "an uncompressed one", "convert it with dcmconv")
            return pydicom.dcmread(file)
    except BadInput:
        raise
    except Exception as error:  # pydicom raises whatever comes to hand for damaged files
        found = f"a damaged DICOM file ({type(error).__name__})"
        raise BadInput(path, found, "a whole one", "replace it by the original") from None


def _group(path: Path, group) -> list[Channel]:
    count, samples, rate = (
        int(group.NumberOfWaveformChannels), int(group.NumberOfWaveformSamples), float(group.SamplingFrequency),
    )  # fmt: skip
    kind = _BITS.get(str(group.WaveformSampleInterpretation))
    if kind is None or not 0 < rate < 1e7 or count < 1:
        raise BadInput(path, "an unknown sample format or rate", f"one of {', '.join(_BITS)}", "export it again")
    data = group.WaveformData
    width = np.dtype(kind).itemsize
    if not 0 < count * samples * width <= len(data) <= _MOST_BYTES:
        found, expected = f"{len(data)} bytes of samples", f"{samples} samples of {count} channels"
        raise BadInput(path, found, expected, "replace it by the original")
    digital = np.frombuffer(data, kind, count * samples).reshape(samples, count).T
    padding = _padding(group, kind)
    start = float(group.get("MultiplexGroupTimeOffset") or 0) / 1000
    definitions = group.ChannelDefinitionSequence
    return [_channel(definition, row, padding, rate, start) for definition, row in zip(definitions, digital)]


def _padding(group, kind: str):
    value = group.get("WaveformPaddingValue")
    return np.frombuffer(bytes(value), kind)[0] if isinstance(value, bytes) and value else None


def _channel(definition, digital: np.ndarray, padding, rate: float, start: float) -> Channel:
    source = definition.ChannelSourceSequence[0]
    lead = _LEAD.match(str(source.get("CodeMeaning", "")))
    name = lead[1] if lead else " ".join(str(source.get("CodeMeaning", "")).split())[:32]
    # PS3.3 C.10.9.1.4.2: (sample + baseline) x sensitivity x correction factor, in the sensitivity's units
    factor = float(definition.get("ChannelSensitivity") or 1) * float(
        definition.get("ChannelSensitivityCorrectionFactor") or 1
    )
    baseline = float(definition.get("ChannelBaseline") or 0)
    units = definition.get("ChannelSensitivityUnitsSequence") or []
    code = str(units[0].get("CodeValue", "")) if units else ""
    signal = ((digital.astype(np.float64) + baseline) * factor).astype(np.float32)
    if padding is not None:
        signal[digital == padding] = np.nan
    skew = float(definition.get("ChannelTimeSkew") or 0)
    return Channel(name, rate, _UNITS.get(code.lower(), code or "a.u."), signal, start + skew)


def _labels(dataset) -> dict[str, float]:
    labels = {}
    if dataset.get("PatientSex") in ("M", "F"):
        labels["sex"] = float(dataset.PatientSex == "F")
    if age := re.fullmatch(r"(\d{3})Y", str(dataset.get("PatientAge") or "")):
        labels["age"] = float(age[1])
    return labels
