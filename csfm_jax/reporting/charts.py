"""Charts of the report, as SVG text: one hue a modality, no frame, the number beside the bar."""

import io
from contextlib import contextmanager

import numpy as np

HUES = {
    "ecg": "#c2413b", "ppg": "#3f7fbf", "resp": "#4b9a6a", "spo2": "#7b5aa6", "abp": "#b0702c", "eeg": "#2b8c93",
    "eog": "#8a8d2f", "emg": "#a8497c", "pcg": "#5b6770",
}  # fmt: skip
_INK, _SOFT, _LINE = "#2d2a2b", "#6f6a6b", "#d9d4d2"


@contextmanager
def _figure(width: float, height: float):
    """Axes in the report's style, and the SVG once they are left."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # text stays text; the salt makes ids, hence bytes, the same in every run
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "csfm", "font.family": "sans-serif",
                                "font.size": 9}):  # fmt: skip
        figure = Figure(figsize=(width, height))
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(_LINE)
        axes.tick_params(colors=_SOFT, length=0)
        out: list[str] = []
        yield axes, out
        stream = io.StringIO()
        figure.savefig(stream, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
        text = stream.getvalue()
        out.append(text[text.index("<svg") :])


def bars(values: dict[str, float], colours: dict[str, str] | None = None, unit: str = "", form: str = "{:.3g}") -> str:
    """Horizontal bars from top to bottom, each with its number; `values` are drawn in their order."""
    with _figure(5.2, 0.28 * max(len(values), 1) + 0.35) as (axes, out):
        names = list(values)
        hues = [(colours or {}).get(name, "#8b8587") for name in names]
        axes.barh(range(len(names)), list(values.values()), color=hues, height=0.62)
        most = max([*values.values(), 1e-12])
        for i, value in enumerate(values.values()):
            axes.text(value + most * 0.015, i, form.format(value) + unit, va="center", color=_INK, fontsize=8.5)
        axes.set(yticks=range(len(names)), yticklabels=names, xticks=[], xlim=(0, most * 1.16))
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", colors=_INK)
        axes.invert_yaxis()
    return out[0]


def histogram(values: np.ndarray, label: str, colour: str = "#8b8587", span: tuple[float, float] | None = None) -> str:
    """A histogram; over more than two decades on a logarithmic axis."""
    values = np.asarray(values, float)
    low, high = span or (float(values.min()), float(values.max()))
    logarithmic = span is None and low > 0 and high / low > 100
    edges = np.geomspace(low, high, 41) if logarithmic else np.linspace(low, high if high > low else low + 1, 41)
    with _figure(3.4, 1.7) as (axes, out):
        axes.hist(values, edges, color=colour)
        axes.set(yticks=[], xlabel=label)
        axes.xaxis.label.set_color(_SOFT)
        if logarithmic:
            axes.set_xscale("log")
    return out[0]


def ranges(values: dict[str, tuple[float, float, float]], unit: str, colour: str) -> str:
    """A dot at the median and a line from the 5th to the 95th percentile of each row."""
    with _figure(5.2, 0.28 * max(len(values), 1) + 0.6) as (axes, out):
        for i, (low, middle, high) in enumerate(values.values()):
            axes.plot([low, high], [i, i], color=colour, linewidth=2, alpha=0.45, solid_capstyle="round")
            axes.plot([middle], [i], "o", color=colour, markersize=5)
        axes.set(yticks=range(len(values)), yticklabels=list(values), xlabel=unit, xlim=(0, None))
        axes.xaxis.label.set_color(_SOFT)
        axes.tick_params(axis="y", colors=_INK)
        axes.invert_yaxis()
    return out[0]
