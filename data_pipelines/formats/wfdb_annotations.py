"""WFDB annotation files (`.atr`, `.arousal`, ...) as events: codes of fixed sets only, never free text."""

from pathlib import Path

import numpy as np

from data_pipelines.errors import BadInput
from data_pipelines.recording import Event

BEATS = frozenset("N L R B A a J S V r F e j n E / f Q ?".split())
_MARKS = frozenset("[ ! ] x ( ) p t u ` ' ^ | ~ s T".split())
# rhythms of the MIT-BIH databases, stages and arousals of the 2018 Challenge
NOTES = frozenset(
    "(AB (AFIB (AFL (B (BII (IVR (N (NOD (P (PREX (SBR (SVTA (T (VFL (VT (ASYS (VF W N1 N2 N3 R "
    "(resp_hypopnea resp_hypopnea) (resp_centralapnea resp_centralapnea) (resp_obstructiveapnea resp_obstructiveapnea) "
    "(resp_mixedapnea resp_mixedapnea) (resp_hypoventilation resp_hypoventilation) (resp_partialobstructive "
    "resp_partialobstructive) (resp_cheynestokesbreath resp_cheynestokesbreath) (arousal_rera arousal_rera) "
    "(arousal_snore arousal_snore) (arousal_bruxism arousal_bruxism) (arousal_plm arousal_plm) (arousal_noise "
    "arousal_noise) (arousal_spontaneous arousal_spontaneous)".split()
)


def read_annotations(path: Path, rate: float, seconds: float) -> tuple[Event, ...]:
    """The events of an annotation file.

    Args:
        path: of the file, e.g. `100.atr`. rate: of the record, Hz. seconds: length of the record.

    Returns:
        Moments: beats and marks by their symbol ("N", "V", "+"), rhythms and stages by their note ("(AFIB", "N2").

    Raises:
        BadInput: no such file, or one that the `wfdb` package cannot read or that goes beyond the record's end.
    """
    import wfdb

    if not path.is_file():
        raise BadInput(path, "no such file", "the record's annotations", "complete the copy of the dataset")
    try:
        found = wfdb.rdann(str(path.with_suffix("")), path.suffix.lstrip("."))
        times = np.asarray(found.sample) / rate
        codes = [_code(symbol, note) for symbol, note in zip(found.symbol, found.aux_note)]
    except Exception as error:  # its reader raises whatever comes to hand
        expected = "a WFDB annotation file"
        raise BadInput(path, f"a damaged file ({type(error).__name__})", expected, "replace it") from None
    if len(times) and not (times.min() >= 0 and times.max() <= seconds + 1):
        raise BadInput(path, "annotations beyond the record's end", "those of this record", "replace it")
    return tuple(Event(float(time), 0.0, code) for time, code in zip(times, codes) if code)


def _code(symbol: str, note: str) -> str | None:
    note = (note or "").strip("\0 ")
    if note in NOTES:
        return note
    return symbol if symbol in BEATS or symbol in _MARKS else None
