"""The paper is true to scale: read from the artists that were drawn and from the pixels that were written."""

import numpy as np
import pytest

from csfm_jax import drawing
from data_pipelines.errors import BadInput


def _pixels(axes, points):
    return axes.transData.transform(np.asarray(points, float))


def _artists(figure):
    return {a.get_gid(): a for a in figure.axes[0].get_children() if a.get_gid()}


@pytest.fixture(scope="module")
def page():
    t = np.arange(2500) / 250
    ecg = np.sin(2 * np.pi * t)
    ecg[500:600] = np.nan
    ppg = 400 + 35 * np.sin(2 * np.pi * t)
    predicted = np.where((t >= 1) & (t < 1.5), 0.5, np.nan)
    traces = [
        drawing.Trace("II", "mV", 250, ecg, hidden=((1.0, 1.5), (3.0, 3.1)), reconstruction=predicted),
        drawing.Trace("V1", "mV", 250, -3 * ecg[:1250], start=5.0),
        drawing.Trace("PPG", "a.u.", 250, ppg),
    ]
    return drawing.draw(traces, 10.0, "title", "caption")


def test_grid_lines_are_one_and_five_millimetres_apart(page):
    for gid, apart in (("grid/1mm", 1), ("grid/5mm", 5)):
        segments = _artists(page)[gid].get_segments()
        upright = np.sort([_pixels(page.axes[0], s)[0, 0] for s in segments if s[0][0] == s[1][0]])
        level = np.sort([_pixels(page.axes[0], s)[0, 1] for s in segments if s[0][1] == s[1][1]])
        for places in (upright, level):
            assert np.diff(places) == pytest.approx(apart * drawing.DPI / 25.4, abs=1e-6)


def test_calibration_pulse_is_ten_millimetres_high_and_five_wide(page):
    for lead in ("II", "V1"):
        pulse = _pixels(page.axes[0], _artists(page)[f"pulse/{lead}"].get_xydata()) / drawing.DPI * 25.4
        assert np.ptp(pulse[:, 1]) == pytest.approx(10.0)
        top = pulse[pulse[:, 1] == pulse[:, 1].max()]
        assert np.ptp(top[:, 0]) == pytest.approx(5.0)  # 0.2 s at 25 mm/s


def test_traces_are_drawn_at_25_mm_a_second_and_10_mm_a_millivolt(page):
    lines = _artists(page)
    grid = [s for s in lines["grid/5mm"].get_segments() if s[0][1] == s[1][1]]
    x, y = lines["trace/II"].get_data()
    assert np.ptp(x) == pytest.approx(2499 / 250 * 25)
    assert np.nanmax(y) - np.nanmin(y) == pytest.approx(20.0, abs=0.01)  # 2 mV
    base = (np.nanmin(y) + np.nanmax(y)) / 2
    assert min(abs(base - s[0][1]) for s in grid) < 1e-3  # the base line lies on a 5-mm line
    late, _ = lines["trace/V1"].get_data()
    assert late[0] - x[0] == pytest.approx(5 * 25.0)


def test_absent_samples_are_not_drawn_and_hidden_ones_are_drawn_apart(page):
    lines = _artists(page)
    _, seen = lines["trace/II"].get_data()
    _, faint = lines["faint/II"].get_data()
    assert np.isnan(seen[500:600]).all() and np.isnan(faint[500:600]).all()
    assert np.isnan(seen[251:374]).all() and np.isfinite(faint[250:375]).all()
    x, y = lines["reconstruction/II"].get_data()
    assert np.isfinite(y).sum() == 125 and np.isfinite(y[250:375]).all()
    base = (np.nanmax(lines["trace/II"].get_ydata()) + np.nanmin(lines["trace/II"].get_ydata())) / 2
    assert np.nanmax(y) - base == pytest.approx(5.0, abs=0.02)  # 0.5 mV
    left, right = [p.vertices[:, 0].min() for p in lines["hidden/II"].get_paths()], x[0]
    assert left == pytest.approx([right + 25.0, right + 75.0])


def test_other_sensors_have_their_own_printed_scale(page):
    _, y = _artists(page)["trace/PPG"].get_data()
    assert np.ptp(y) == pytest.approx(70 / 50 * 10, abs=0.05)  # 10 mm = 50 a.u., the 1-2-5 step that fits 70 in 20 mm
    texts = [t.get_text() for t in page.axes[0].texts]
    assert "50 a.u." in texts and "25 mm/s   10 mm/mV" in texts and "reconstruction" in texts


def test_saved_pixels_keep_the_scale(page, tmp_path):
    from PIL import Image

    path = drawing.save(page, tmp_path / "sub" / "page.png")
    image = Image.open(path)
    assert [p.name for p in path.parent.iterdir()] == ["page.png"]
    assert image.info["dpi"] == pytest.approx((drawing.DPI, drawing.DPI), abs=0.1)
    assert image.size == tuple(np.round(page.get_size_inches() * drawing.DPI).astype(int))
    pixels = np.asarray(image.convert("RGB")).astype(int)
    row = pixels[int(image.size[1] - (drawing._FOOTER + 2.5) * 10)]  # between two level lines, under the traces
    major = np.flatnonzero(np.abs(row - (0xEF, 0xB3, 0xAA)).sum(1) < 30)
    starts = major[np.r_[True, np.diff(major) > 1]]
    assert len(starts) > 45 and set(np.diff(starts)) == {50}  # 5 mm at 10 pixels a millimetre


def test_pages_without_traces_and_impossible_lengths_are_refused(tmp_path, page):
    one = drawing.Trace("I", "mV", 250, np.zeros(10))
    with pytest.raises(BadInput, match="no channel"):
        drawing.draw([], 10.0)
    with pytest.raises(BadInput, match="--seconds"):
        drawing.draw([one], 61.0)
    with pytest.raises(BadInput, match=".png"):
        drawing.save(page, tmp_path / "page.pdf")


def test_a_trace_with_no_valid_sample_leaves_an_empty_row():
    figure = drawing.draw([drawing.Trace("RESP", "a.u.", 25, np.full(250, np.nan))], 10.0)
    assert "trace/RESP" in _artists(figure)
