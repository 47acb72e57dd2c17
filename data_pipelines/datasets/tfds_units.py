"""The unit of a TFDS dataset's signal: as the dataset tells it, or as the user does; never assumed."""

import json
import re
from pathlib import Path

from data_pipelines.errors import BadInput

_WORDS = {"millivolt": "mV", "microvolt": "uV", "nanovolt": "nV", "volt": "V", "arbitrary unit": "a.u."}
_UNITS = ("mV", "uV", "nV", "mmHg", "kPa", "cmH2O", "a.u.")
# "200 counts per mV" and "ADC units (1/mV)" tell no unit; neither does the lead V
_UNIT = re.compile(
    rf"(?<![A-Za-z/])(?<!per )(?<!/ )({'|'.join(map(re.escape, (*_WORDS, *_UNITS)))})s?(?![A-Za-z0-9])", re.IGNORECASE
)
_KNOWN = {name.lower(): unit for name, unit in (*_WORDS.items(), *((unit, unit) for unit in _UNITS))}


def units_of(root: Path, signal: str, given: str | None, count: int, about: dict) -> tuple[tuple[str, ...], str]:
    """The unit of each channel of a signal.

    Args:
        root: the dataset's folder. signal: name of its feature. given: the option "unit": one for all channels, or one
            each with commas between; None = not given. count: number of channels. about: what metadata.json holds.

    Returns:
        The units, and where they are recorded: "metadata.json", "features.json", or "" where only `given` tells them.

    Raises:
        BadInput: neither the dataset nor the user tells it, they contradict each other, or there are too few or many.
    """
    found, where = _in_metadata(about, signal, count), "metadata.json"
    if not found:
        found, where = _in_features(root / "features.json", signal) * count, "features.json"
    said = tuple(part.strip() for part in given.split(",")) if given else ()
    said = said * count if len(said) == 1 else said
    if said and (len(said) != count or not all(said)):
        raise BadInput("--source: unit", f"{len(said)} units", f"one, or {count}: one a channel", "correct it")
    if not said and not found:
        expected = "unit=mV or another (unit=a.u. where there is no scale), since nothing in the dataset records one"
        raise BadInput(root, f"no unit of the signal {signal!r}", expected, "add it to the address")
    if said and found and list(map(_plain, said)) != list(map(_plain, found)):
        expected = f"{','.join(dict.fromkeys(found))}, as {where} records"
        raise BadInput("--source: unit", f"{given[:64]!r}", expected, "leave it out, or correct the dataset")
    return found or said, where if found else ""


def _in_metadata(about: dict, signal: str, count: int) -> tuple[str, ...]:
    """What `tfds.core.MetadataDict(units={"ecg": "mV"})` recorded: a text or a list, of the signal or of all."""
    for told in (about.get("units"), about.get("unit")):
        told = told.get(signal) if isinstance(told, dict) else told
        told = [told] * count if isinstance(told, str) else told
        if isinstance(told, list) and len(told) == count and all(isinstance(t, str) and t.strip() for t in told):
            return tuple(t.strip() for t in told)
    return ()


def _in_features(file: Path, signal: str) -> tuple[str, ...]:
    """The one unit that the feature's documentation names (`tfds.features.Tensor(..., doc="ECG in mV")`), if it does.

    Of integers it would be the unit behind a gain that nobody tells.
    """
    feature = json.loads(file.read_bytes())["featuresDict"]["features"].get(signal)
    if not isinstance(feature, dict) or "float" not in json.dumps(feature.get("tensor", {})):
        return ()
    text = f"{feature.get('description', '')} {feature.get('valueRange', '')}".translate({0xB5: "u", 0x3BC: "u"})
    units = {_KNOWN[match[1].lower()] for match in _UNIT.finditer(text)}
    return tuple(units) if len(units) == 1 else ()


def _plain(unit: str) -> str:
    return unit.translate({0xB5: "u", 0x3BC: "u"}).lower()
