"""WAV files of heart sounds: RIFF with integer or floating-point samples, full scale = 1."""

from pathlib import Path

import numpy as np

from data_pipelines.errors import BadInput
from data_pipelines.formats.sidecar import find_sidecar, read_sidecar
from data_pipelines.recording import Channel, Recording

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_REMEDY = "replace the file by the original, or export it again"


def recognises(path: Path, head: bytes) -> bool:
    """Whether it is a RIFF WAVE file."""
    return head[:4] == b"RIFF" and head[8:12] == b"WAVE"


def read(path: str | Path, item: str = "") -> Recording:
    """Reads a WAV file.

    Args:
        path: of the file. A sidecar may name its channels; otherwise it is heart sounds: "PCG", or "PCG 1", "PCG 2".

    Returns:
        Channels in "a.u.", integers divided by their full scale.

    Raises:
        BadInput: chunks that do not fit the file, an encoding other than linear samples, no samples.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(path, f"a file that cannot be read ({error.strerror})", "a WAV file", "check it") from None
    rate, digital, full_scale = _parse(path, content)
    sidecar = read_sidecar(path) if find_sidecar(path) else None
    names = [note.name for note in sidecar.channels] if sidecar else _default_names(digital.shape[1])
    if len(names) != digital.shape[1]:
        raise BadInput(path, f"{digital.shape[1]} channels", f"{len(names)}, as its sidecar says", "correct it")
    channels = tuple(
        Channel(name, rate, "a.u.", (digital[:, i] / full_scale).astype(np.float32)) for i, name in enumerate(names)
    )
    subject = sidecar.subject if sidecar and sidecar.subject else path.stem
    return Recording(channels, subject=subject, study=path.stem, source="wav")


def _default_names(count: int) -> list[str]:
    return ["PCG"] if count == 1 else [f"PCG {i + 1}" for i in range(count)]


def _parse(path: Path, content: bytes) -> tuple[float, np.ndarray, float]:
    """(rate, samples [n, channels], full scale): the "fmt " chunk, then the "data" chunk."""
    form, at = None, 12
    while at + 8 <= len(content):
        name, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        body = content[at + 8 : at + 8 + size]
        if name == b"fmt " and len(body) >= 16:
            form = body
        if name == b"data":
            if form is None or len(body) < size:
                raise BadInput(path, f"{len(body)} bytes of samples", f"the {size} that it declares", _REMEDY)
            return _samples(path, form, body)
        at += 8 + size + size % 2
    raise BadInput(path, "no samples", "a format chunk and a data chunk", _REMEDY)


def _samples(path: Path, form: bytes, body: bytes) -> tuple[float, np.ndarray, float]:
    encoding, channels, rate = (int.from_bytes(form[a:b], "little") for a, b in ((0, 2), (2, 4), (4, 8)))
    block, bits = int.from_bytes(form[12:14], "little"), int.from_bytes(form[14:16], "little")
    if encoding == _EXTENSIBLE and len(form) >= 26:
        encoding = int.from_bytes(form[24:26], "little")
    kinds = {(_PCM, 8): "u1", (_PCM, 16): "<i2", (_PCM, 24): "u1", (_PCM, 32): "<i4",
             (_FLOAT, 32): "<f4", (_FLOAT, 64): "<f8"}  # fmt: skip
    if (encoding, bits) not in kinds or not channels or not 0 < rate < 1e7 or block != channels * bits // 8:
        found = f"encoding {encoding} with {bits} bits"
        raise BadInput(path, found, "8 to 32 bit integers or floating-point numbers", "export it as linear PCM")
    frames = len(body) // block
    if not frames:
        raise BadInput(path, "no samples", "at least one", _REMEDY)
    raw = np.frombuffer(body[: frames * block], kinds[encoding, bits])
    if (encoding, bits) == (_PCM, 24):
        wide = np.zeros((frames * channels, 4), np.uint8)
        wide[:, 1:] = raw.reshape(-1, 3)
        raw = wide.view("<i4")[:, 0] >> 8
    elif bits == 8:
        raw = raw.astype(np.int16) - 128
    digital = raw.reshape(frames, channels).astype(np.float64)
    digital[~np.isfinite(digital)] = np.nan
    return float(rate), digital, float(2 ** (bits - 1)) if encoding == _PCM else 1.0
