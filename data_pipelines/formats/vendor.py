"""Resting ECGs as vendors export them, through `ecgdatakit`: GE MUSE XML and HL7 aECG.

Only what was compared with generated files is offered; the library reads further formats (Philips, SCP, ISHNE, MFER),
which stay closed until somebody has such a file to compare with. XML that declares entities, or a DTD in the file, is
refused before any parser sees it; the name of an external DTD, which every MUSE export has, is not followed.
"""

import re
import warnings
from pathlib import Path

from data_pipelines.errors import BadInput
from data_pipelines.formats.sidecar import as_signal
from data_pipelines.recording import Channel, Recording

_ROOT = re.compile(rb"<(?:[A-Za-z_][\w.-]*:)?(RestingECG|AnnotatedECG)[\s>]")
_LARGEST = 1 << 27  # bytes


def recognises(path: Path, head: bytes) -> bool:
    """Whether it is an XML file whose root is that of MUSE or of an aECG."""
    return head.lstrip(b"\xef\xbb\xbf \r\n\t")[:5] == b"<?xml" and _ROOT.search(head) is not None


def person(path: Path, item: str = "") -> str:
    """The patient's id, "" if there is none."""
    return (_record(path).patient.patient_id or "").strip()


def read(path: str | Path, item: str = "") -> Recording:
    """Reads a vendor's ECG.

    Args:
        path: of the file.

    Returns:
        The stored leads in mV (MUSE stores eight: the others follow from them, see `channel_names.derive_leads`).
        Labels: sex and age, where told. Statements and names in the file are left there.

    Raises:
        BadInput: entities or a DTD in the file, a damaged file, leads without a scale, the library is not installed.
    """
    path = Path(path)
    record = _record(path)
    if any(lead.units != "mV" for lead in record.leads) or not record.leads:
        raise BadInput(path, "leads without a scale in volts", "a scale for every lead", "export it again")
    channels = tuple(
        Channel(lead.label[:32], float(lead.sampling_rate), "mV", as_signal(lead.samples)) for lead in record.leads
    )
    if not all(0 < channel.rate < 1e6 for channel in channels):
        raise BadInput(path, "no sampling rate", "one above 0", "export it again")
    labels = {}
    if record.patient.sex in ("M", "F"):
        labels["sex"] = float(record.patient.sex == "F")
    if record.patient.age is not None:
        labels["age"] = float(record.patient.age)
    subject = (record.patient.patient_id or "").strip() or path.stem
    return Recording(channels, subject=subject, study=path.stem, source="vendor", labels=labels)


def _record(path: Path):
    try:
        from ecgdatakit import FileParser
    except ImportError:
        remedy = "pip install 'csfm_jax[formats]'"
        raise BadInput(path, "a vendor's ECG, and no ecgdatakit", "ecgdatakit", remedy) from None
    _refuse_declarations(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about fields that are not read here
            return FileParser().parse(path, units="mV")
    except Exception as error:  # its message may hold what stands in the file
        found = f"a damaged file ({type(error).__name__})"
        raise BadInput(path, found, "a MUSE or aECG export", "export it again") from None


def _refuse_declarations(path: Path) -> None:
    if path.stat().st_size > _LARGEST:
        raise BadInput(path, "more than 128 MiB", "one resting ECG", "leave it out")
    content = path.read_bytes()
    doctype = re.search(rb"<!DOCTYPE[^>\[]*(\[|>)", content)
    if b"<!ENTITY" in content or b"\0" in content[:64] or (doctype and doctype[1] == b"["):
        raise BadInput(path, "a DTD or entities within the file", "plain XML in UTF-8 or Latin-1", "export it again")
