"""What an audit of invariance says: rows of a study's table, lines on the terminal, and one HTML page without ids."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from csfm_jax.evaluation import study_results
from csfm_jax.evaluation.bootstrap import Interval
from csfm_jax.evaluation.invariance import BETWEEN, Line
from csfm_jax.evaluation.moved import Chosen
from csfm_jax.evaluation.perturbations import WANDER_HZ
from csfm_jax.reporting import charts, markup
from data_pipelines import storage

_TASK = "invariance"
_KINDS = {
    "": "Between unperturbed windows", "gain": "Gain",
    "wander": f"Baseline wander, a sine of {WANDER_HZ:g} Hz (sensors with a high-pass from {2 * WANDER_HZ:g} Hz)",
    "mains": "Mains", "sampling": "Sampling rate", "shift": "Cut later", "leads": "Lost leads",
    "sensors": "Lost sensors",
}  # fmt: skip


class About(NamedTuple):
    """What was audited: split, names of the stores, `Chosen`, and whether the recordings themselves were read."""

    split: str
    stores: list[str]
    chosen: Chosen
    raw: bool


def rows(lines: dict[str, list[Line]]) -> list[tuple]:
    """In the columns of `study_results.COLUMNS`: figure is "cosine", "cosine_ratio" ..., label the perturbation."""
    first, found = next(iter(lines)), []
    for word, mine in lines.items():
        for line in mine:
            for against, figures in (("", line.figures), (first, line.differences)):
                for name, value in figures.items():
                    at = _TASK, word, "all", "trained", "all", 1.0, against, name, line.name
                    found.append((*at, *study_results.values(value), line.cases, line.patients))
    return found


def summary(lines: dict[str, list[Line]]) -> str:
    """A line a perturbation and model: its two ratios, and who is nearest."""
    wide = 2 + max(len(line.name) for mine in lines.values() for line in mine)
    told = []
    for word, mine in lines.items():
        told.append(f"{word}\n  {'':<{wide}}{'cosine, ratio':<23}{'euclidean, ratio':<23}nearest is the patient's own")
        for line in mine:
            figures = [line.figures.get(n) for n in ("cosine_ratio", "euclidean_ratio", "cosine_retrieval")]
            told.append(f"  {line.name:<{wide}}" + "".join(f"{_shown(value):<23}" for value in figures).rstrip())
    return "\n".join(told)


def write(lines: dict[str, list[Line]], about: About, target: Path) -> None:
    """Writes the page, whole or not at all."""
    storage.write_bytes(target, render(lines, about).encode())


def render(lines: dict[str, list[Line]], about: About) -> str:
    """The page's HTML."""
    body = [_beginning(lines, about), _compared(lines)]
    body += [_model(word, mine, first=i == 0) for i, (word, mine) in enumerate(lines.items())]
    return markup.document("csfm: invariance", body)


def _beginning(lines, about: About) -> str:
    between = next(line for line in next(iter(lines.values())) if line.name == BETWEEN)
    chosen = about.chosen
    told = [
        f"{len(chosen.store):,} {about.split} recordings of {', '.join(about.stores)}, windows of {chosen.seconds:g} s "
        f"of {between.patients:,} patients; {chosen.too_short:,} recordings were too short for two windows.",
        "Embeddings are standardised over patients. A ratio is the median displacement over the median distance of "
        "two patients: 0 is an embedding that does not notice, 1 one that might as well be another person's. Intervals "
        "are 95 % percentiles of draws of patients. SD is the channel's standard deviation.",
        "The recordings themselves were changed, then preprocessed for the mains frequency of their place: a hum of "
        "another one stays." if about.raw else
        "Stored samples were changed, then preprocessed, and so were those that they are compared with: the filters "
        "have been passed once before. What they removed is not there to be removed again, and nothing above a store's "
        "sampling rate is; what is added (wander, mains) and how a device samples meets them for the first time.",
    ]  # fmt: skip
    return "<h1>Invariance</h1>" + "".join(f'<p class="soft">{markup.text(line)}</p>' for line in told)


def _compared(lines) -> str:
    """Ratios of all models side by side."""
    if len(lines) < 2:
        return ""
    names = list(dict.fromkeys(line.name for mine in lines.values() for line in mine if line.name != BETWEEN))
    values = np.full((len(names), len(lines)), np.nan)
    for column, mine in enumerate(lines.values()):
        for line in mine:
            if line.name in names:
                values[names.index(line.name), column] = line.figures["cosine_ratio"].point
    drawn = charts.heat(values, names, list(lines), upward=False)
    return f"<h2>Models</h2><figure>{drawn}<figcaption>cosine distance, ratio</figcaption></figure>"


def _model(word: str, mine: list[Line], first: bool) -> str:
    parts = [f"<h2>{markup.text(word)}</h2>"]
    drawn = {
        line.name: (value.point, value.low, value.high)
        for line in mine
        if line.name != BETWEEN and np.isfinite((value := line.figures["cosine_ratio"]).point)
    }
    parts.append(f"<figure>{charts.intervals(drawn, 'cosine distance, ratio')}</figure>")
    header = ["", "recordings or pairs", "patients", "cosine", "ratio", "Euclidean", "ratio", "nearest is own"]
    header += [] if first else ["cosine ratio, less the first model's"]
    for kind in dict.fromkeys(line.kind for line in mine):
        table = []
        for line in mine:
            if line.kind == kind:
                names = ("cosine", "cosine_ratio", "euclidean", "euclidean_ratio", "cosine_retrieval")
                row = [line.name, line.cases, line.patients, *(_shown(line.figures.get(n)) for n in names)]
                table.append(row + ([] if first else [_shown(line.differences.get("cosine_ratio"), "+")]))
        parts += [f"<h3>{_KINDS[kind]}</h3>", markup.table(header, table)]
    return "\n".join(parts)


def _shown(value: Interval | None, sign: str = "") -> str:
    return "" if value is None else f"{value.point:{sign}.3f} ({value.low:{sign}.3f}, {value.high:{sign}.3f})"
