"""What the pages share: their style, escaped text, tables, and windows drawn on ECG paper."""

import base64
import html
import io

import numpy as np

from csfm_jax import drawing
from data_pipelines.preprocess import INVALID
from data_pipelines.signals import CHANNELS, modality_of

_PICTURE_DPI = 96
_MOST_ROWS = 12  # leads on a drawn page
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


def document(title: str, parts: list[str]) -> str:
    """A whole page: nothing from outside is in it."""
    head = f'<meta charset="utf-8"><title>{text(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def text(value) -> str:
    """Escaped."""
    return html.escape(str(value))


def table(header: list[str], rows: list[list]) -> str:
    """Numbers to the right, three figures of them; all else as text."""

    def cell(value):
        number = isinstance(value, int | float | np.number)
        shown = f"{value:,}" if isinstance(value, int | np.integer) else f"{value:,.3g}" if number else text(value)
        return f'<td class="n">{shown}</td>' if number else f"<td>{shown}</td>"

    top = "".join(f"<th>{text(name)}</th>" for name in header)
    return f"<table><tr>{top}</tr>" + "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows) + "</table>"


def picture(
    store, recording: int, start: float, title: str = "", marked: dict[int, list[tuple]] | None = None
) -> str | None:
    """Ten seconds on ECG paper as a data URI; None where nothing in it is valid.

    Args:
        store: opened. recording: row of its index. start: seconds into it. title: over the page.
        marked: channel id -> stretches, as of `drawing.Trace`; None: none.
    """
    seconds = min(10.0, float(store.index.milliseconds[recording]) / 1000 - start)
    traces = []
    for channel, counts in store.read_window(recording, start, seconds)[:_MOST_ROWS]:
        modality = modality_of(channel)
        samples = np.where(counts == INVALID, np.nan, counts * modality.step)
        if np.isfinite(samples).any():
            shaded = tuple(m for m in (marked or {}).get(channel, ()) if m[1] <= seconds + 1e-6)
            name = CHANNELS[channel].name
            traces.append(drawing.Trace(name, modality.unit, modality.rate, samples, marked=shaded))
    if not traces:
        return None
    stream = io.BytesIO()
    drawing.draw(traces, seconds, title).savefig(stream, dpi=_PICTURE_DPI, format="png")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
