"""Charts of the reports, as SVG text: one hue a modality, no frame, the number beside the bar."""

import io
from contextlib import contextmanager

import numpy as np

HUES = {
    "ecg": "#c2413b", "ppg": "#3f7fbf", "resp": "#4b9a6a", "spo2": "#7b5aa6", "abp": "#b0702c", "eeg": "#2b8c93",
    "eog": "#8a8d2f", "emg": "#a8497c", "pcg": "#5b6770",
}  # fmt: skip
# of models, in their order; told apart also by those who see no red and green (Okabe and Ito)
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#2d2a2b", "#8b8587")
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


def curves(
    series: dict[str, tuple[np.ndarray, np.ndarray]],
    labels: tuple[str, str],
    diagonal: bool = False,
    logarithmic: bool = False,
) -> str:
    """Lines over a common axis, one a name: (x, y); labels: of the axes; diagonal: the line of equal values, dashed;
    logarithmic: x by powers of two."""
    with _figure(3.9, 2.9) as (axes, out):
        if diagonal:
            axes.plot([0, 1], [0, 1], color=_LINE, linewidth=1, linestyle="--")
        for (name, (x, y)), hue in zip(series.items(), SERIES * (1 + len(series) // len(SERIES))):
            mark = "o" if len(x) < 20 else ""
            axes.plot(x, y, color=hue, linewidth=1.6, marker=mark, markersize=3.5, label=name)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        if logarithmic:
            axes.set_xscale("log", base=2)
        for axis in (axes.xaxis, axes.yaxis):
            axis.label.set_color(_SOFT)
        if series:
            axes.legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(1.02, 1))
    return out[0]


def intervals(values: dict[str, tuple[float, float, float]], label: str, zero: bool = False) -> str:
    """A dot (point) on a line (low to high) for each row, with the number; zero: a line at nought."""
    with _figure(5.2, 0.3 * max(len(values), 1) + 0.6) as (axes, out):
        if zero:
            axes.axvline(0, color=_LINE, linewidth=1)
        for i, (point, low, high) in enumerate(values.values()):
            hue = SERIES[i % len(SERIES)]
            axes.plot([low, high], [i, i], color=hue, linewidth=2, alpha=0.5, solid_capstyle="round")
            axes.plot([point], [i], "o", color=hue, markersize=5)
            axes.text(
                1.02, i, f"{point:.3f}", va="center", color=_INK, fontsize=8.5, transform=axes.get_yaxis_transform()
            )
        axes.set(yticks=range(len(values)), yticklabels=list(values), xlabel=label)
        axes.xaxis.label.set_color(_SOFT)
        axes.tick_params(axis="y", colors=_INK)
        axes.invert_yaxis()
    return out[0]


def heat(values: np.ndarray, rows: list[str], columns: list[str], label: str = "", upward: bool = True) -> str:
    """A table of numbers [rows, columns] on a scale of one hue; NaN is blank. upward: high is good, and dark."""
    with _figure(0.75 * max(len(columns), 2) + 1.2, 0.34 * max(len(rows), 2) + 0.5) as (axes, out):
        there = np.isfinite(values)
        low, high = (values[there].min(), values[there].max()) if there.any() else (0.0, 1.0)
        shade = np.where(there, (values - low) / max(high - low, 1e-12), np.nan)
        axes.imshow(shade if upward else 1 - shade, cmap="Blues", vmin=-0.25, vmax=1.6, aspect="auto")
        for i, j in zip(*np.nonzero(there)):
            axes.text(j, i, f"{values[i, j]:.3g}", ha="center", va="center", color=_INK, fontsize=8)
        axes.set(
            xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows, xlabel=label
        )
        axes.xaxis.label.set_color(_SOFT)
        axes.tick_params(colors=_INK)
        axes.spines["bottom"].set_visible(False)
    return out[0]
