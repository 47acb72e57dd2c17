"""Physical samples -> int16 at a modality's rate: the one preprocessing of stores, embedding and exported models.

NumPy, `filters.py` and `signals.py` only: the file is shipped verbatim beside the exported PyTorch model.

Steps, in order: unit conversion; invalid spans found (NaN, infinite, flat, beyond any int16 value) and bridged by
straight lines, only so that filters do not ring; even reflection at both ends; anti-aliased rational resampling that
keeps sample times exact; zero-phase Butterworth band and mains notches; for sensors without a physical scale, division
by the robust standard deviation of the valid filtered samples; quantisation with the modality's fixed step; invalid
spans, widened a little, marked again. The z-score comes later, on the window that is read (`normalise`).

The filters look forward as well as backward, but only inside the samples they are given: where a task may not look
ahead, cut the signal first.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

try:
    from .filters import LARGEST, bridge, carry_spans, filtered, invalid_spans, published_cleaning, robust_deviation
    from .signals import CHANNEL_ID, CHANNELS, MODALITIES, standard_name
except ImportError:  # beside an exported model, where there is no package
    from filters import LARGEST, bridge, carry_spans, filtered, invalid_spans, published_cleaning, robust_deviation
    from signals import CHANNEL_ID, CHANNELS, MODALITIES, standard_name

INVALID = np.int16(-32768)
# what was recorded may lie so far apart: times its length, and seconds that cost nothing whatever it is
_MOST_STRETCH, _STRETCH_SECONDS = 3, 600.0


@dataclass(frozen=True)
class Rule:
    """What a spec does to one modality; rate, band, unit, step and powerline are those of `signals.Modality`.

    Attributes:
        flat_seconds: a value that stays exactly constant this long is a sensor that measures nothing; None keeps it.
        plausible: (low, high) in `unit`; a sample outside is invalid. None: only the int16 range counts.
    """

    modality: str
    rate: int
    low: float | None
    high: float | None
    unit: str
    step: float
    powerline: bool
    flat_seconds: float | None
    plausible: tuple[float, float] | None


@dataclass(frozen=True)
class Spec:
    """A named, versioned preprocessing; every number that changes a sample stands here.

    Attributes:
        name, version: raise the version with any change of numbers or of code that changes samples.
        resampling: "polyphase" (anti-aliased, edges reflected) or "fft" (the published model's; circular).
        cleaning: "zero-phase" (band and notches of `rules`) or "neurokit2" (its `ecg_clean`, `ppg_clean` of 0.2.13).
        rules: one a modality; a modality without a rule is dropped and reported.
        order: of the Butterworth filters; they are passed twice, so the slope doubles and the corner is at -6 dB.
        notch_hz: removed where the mains frequency is not known; notch_q: frequency over bandwidth of a notch.
        kernel_lobes, kernel_beta: half length of the resampling kernel (in samples of the slower rate), Kaiser's beta.
        edge_periods: reflected signal at both ends, in periods of the low corner; edge_seconds: the least of it.
        widen_seconds: invalid spans grow by this and one sample of each rate at both ends.
        shortest_seconds: a channel with less valid signal is dropped.
        lowest_rate: a channel recorded slower than this fraction of the canonical rate is dropped.
        epsilon: of the z-score, in int16 counts.
    """

    name: str
    version: int
    resampling: str
    cleaning: str
    rules: tuple[Rule, ...]
    order: int = 2
    notch_hz: tuple[float, ...] = (50.0, 60.0)
    notch_q: float = 30.0
    kernel_lobes: int = 10
    kernel_beta: float = 5.0
    edge_periods: float = 1.5
    edge_seconds: float = 0.5
    widen_seconds: float = 0.02
    shortest_seconds: float = 0.5
    lowest_rate: float = 0.1
    epsilon: float = 1e-8

    def rule(self, modality: str) -> Rule | None:
        return next((r for r in self.rules if r.modality == modality), None)

    def to_dict(self) -> dict:
        """Plain values, as JSON keeps them; `from_dict` reads them back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict) -> "Spec":
        """Raises TypeError for unknown or missing fields."""
        tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k != "rules"}
        rules = ({k: tuple(v) if isinstance(v, list) else v for k, v in rule.items()} for rule in values["rules"])
        return cls(rules=tuple(Rule(**rule) for rule in rules), **tuples)

    def digest(self) -> str:
        """16 hex digits of SHA-256 over all fields: equal digests, equal samples."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.name} version {self.version} ({self.digest()})"


# A breath may pause for ten seconds, an oximeter repeats whole percents; elsewhere noise moves the last bit.
_FLAT_SECONDS = {"resp": 10.0, "spo2": None}
_PLAUSIBLE = {"spo2": (1.0, 101.0)}  # a probe that is off reads 0


def _rules(*modalities: str) -> tuple[Rule, ...]:
    return tuple(
        Rule(
            m.name, m.rate, *m.band, m.unit, m.step, m.powerline, _FLAT_SECONDS.get(m.name, 1.0), _PLAUSIBLE.get(m.name)
        )
        for m in (MODALITIES[name] for name in modalities)
    )


SPECS: dict[str, Spec] = {
    "csfm-jax": Spec("csfm-jax", 1, "polyphase", "zero-phase", _rules(*MODALITIES)),
    "csfm-published": Spec("csfm-published", 1, "fft", "neurokit2", _rules("ecg", "ppg")),
}


def get_spec(name: str) -> Spec:
    """The spec of that name; ValueError names the known ones."""
    if name not in SPECS:
        raise ValueError(f"found no preprocessing {name!r}; expected one of {', '.join(SPECS)}")
    return SPECS[name]


def mismatch(found: Spec, expected: Spec) -> str | None:
    """None for equal specs, else one phrase that names both versions and the first differing field."""
    if found == expected:
        return None
    a, b = found.to_dict(), expected.to_dict()
    field = next((k for k in b if a.get(k) != b[k]), "name")
    return f"{found}, not {expected}: they differ in {field!r}"


@dataclass(frozen=True)
class Prepared:
    """One channel at its modality's rate: samples int16 [m], INVALID where absent; report as in `PreparedRecording`."""

    samples: np.ndarray
    report: dict


@dataclass(frozen=True)
class PreparedRecording:
    """A recording's usable channels on one time axis.

    Attributes:
        channels: int32 [C], ids of `signals.CHANNELS`, ascending.
        samples: C arrays int16 [seconds x rate, rounded down], from the recording's start; INVALID where absent.
        seconds: length, a whole number of milliseconds.
        report: one dict a given channel, in the order given: "name", "channel" (standard name or None), "modality",
            "status" ("kept" or "dropped"), "reason" (of dropping), "rate", "unit", "invalid" (fraction), "done" (list).
    """

    channels: np.ndarray
    samples: list[np.ndarray]
    seconds: float
    report: list[dict]

    @property
    def milliseconds(self) -> int:
        return round(self.seconds * 1000)


def prepare_channel(
    signal: np.ndarray,
    rate: float,
    unit: str,
    channel_name: str,
    start: float = 0.0,
    *,
    spec: Spec,
    mains: float | None = None,
) -> Prepared:
    """Prepares one channel alone; arguments as in `prepare`. `samples` is empty where the channel is dropped."""
    made = prepare([(channel_name, rate, unit, start, signal)], spec=spec, mains=mains)
    return Prepared(made.samples[0] if made.samples else np.zeros(0, np.int16), made.report[0])


def prepare(
    channels: Sequence[tuple], *, spec: Spec, mains: float | None = None, names: Mapping[str, str] | None = None
) -> PreparedRecording:
    """Prepares the channels of one recording.

    Args:
        channels: (name, rate in Hz, unit, start in seconds, signal [samples] in that unit, NaN where invalid) each.
        spec: what to do.
        mains: powerline frequency in Hz; None removes every frequency of `spec.notch_hz`.
        names: a site's own channel names, in lower case -> standard name, "" to leave the channel out; they come
            before the vocabulary's.

    Returns:
        The usable channels; a channel that cannot be used is left out and reported, never an error.
    """
    reports = [{"name": c[0], "rate": float(c[1]), "unit": c[2]} for c in channels]
    groups: dict[tuple, list[int]] = {}
    taken: set[int] = set()
    for i, (_, rate, _, start, signal) in enumerate(channels):
        rule = _admit(reports[i], len(signal), spec, taken, names or {})
        if rule:
            groups.setdefault((rule, float(rate), float(start), len(signal)), []).append(i)
    # of what is used: one number an hour does not make a recording as long as a night
    spans = [(start, start + samples / rate) for _, rate, start, samples in groups]
    latest = _latest_end(spans)
    for rule, rate, start, samples in [key for key in groups if key[2] + key[3] / key[1] > latest]:
        for i in groups.pop((rule, rate, start, samples)):
            reports[i].pop("factor")
            reports[i]["reason"] = "starts too late"
    milliseconds = int(max((end for _, end in spans if end <= latest), default=0.0) * 1000 + 1e-6)
    made: dict[int, np.ndarray] = {}
    for rule, rate, start, rows in _bounded(groups):
        x = np.stack([np.asarray(channels[i][4], np.float64) * reports[i].pop("factor") for i in rows])
        samples, done, reasons = _prepare_group(x, rate, start, milliseconds * rule.rate // 1000, rule, spec, mains)
        invalid = np.mean(samples == INVALID, axis=1)
        for row, i in enumerate(rows):
            reports[i]["done"] = done
            if reasons[row]:
                reports[i].update(status="dropped", reason=reasons[row])
                continue
            reports[i].update(status="kept", invalid=float(invalid[row]))
            made[CHANNEL_ID[reports[i]["channel"]]] = samples[row]
    ids = sorted(made)
    return PreparedRecording(np.array(ids, np.int32), [made[i] for i in ids], milliseconds / 1000, reports)


def _latest_end(spans: list[tuple[float, float]]) -> float:
    """How far a recording may reach: a channel beyond would make it many times as long as what is in it."""
    covered, reached = 0.0, -np.inf
    for start, end in sorted(spans):  # what overlaps counts once
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return _MOST_STRETCH * covered + _STRETCH_SECONDS


def _bounded(groups):
    """Groups of rows small enough to filter together: thirty channels of a night do not fit into memory at once."""
    for (rule, rate, start, samples), rows in groups.items():
        most = max(1, 2**23 // samples)
        for i in range(0, len(rows), most):
            yield rule, rate, start, rows[i : i + most]


_TO_MICROVOLT = {"v": 1e6, "mv": 1e3, "uv": 1.0, "µv": 1.0, "μv": 1.0, "nv": 1e-3}
_TO_MMHG = {"mmhg": 1.0, "kpa": 7.50062, "cmh2o": 0.735559}
_SCALES = {"mV": _TO_MICROVOLT, "uV": _TO_MICROVOLT, "mmHg": _TO_MMHG, "%": {"%": 1.0, "percent": 1.0, "": 1.0}}


def unit_factor(unit: str, modality: str) -> float | None:
    """What a sample in `unit` is multiplied by to be in the modality's unit; None where that makes no sense.

    A modality in "a.u." takes any unit as it is: its scale is removed later anyhow.
    """
    target = MODALITIES[modality].unit
    if target == "a.u.":
        return 1.0
    scale, key = _SCALES[target], unit.strip().lower()
    return scale[key] / scale[target.lower()] if key in scale else None


def _admit(report: dict, samples: int, spec: Spec, taken: set[int], names: Mapping[str, str]) -> Rule | None:
    """Decides from name, unit and rate alone; fills the report, and `taken` with the channel's id."""
    own = names.get(report["name"].strip().lower())
    standard = standard_name(report["name"], report["unit"]) if own is None else own or None
    report.update(channel=standard, modality=None, status="dropped", done=[])
    if standard is None:
        report["reason"] = "unknown name" if own is None else "left out by the site's table"
        return None
    id_ = CHANNEL_ID[standard]
    report["modality"] = CHANNELS[id_].modality
    rule, factor = spec.rule(report["modality"]), unit_factor(report["unit"], report["modality"])
    if rule is None:
        report["reason"] = f"modality unknown to {spec.name}"
    elif factor is None:
        report["reason"] = "unit not convertible to " + rule.unit
    elif not report["rate"] >= spec.lowest_rate * rule.rate:
        report["reason"] = "rate too low"
    elif samples < spec.shortest_seconds * report["rate"]:
        report["reason"] = "too short"
    elif id_ in taken:
        report["reason"] = "duplicate of another channel"
    else:
        taken.add(id_)
        report["factor"] = factor
        return rule
    return None


def _prepare_group(x, rate, start, length, rule, spec, mains):
    """[C, n] float64 in the rule's unit -> ([C, length] int16, what was done, per row a reason to drop it or None)."""
    bad = invalid_spans(x, rate, rule)
    done = [f"{rate:g} -> {rule.rate} Hz"] if rate != rule.rate else []
    need = spec.shortest_seconds * rate
    reasons = [None if good >= need else "flat or invalid throughout" for good in (~bad).sum(axis=1)]
    bridge(x, bad)
    first = max(0, int(np.ceil(start * rule.rate - 1e-6)))  # canonical sample at or after the channel's first one
    count = min(length, int((start + x.shape[1] / rate) * rule.rate + 1e-6)) - first
    offset = first / rule.rate - start  # of that sample, in seconds after the channel's first one
    if count <= 0:
        return np.empty((len(x), 0), np.int16), done, ["too short"] * len(x)
    if spec.cleaning == "neurokit2":
        y = published_cleaning(x, rate, rule)[:, :count]
        done.append("neurokit2 cleaning")
    else:
        y = filtered(x, rate, offset, count, rule, spec, mains, done)
    bad = carry_spans(bad, rate, offset, y.shape[1], rule.rate, spec.widen_seconds)
    if rule.unit == "a.u.":
        scale = robust_deviation(y, bad)
        y /= np.where(scale > 0, scale, 1.0)[:, None]
        reasons = [r or ("flat or invalid throughout" if not s > 0 else None) for r, s in zip(reasons, scale)]
        done.append("divided by robust deviation")
    out = np.full((len(x), length), INVALID)
    counts = np.rint(y / rule.step)
    bad |= ~(np.abs(counts) <= LARGEST)
    counts[bad] = INVALID
    out[:, first : first + y.shape[1]] = counts
    valid = (~bad).sum(axis=1)
    return out, done, [r or (None if v else "flat or invalid throughout") for r, v in zip(reasons, valid)]


def normalise(window: np.ndarray, whole: bool | None = None, epsilon: float = 1e-8) -> np.ndarray:
    """Z-scores a window: float32, NaN where invalid.

    Args:
        window: int16 [..., n]; each row (one channel's window) has its own mean and deviation, of its valid samples.
        whole: whether no sample is INVALID, where the caller knows; None looks.
        epsilon: added to the deviation; a constant window becomes zeros.
    """
    x = window.astype(np.float32)
    if whole is None:
        whole = not window.size or bool(window.min() > INVALID)
    if whole:
        # dot products: half the time of NumPy's own sums
        count = np.float32(max(1, x.shape[-1]))
        x -= (np.vecdot(x, _ones(x.shape[-1])) / count)[..., None]
        deviation = np.sqrt(np.vecdot(x, x) / count)[..., None]
    else:
        bad = window == INVALID
        x[bad] = 0.0
        count = np.maximum(1, (~bad).sum(axis=-1, keepdims=True)).astype(np.float32)
        x -= x.sum(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32) / count
        x[bad] = 0.0
        deviation = np.sqrt((x * x).sum(axis=-1, keepdims=True) / count)
        x[bad] = np.nan
    x *= np.float32(1) / (deviation + np.float32(epsilon))
    return x


@lru_cache(maxsize=16)
def _ones(n: int) -> np.ndarray:
    return np.ones(n, np.float32)


def tokens(samples: np.ndarray, patch: int, rate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts normalised samples into patches; a rest shorter than a patch is left out.

    Args:
        samples: float32 [..., n] from `normalise`, NaN where invalid.
        patch: samples of a patch. rate: Hz.

    Returns:
        patches float32 [..., k, patch] (zeros in absent ones), centre times float32 [k] in seconds from the window's
        start, and valid bool [..., k]: a token is absent if any of its samples is invalid.
    """
    k = samples.shape[-1] // patch
    patches = samples[..., : k * patch].reshape(*samples.shape[:-1], k, patch)
    finite = np.isfinite(patches)
    if finite.all():  # the common case, and the reduction over short rows below is slow
        valid = np.ones(patches.shape[:-1], bool)
    else:
        valid = finite.all(axis=-1)
        patches = np.where(valid[..., None], patches, np.float32(0))
    return patches, ((np.arange(k) + 0.5) * (patch / rate)).astype(np.float32), valid
