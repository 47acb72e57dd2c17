"""The report: one self-contained HTML page of a store or several, to be looked at before training."""

import numpy as np

from csfm_jax.reporting import charts, markup
from csfm_jax.reporting.facts import Drawn, Facts
from data_pipelines.signals import MODALITIES, modality_of

_MOST_LABELS = 40


def render(everything: list[Facts]) -> str:
    """The page's HTML; no report's text, no id and nothing from outside the page is in it."""
    body = [_summary(everything), *(_section(facts) for facts in everything)]
    title = ", ".join(facts.store.name for facts in everything)
    return markup.document(f"{title}: data report", body)


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
        f'<p class="soft">Prepared by {markup.text(everything[0].store.spec)}. Recordings by split; hours by modality, '
        "a recording counting once for each that it holds.</p>"
        f"{markup.table(header, rows)}{charts.bars(total, charts.HUES, ' h')}"
    )


def _section(facts: Facts) -> str:
    parts = [f"<h2>{markup.text(facts.store.name)}</h2>", _described(facts)]
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
    return "".join(f"<p>{markup.text(line)}</p>" for line in lines if line)


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
    return markup.table(["modality", "recorded at", "channels", "stored at"], rows) if rows else "<p>Not told.</p>"


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
    return f'<p class="soft">{note}</p><div class="grid">{figures}</div>{markup.table(["modality", *names], rows)}'


def _names(facts: Facts) -> str:
    rows = []
    for row in facts.names:
        out = "; ".join(f"{reason} ({n})" for reason, n in sorted(row["left_out"].items()))
        rows.append([row["name"] or "(none)", row["as"] or "not known", int(row["kept"]), out])
    return markup.table(["recorded as", "taken for", "kept", "left out"], rows) if rows else "<p>Not told.</p>"


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
        parts.append(markup.table(["label", "5th percentile", "median", "95th", "labelled"], rows[:_MOST_LABELS]))
    return "".join(parts)


def _reports(facts: Facts) -> str:
    if not facts.reports:
        return "<p>None kept.</p>"
    languages = ", ".join(f"{name} {share:.0%}" for name, share in facts.languages.items())
    told = f"<p>{facts.reports:,} reports; language, by common words: {markup.text(languages)}.</p>"
    return told + charts.histogram(facts.words, "words a report", span=(0, float(facts.words.max()) + 1))


def _drawn(facts: Facts, windows: list[Drawn]) -> str:
    figures = []
    for window in windows:
        picture = markup.picture(facts.store, window.recording, window.start)
        if picture:
            caption = "" if window.quality is None else f"quality {window.quality:.2f}; "
            caption += "as stored: filtered, at the stored rate"
            image = f'<img alt="a recording on ECG paper" src="{picture}">'
            figures.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return "".join(figures) or "<p>No window with a signal.</p>"
