"""Recordings on calibrated ECG paper: 25 mm/s and 10 mm/mV at the saved resolution, masked patches and all.

The page is one set of axes whose data coordinates are millimetres of paper, so nothing can be out of scale: a second
is 25 units, a millivolt is 10 units, and the figure is as many inches wide as its millimetres say.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines import storage
from data_pipelines.errors import BadInput

DPI = 254  # ten pixels a millimetre exactly, so that every grid line falls on whole pixels
SPEED, GAIN = 25.0, 10.0  # mm/s, mm/mV
LONGEST = 60.0  # s; a wider page is more pixels than viewers open

_PAPER, _MINOR, _MAJOR = "#fffaf8", "#f9dcd7", "#efb3aa"
_INK, _FAINT, _SHADE, _BLUE, _TEXT = "#1b1b1f", "#777076", "#5c86c4", "#0a4fc4", "#3b3638"
_TOWARDS, _AGAINST = "#d1260f", "#1f5fd0"
_MARGIN, _HEADER, _FOOTER, _PULSE = 6.0, 15.0, 9.0, 10.0  # mm


@dataclass(frozen=True)
class Trace:
    """One channel to draw.

    Attributes:
        name: label of the row. unit: "mV" rows are drawn at 10 mm/mV; others on their own scale, printed beside them.
        rate: Hz. start: seconds from the page's left edge to the first sample.
        samples: float [n] in `unit`, NaN where absent.
        hidden: (from, to) in seconds from the page's left edge, spans that the encoder did not see.
        reconstruction: float [n] in `unit`, NaN where there is none; or None.
        marked: (from, to, strength) in seconds from the page's left edge: shaded red where the strength, -1 to 1, is
            above 0, blue below.
    """

    name: str
    unit: str
    rate: float
    samples: np.ndarray
    start: float = 0.0
    hidden: tuple[tuple[float, float], ...] = ()
    reconstruction: np.ndarray | None = None
    marked: tuple[tuple[float, float, float], ...] = ()

    @property
    def gain(self) -> float:
        """Millimetres a unit: 10 for mV; else 10 mm for the step of the 1-2-5 series that fits the trace in 20 mm."""
        if self.unit == "mV":
            return GAIN
        low, high = np.nanpercentile(self.samples, (0.5, 99.5)) if self._any() else (0.0, 0.0)
        wanted = max((high - low) / 2, 1e-9)
        decade = 10.0 ** np.floor(np.log10(wanted))
        return 10.0 / next(decade * m for m in (1, 2, 5, 10) if decade * m >= wanted * 0.999)

    @property
    def centre(self) -> float:
        """The value drawn on the row's base line: 0 mV, or the median of a trace on its own scale."""
        return 0.0 if self.unit == "mV" or not self._any() else float(np.nanmedian(self.samples))

    def millimetres(self, samples: np.ndarray) -> np.ndarray:
        return (samples - self.centre) * self.gain

    def reach(self) -> tuple[float, float]:
        """Room wanted below and above the base line, mm; rare peaks may run into the neighbours, as on paper."""
        drawn = self.millimetres(self.samples)
        low, high = np.nanpercentile(drawn, (0.5, 99.7)) if self._any() else (0.0, 0.0)
        return float(np.clip(-low, 6, 20)) + 1, float(np.clip(high, 8, 26)) + 1

    def _any(self) -> bool:
        return bool(np.isfinite(self.samples).any())


@dataclass(frozen=True)
class _Page:
    """Where things are, in millimetres from the lower left corner."""

    width: float
    height: float
    left: float  # of the traces
    right: float
    bottom: float  # of the grid
    top: float
    bases: tuple[float, ...]  # base line of each row, on a 5-mm line
    bands: tuple[tuple[float, float], ...]  # lower and upper edge of each row's shading; bands do not overlap


def draw(traces: list[Trace], seconds: float, title: str = "", caption: str = ""):
    """Draws a page, one row a trace.

    Args:
        traces: rows from top to bottom. seconds: length of the page, at most 60.
        title: first line of the header. caption: second line, smaller (what was done to the signal).

    Returns:
        A `matplotlib.figure.Figure` to be given to `save`; artists carry gids such as "trace/II", "pulse/II",
        "hidden/II", "reconstruction/II", "grid/1mm" and "grid/5mm".

    Raises:
        BadInput: no trace, or a page that is empty or too wide.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not traces:
        raise BadInput("recording", "no channel to draw", "one or more", "name a recording with known channels")
    if not 0 < seconds <= LONGEST:
        raise BadInput("--seconds", f"{seconds:g}", f"more than 0 and at most {LONGEST:g}", "draw several pages")
    page = _layout(traces, seconds)
    figure = Figure(figsize=(page.width / 25.4, page.height / 25.4), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, page.width), ylim=(0, page.height))
    axes.axis("off")
    _paper(axes, page, seconds)
    for trace, base, band in zip(traces, page.bases, page.bands, strict=True):
        _row(axes, page, trace, base, band)
    _header(axes, page, traces, title, caption)
    return figure


def save(figure, path: str | os.PathLike) -> Path:
    """Writes the figure as PNG at true size (never cropped, which would lose the scale), whole or not at all."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise BadInput("--output", f"a name ending in {path.suffix!r}", "a name ending in .png", "choose such a name")
    with storage.whole(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png", facecolor=figure.get_facecolor())
    return path


def _layout(traces: list[Trace], seconds: float) -> _Page:
    room = [trace.reach() for trace in traces]
    labels = max(max(len(line) for line in _label(t)) * 1.75 for t in traces)
    left = _five(_MARGIN + max(labels, 8) + _PULSE + 2)
    below = [0.0]  # base lines, as distances below the first one
    for (low, _), (_, high) in zip(room[:-1], room[1:], strict=True):
        below.append(below[-1] + max(15.0, _five(0.8 * (low + high))))
    first, last = max(15.0, _five(room[0][1])), _five(room[-1][0])
    bottom = _FOOTER
    top = bottom + last + below[-1] + first
    bases = tuple(top - first - b for b in below)
    edges = [top, *(a - (a - b) * low / (low + high) for a, b, (low, _), (_, high)
                    in zip(bases[:-1], bases[1:], room[:-1], room[1:], strict=True)), bottom]  # fmt: skip
    bands = tuple(
        (max(lower, base - low) + 0.4, min(upper, base + high) - 0.4)
        for base, (low, high), upper, lower in zip(bases, room, edges[:-1], edges[1:], strict=True)
    )
    right = left + _five(seconds * SPEED)
    return _Page(right + _MARGIN, top + _HEADER, left, right, bottom, top, bases, bands)


def _five(millimetres: float) -> float:
    return 5.0 * np.ceil(millimetres / 5.0 - 1e-9)


def _points(millimetres: float) -> float:
    return millimetres * 72 / 25.4


def _paper(axes, page: _Page, seconds: float) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle

    start = page.left - _PULSE  # the grid runs under the calibration pulses
    axes.add_patch(Rectangle((start, page.bottom), page.right - start, page.top - page.bottom, color=_PAPER, lw=0))
    for step, colour, width in ((1, _MINOR, 0.1), (5, _MAJOR, 0.2)):
        across = np.arange(start, page.right + 0.5, step)
        along = np.arange(page.bottom, page.top + 0.5, step)
        lines = [((x, page.bottom), (x, page.top)) for x in across] + [((start, y), (page.right, y)) for y in along]
        grid = LineCollection(lines, colors=colour, linewidths=_points(width), zorder=1 + step / 10)
        grid.set_gid(f"grid/{step}mm")
        axes.add_collection(grid)
    for second in range(int(seconds + 1e-6) + 1):
        x = page.left + second * SPEED
        axes.plot([x, x], [page.bottom - 1.2, page.bottom], color=_TEXT, lw=_points(0.2), zorder=2)
        text = f"{second} s" if second in (0, int(seconds + 1e-6)) else f"{second}"
        axes.text(x, page.bottom - 1.8, text, fontsize=6.5, ha="center", va="top", color=_TEXT)


def _row(axes, page: _Page, trace: Trace, base: float, band: tuple[float, float]) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    times = trace.start + np.arange(len(trace.samples)) / trace.rate
    x = page.left + times * SPEED
    spans = [Rectangle((page.left + a * SPEED, band[0]), (b - a) * SPEED, band[1] - band[0]) for a, b in trace.hidden]
    shade = PatchCollection(spans, facecolor=_SHADE, alpha=0.17, linewidth=0, zorder=2)
    shade.set_gid(f"hidden/{trace.name}")
    axes.add_collection(shade)
    for start, end, strength in trace.marked:
        place = ((page.left + start * SPEED, band[0]), (end - start) * SPEED, band[1] - band[0])
        colour = _TOWARDS if strength > 0 else _AGAINST
        patch = Rectangle(*place, facecolor=colour, alpha=0.6 * abs(strength), linewidth=0, zorder=2)
        patch.set_gid(f"marked/{trace.name}")
        axes.add_patch(patch)
    seen = np.ones(len(times), bool)
    for a, b in trace.hidden:
        seen &= (times < a - 1e-9) | (times >= b - 1e-9)
    y = base + trace.millimetres(trace.samples)
    touching = seen | np.r_[seen[1:], False] | np.r_[False, seen[:-1]]  # one sample over, so that strokes meet
    for gid, shown, colour, width in (("faint", ~seen, _FAINT, 0.18), ("trace", touching, _INK, 0.28)):
        if shown.any():
            (line,) = axes.plot(x, np.where(shown, y, np.nan), color=colour, lw=_points(width), zorder=3)
            line.set(gid=f"{gid}/{trace.name}", solid_joinstyle="round", solid_capstyle="round")
    if trace.reconstruction is not None:
        drawn = base + trace.millimetres(trace.reconstruction)
        (line,) = axes.plot(x, drawn, color=_BLUE, lw=_points(0.34), zorder=4)
        line.set(gid=f"reconstruction/{trace.name}", solid_joinstyle="round", solid_capstyle="round")
    _calibration(axes, page, trace, base)


def _calibration(axes, page: _Page, trace: Trace, base: float) -> None:
    """1 mV for 0.2 s beside an ECG lead; a bar of 10 mm beside a trace on its own scale; the row's name."""
    x = page.left - _PULSE + 1.5
    if trace.unit == "mV":
        shape = np.array([(0, 0), (1, 0), (1, GAIN), (1 + 0.2 * SPEED, GAIN), (1 + 0.2 * SPEED, 0), (7, 0)])
    else:
        shape = np.array([(2.5, -5), (4.5, -5), (3.5, -5), (3.5, 5), (2.5, 5), (4.5, 5)])
    (line,) = axes.plot(x + shape[:, 0], base + shape[:, 1], color=_INK, lw=_points(0.25), zorder=3)
    line.set(gid=f"pulse/{trace.name}", solid_joinstyle="miter")
    name, *rest = _label(trace)
    right = page.left - _PULSE - 1.5
    axes.text(right, base + (1.2 if rest else 0), name, fontsize=9, weight="bold", ha="right", va="center", color=_INK)
    for i, line in enumerate(rest):
        axes.text(right, base - 2.4 - 2.6 * i, line, fontsize=6, ha="right", va="center", color=_TEXT)


def _label(trace: Trace) -> list[str]:
    return [trace.name] if trace.unit == "mV" else [trace.name, "10 mm =", f"{10 / trace.gain:g} {trace.unit}"]


def _header(axes, page: _Page, traces: list[Trace], title: str, caption: str) -> None:
    top = page.height - 4.5
    axes.text(page.left - _PULSE, top, title, fontsize=11, weight="bold", va="center", color=_INK)
    axes.text(page.left - _PULSE, top - 5, caption, fontsize=7.5, va="center", color=_TEXT)
    keys = []
    if any(t.hidden for t in traces):
        keys += [("seen by the encoder", _INK, 0.28, False), ("hidden from it", _FAINT, 0.18, True)]
    if any(t.reconstruction is not None for t in traces):
        keys += [("reconstruction", _BLUE, 0.34, True)]
    x = page.right
    for text, colour, width, shaded in reversed(keys):
        x -= 1.45 * len(text) + 2
        axes.text(x, top, text, fontsize=7.5, va="center", color=_TEXT)
        if shaded:
            axes.fill_between([x - 9, x - 1.5], top - 1.6, top + 1.6, color=_SHADE, alpha=0.17, lw=0)
        axes.plot([x - 9, x - 1.5], [top, top], color=colour, lw=_points(width))
        x -= 13
    calibrated = ["25 mm/s"] + ["10 mm/mV"] * any(t.unit == "mV" for t in traces)
    axes.text(page.right, top - 5, "   ".join(calibrated), fontsize=7.5, ha="right", va="center", color=_TEXT)
