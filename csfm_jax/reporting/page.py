"""The report: one self-contained HTML page of a store or several, to be looked at before training."""

import base64
import html
import io

import numpy as np

from csfm_jax import drawing
from csfm_jax.reporting import charts
from csfm_jax.reporting.facts import Drawn, Facts
from data_pipelines.preprocess import INVALID
from data_pipelines.signals import CHANNELS, MODALITIES, modality_of

_PICTURE_DPI = 96
_MOST_ROWS = 12  # leads on a drawn page
_MOST_LABELS = 40
_STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; color: #2d2a2b; background: #fbfaf9; margin: 0 auto; max-width: 1080px;
       padding: 2rem 1.5rem 5rem }
h1 { font-size: 1.7rem; margin: 0 0 .2rem } h2 { font-size: 1.3rem; margin: 3rem 0 .3rem; border-top: 2px solid #2d2a2b;
     padding-top: .7rem } h3 { font-size: 1rem; margin: 1.6rem 0 .3rem } p, li { max-width: 72ch }
.soft { color: #6f6a6b } .grid { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; align-items: flex-start }
table { border-collapse: collapse; font-size: .88rem; margin: .3rem 0 } th { text-align: left; font-weight: 600 }
td, th { padding: .15rem .9rem .15rem 0; border-bottom: 1px solid #e6e1df; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums } svg { max-width: 100%; height: auto }
figure { margin: .6rem 0 } figcaption { font-size: .85rem; color: #6f6a6b }
img { max-width: 100%; border: 1px solid #eadfdb }
"""


def render(everything: list[Facts]) -> str:
    """The page's HTML; no report's text, no id and nothing from outside the page is in it."""
    body = [_summary(everything), *(_section(facts) for facts in everything)]
    title = ", ".join(facts.store.name for facts in everything)
    head = f'<meta charset="utf-8"><title>{_text(title)}: data report</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def _text(value) -> str:
    return html.escape(str(value))


def _table(header: list[str], rows: list[list]) -> str:
    def cell(value):
        number = isinstance(value, int | float | np.number)
        shown = f"{value:,}" if isinstance(value, int | np.integer) else f"{value:,.3g}" if number else _text(value)
        return f'<td class="n">{shown}</td>' if number else f"<td>{shown}</td>"

    top = "".join(f"<th>{_text(name)}</th>" for name in header)
    return f"<table><tr>{top}</tr>" + "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows) + "</table>"


def _summary(everything: list[Facts]) -> str:
    modalities = [name for name in MODALITIES if any(name in facts.hours for facts in everything)]
    rows = []
    for facts in everything:
        subjects = len(np.unique(facts.store.index.subject))
        hours = [round(facts.hours.get(name, 0.0), 2) for name in modalities]
        rows.append(
            [facts.store.name, len(facts.seconds), subjects, *(facts.splits[s][0] for s in facts.splits), *hours]
        )
    header = ["store", "recordings", "subjects", *(everything[0].splits), *(f"{name}, hours" for name in modalities)]
    total = {name: sum(facts.hours.get(name, 0.0) for facts in everything) for name in modalities}
    return (
        "<h1>What there is to train on</h1>"
        f'<p class="soft">Prepared by {_text(everything[0].store.spec)}. Recordings by split; hours by modality, a '
        "recording counting once for each that it holds.</p>"
        f"{_table(header, rows)}{charts.bars(total, charts.HUES, ' h')}"
    )


def _section(facts: Facts) -> str:
    parts = [f"<h2>{_text(facts.store.name)}</h2>", _described(facts)]
    parts.append(f'<div class="grid"><div><h3>Length of recordings</h3>{_durations(facts)}</div>')
    parts.append(f"<div><h3>Rates as recorded</h3>{_rates(facts)}</div></div>")
    parts.append(f'<div class="grid"><div><h3>Missing</h3>{_missing(facts)}</div>')
    parts.append(f"<div><h3>Amplitude</h3>{_amplitudes(facts)}</div></div>")
    parts += [f"<h3>Quality</h3>{_quality(facts)}", f"<h3>Channels by name</h3>{_names(facts)}"]
    parts += [f"<h3>Labels</h3>{_labels(facts)}", f"<h3>Reports</h3>{_reports(facts)}"]
    parts += [f"<h3>Drawn samples</h3>{_drawn(facts, facts.typical)}"]
    if facts.worst:
        parts += [f"<h3>The worst windows</h3>{_drawn(facts, facts.worst)}"]
    return "\n".join(parts)


def _described(facts: Facts) -> str:
    manifest = facts.store.manifest
    quarantined = manifest["files"].get("quarantine.jsonl", {}).get("count", 0)
    splits = ", ".join(f"{split} {n} ({subjects} subjects)" for split, (n, subjects) in facts.splits.items())
    derived = int(facts.store.index.derived.sum())
    lines = [
        f"{len(facts.seconds):,} recordings: {splits}.",
        f"{quarantined:,} could not be used" + (" (reasons in quarantine.jsonl)." if quarantined else "."),
        f"{derived:,} have leads that were computed from others." if derived else "",
        " ".join(filter(None, (manifest.get("licence", ""), manifest.get("citation", "")))),
    ]
    return "".join(f"<p>{_text(line)}</p>" for line in lines if line)


def _durations(facts: Facts) -> str:
    if facts.seconds.max() - facts.seconds.min() < 1e-3:
        return f"<p>{facts.seconds[0]:g} s, all of them.</p>"
    return charts.histogram(facts.seconds, "seconds")


def _rates(facts: Facts) -> str:
    rows = [
        [modality, f"{rate} Hz", int(n), f"{MODALITIES[modality].rate} Hz"]
        for modality, rates in facts.rates.items()
        for rate, n in sorted(rates.items(), key=lambda item: float(item[0]))
    ]
    return _table(["modality", "recorded at", "channels", "stored at"], rows) if rows else "<p>Not told.</p>"


def _hues(names) -> dict[str, str]:
    return {name: charts.HUES[modality_of(name).name] for name in names}


def _missing(facts: Facts) -> str:
    worst = dict(sorted(facts.missing.items(), key=lambda item: -item[1])[:20])
    if not any(worst.values()):
        return "<p>Nothing.</p>" if worst else "<p>Not measured.</p>"
    percent = {name: 100 * value for name, value in worst.items()}
    return charts.bars(percent, _hues(percent), " %", "{:.1f}")


def _amplitudes(facts: Facts) -> str:
    parts = []
    for modality in dict.fromkeys(modality_of(name).name for name in facts.amplitude):
        values = {name: spans for name, spans in facts.amplitude.items() if modality_of(name).name == modality}
        unit = MODALITIES[modality].unit
        axis = f"{unit}: range of 98 % of a window's samples (median, 5th to 95th percentile)"
        parts.append(charts.ranges(dict(list(values.items())[:20]), axis, charts.HUES[modality]))
    return "".join(parts)


def _quality(facts: Facts) -> str:
    if not facts.quality:
        return "<p>Not measured.</p>"
    rows = [[m, *(100 * value for value in wrong.values())] for m, wrong in facts.wrong.items()]
    names = [f"{name}, %" for name in next(iter(facts.wrong.values()))]
    figures = "".join(
        f"<figure>{charts.histogram(scores, f'{modality}: quality', charts.HUES[modality], (0, 1))}</figure>"
        for modality, scores in facts.quality.items()
    )
    note = (
        "Per channel and ten seconds; 1 is a good signal. Powerline and baseline are shares of power before filtering."
    )
    return f'<p class="soft">{note}</p><div class="grid">{figures}</div>{_table(["modality", *names], rows)}'


def _names(facts: Facts) -> str:
    rows = []
    for row in facts.names:
        out = "; ".join(f"{reason} ({n})" for reason, n in sorted(row["left_out"].items()))
        rows.append([row["name"] or "(none)", row["as"] or "not known", int(row["kept"]), out])
    return _table(["recorded as", "taken for", "kept", "left out"], rows) if rows else "<p>Not told.</p>"


def _labels(facts: Facts) -> str:
    if not facts.labels and not facts.continuous:
        return "<p>None.</p>"
    common = sorted(facts.labels.items(), key=lambda item: -item[1][0])
    counts = {name: positive for name, (positive, _) in common[:_MOST_LABELS] if positive}
    never = sum(not positive for _, (positive, _) in common)
    parts = [charts.bars(counts, form="{:,.0f}")] if counts else []
    if never or len(common) > _MOST_LABELS:
        parts.append(f'<p class="soft">{len(common)} classes, of which {never} have no positive recording.</p>')
    rows = [[name, low, middle, high, int(n)] for name, (low, middle, high, n) in facts.continuous.items()]
    if rows:
        parts.append(_table(["label", "5th percentile", "median", "95th", "labelled"], rows[:_MOST_LABELS]))
    return "".join(parts)


def _reports(facts: Facts) -> str:
    if not facts.reports:
        return "<p>None kept.</p>"
    languages = ", ".join(f"{name} {share:.0%}" for name, share in facts.languages.items())
    told = f"<p>{facts.reports:,} reports; language, by common words: {_text(languages)}.</p>"
    return told + charts.histogram(facts.words, "words a report", span=(0, float(facts.words.max()) + 1))


def _drawn(facts: Facts, windows: list[Drawn]) -> str:
    figures = []
    for window in windows:
        picture = _picture(facts.store, window)
        if picture:
            caption = "" if window.quality is None else f"quality {window.quality:.2f}; "
            caption += "as stored: filtered, at the stored rate"
            image = f'<img alt="a recording on ECG paper" src="{picture}">'
            figures.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return "".join(figures) or "<p>No window with a signal.</p>"


def _picture(store, window: Drawn) -> str | None:
    """A window on ECG paper as a data URI; None where nothing in it is valid."""
    seconds = min(10.0, float(store.index.milliseconds[window.recording]) / 1000 - window.start)
    traces = []
    for channel, counts in store.read_window(window.recording, window.start, seconds)[:_MOST_ROWS]:
        modality = modality_of(channel)
        samples = np.where(counts == INVALID, np.nan, counts * modality.step)
        if np.isfinite(samples).any():
            traces.append(drawing.Trace(CHANNELS[channel].name, modality.unit, modality.rate, samples))
    if not traces:
        return None
    stream = io.BytesIO()
    drawing.draw(traces, seconds).savefig(stream, dpi=_PICTURE_DPI, format="png")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
