"""WAV files of heart sounds: RIFF with integer or floating-point samples, full scale = 1."""

import struct
from pathlib import Path

import numpy as np

from data_pipelines.errors import BadInput
from data_pipelines.formats.scaling import physical
from data_pipelines.formats.sidecar import ChannelNote, read_sidecar
from data_pipelines.recording import Channel, Recording

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_KINDS = {
    (_PCM, 8): "u1", (_PCM, 16): "<i2", (_PCM, 24): "u1", (_PCM, 32): "<i4", (_FLOAT, 32): "<f4", (_FLOAT, 64): "<f8",
}  # fmt: skip
_REMEDY = "replace the file by the original, or export it again"


def recognises(path: Path, head: bytes) -> bool:
    """Whether it is a RIFF WAVE file."""
    return head[:4] == b"RIFF" and head[8:12] == b"WAVE"


def read(path: str | Path, item: str = "") -> Recording:
    """Reads a WAV file.

    Args:
        path: of the file. A sidecar may name its channels and tell their unit at full scale; otherwise it is heart
            sounds: "PCG", or "PCG 1", "PCG 2".

    Returns:
        Channels in "a.u." unless the sidecar tells, integers divided by their full scale.

    Raises:
        BadInput: chunks that do not fit the file, an encoding other than linear samples, no samples or a part of one,
            a sidecar of another rate or number of channels.
    """
    path = Path(path)
    form, at, size = _chunks(path)
    rate, table, gain, middle = _samples(path, form, at, size)
    notes, mains, subject = [ChannelNote(name, "a.u.", "") for name in _default_names(table.shape[1])], None, ""
    if sidecar := read_sidecar(path):
        notes, mains, subject = sidecar.channels, sidecar.mains, sidecar.subject
        if sidecar.rate and sidecar.rate != rate:
            raise BadInput(path, f"{rate:g} Hz", f"{sidecar.rate:g}, as its sidecar says", "correct it")
    if len(notes) != table.shape[1]:
        raise BadInput(path, f"{table.shape[1]} channels", f"{len(notes)}, as its sidecar says", "correct it")
    channels = tuple(
        Channel(note.name, rate, note.unit or "a.u.", physical(_whole(column), gain, before=middle))
        for note, column in zip(notes, table.swapaxes(0, 1))
    )
    return Recording(channels, subject=subject or path.stem, study=path.stem, source="wav", mains=mains)


def _default_names(count: int) -> list[str]:
    return ["PCG"] if count == 1 else [f"PCG {i + 1}" for i in range(count)]


def _chunks(path: Path) -> tuple[bytes, int, int]:
    """The format chunk, and where the samples are: first byte and length."""
    form, at = b"", 12
    try:
        with open(path, "rb") as file:
            length = file.seek(0, 2)
            while at + 8 <= length:
                file.seek(at)
                name, size = struct.unpack("<4sI", file.read(8))
                if name == b"fmt ":
                    form = file.read(min(size, 40))
                if name == b"data":
                    if at + 8 + size > length:
                        found, expected = f"{length - at - 8} bytes of samples", f"the {size} that it declares"
                        raise BadInput(path, found, expected, _REMEDY)
                    return form, at + 8, size
                at += 8 + size + size % 2
    except OSError as error:
        raise BadInput(path, f"a file that cannot be read ({error.strerror})", "a WAV file", "check it") from None
    raise BadInput(path, "no samples", "a format chunk and a data chunk", _REMEDY)


def _samples(path: Path, form: bytes, at: int, size: int) -> tuple[float, np.ndarray, float, float]:
    """Rate, samples [n, channels] or, of 24 bits, bytes [n, channels, 3]; gain and what is added before it."""
    if len(form) < 16:
        raise BadInput(path, "samples without a format", "a format chunk before the data chunk", _REMEDY)
    encoding, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", form)
    if encoding == _EXTENSIBLE and len(form) >= 26:
        (encoding,) = struct.unpack_from("<H", form, 24)
    kind = _KINDS.get((encoding, bits))
    if kind is None or not channels or not 0 < rate < 1e7 or block != channels * bits // 8:
        found = f"encoding {encoding} with {bits} bits"
        raise BadInput(path, found, "8 to 32 bit integers or floating-point numbers", "export it as linear PCM")
    if not size:
        raise BadInput(path, "no samples", "at least one", _REMEDY)
    if size % block:
        raise BadInput(path, f"{size} bytes of samples", f"a multiple of the {block} of one instant", _REMEDY)
    raw = np.fromfile(path, kind, size // np.dtype(kind).itemsize, offset=at)
    if raw.nbytes != size:
        raise BadInput(path, "a file that shrank while it was read", f"{size} bytes", "read it again")
    table = raw.reshape(size // block, channels, *((3,) if (encoding, bits) == (_PCM, 24) else ()))
    gain = 2.0 ** (1 - bits) if encoding == _PCM else 1.0  # a power of two: no digit is lost
    return float(rate), table, gain, -128.0 if bits == 8 else 0.0


def _whole(column: np.ndarray) -> np.ndarray:
    """One channel's samples as numbers: those of 24 bits are three bytes yet."""
    if column.ndim == 1:
        return column
    wide = np.zeros((len(column), 4), np.uint8)
    wide[:, 1:] = column
    digital = wide.view("<i4")[:, 0]
    digital >>= 8
    return digital
