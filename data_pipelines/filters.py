"""What happens to samples between units and int16: invalid spans, filters, resampling, the published cleaning.

NumPy and SciPy only: the file is shipped verbatim beside the exported PyTorch model. Signals are float64
[C, n]; `rule` and `spec` are a `Rule` and a `Spec` of preprocess.py, which imports this file.
"""

from fractions import Fraction
from functools import lru_cache

import numpy as np
import scipy  # `scipy.signal` is imported at its first use: a second and a half that a training run does without

LARGEST = 32767  # int16 counts


def invalid_spans(x: np.ndarray, rate: float, rule) -> np.ndarray:
    """Marks samples that measure nothing.

    Args:
        x: [C, n] float64 in the rule's unit.

    Returns:
        bool [C, n]: not finite, outside `rule.plausible`, flat for `rule.flat_seconds` or longer, or, for a sensor
        with a physical scale, further from zero than int16 can say (from the median where a high-pass follows).
    """
    bad = ~np.isfinite(x)
    with np.errstate(invalid="ignore"):
        if rule.plausible:
            bad |= (x < rule.plausible[0]) | (x > rule.plausible[1])
        if rule.unit != "a.u.":
            largest = LARGEST * rule.step
            # a reduction over NaN is NaN, hence no "yes" here: such rows are looked at one by one
            tame = x.max(axis=1) - x.min(axis=1) <= largest
            if rule.low is None:
                tame &= np.abs(x).max(axis=1) <= largest
            for i in np.flatnonzero(~tame):
                row, wrong = x[i], bad[i]
                good = row[~wrong]
                if (
                    good.size
                    and np.ptp(good) > largest
                    or (rule.low is None and good.size and np.abs(good).max() > largest)
                ):
                    centre = 0.0 if rule.low is None else np.median(good)
                    wrong |= ~(np.abs(row - centre) <= largest)
    if rule.flat_seconds is not None and x.shape[1] > 1:
        bad |= _runs(x[:, 1:] == x[:, :-1], max(1, int(np.ceil(rule.flat_seconds * rate)) - 1))
    return bad


def _runs(same: np.ndarray, least: int) -> np.ndarray:
    """[C, n-1] "equals its predecessor" -> [C, n] "lies in a run of more than `least` equal samples"."""
    rows, n = same.shape
    edges = np.zeros((rows, n + 2), np.int8)
    edges[:, 1:-1] = same
    steps = np.diff(edges, axis=1).ravel()
    begins, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    marked = np.zeros(rows * (n + 1), bool)
    long = ends - begins >= least  # most runs are two equal samples of a coarse converter
    for begin, end in zip(begins[long], ends[long]):
        marked[begin : end + 1] = True
    return marked.reshape(rows, n + 1)


def bridge(x, bad):
    """Replaces invalid samples in place by a straight line between their valid neighbours (constant at the ends)."""
    if not bad.any():
        return
    for row, wrong in zip(x, bad):
        if wrong.any():
            good = np.flatnonzero(~wrong)
            row[wrong] = np.interp(np.flatnonzero(wrong), good, row[good]) if good.size else 0.0


def carry_spans(bad, rate, offset, count, target, widen):
    """Invalid spans at the native rate -> at `target`, each end moved out by a sample of either rate plus `widen` s."""
    out = np.zeros((len(bad), count), bool)
    margin = 1 / rate + 1 / target + widen
    if not bad.any():
        return out
    for row, wrong in zip(out, bad):
        if not wrong.any():
            continue
        steps = np.diff(np.concatenate(([0], wrong.view(np.int8), [0])))
        begins = (np.flatnonzero(steps == 1) / rate - offset - margin) * target
        ends = ((np.flatnonzero(steps == -1) - 1) / rate - offset + margin) * target
        for begin, end in zip(np.ceil(begins).astype(int), np.floor(ends).astype(int)):
            row[max(0, begin) : max(0, end + 1)] = True
    return out


def filtered(x, rate, offset, count, rule, spec, mains, done):
    """[C, n] at `rate` -> [C, count] at the rule's rate, the first sample `offset` seconds after x's first one."""
    sections, rest, named = _sections(rule, spec, min(rate, rule.rate), mains)
    done += named
    if rule.low:  # an offset of any size, or the step at the padding's end would be felt
        x = x - x.mean(axis=1, keepdims=True)
    if rate != rule.rate or offset:
        pad = int(np.ceil((spec.kernel_lobes + 1) * max(1.0, rate / rule.rate)))
        x = resample(_reflected(x, pad), rate, rule.rate, pad / rate + offset, count, spec)
    if len(sections):
        pad = int(max(spec.edge_seconds, spec.edge_periods / rule.low if rule.low else 0.0) * rule.rate)
        x = _reflected(x, pad)
        for _ in "forward", "backward":
            x = scipy.signal.sosfilt(sections, x, axis=1, zi=rest[:, None] * x[None, :, :1])[0][:, ::-1]
        x = x[:, pad:-pad]
    return x[:, :count]


def _reflected(x, pad):
    # Even, not SciPy's odd reflection: odd pins the ends to zero after a high-pass. On 10-s crops of real recordings
    # the error of the first and last half second, against filtering the whole, is 0.11 of a deviation instead of 0.19
    # to 0.27 (ECG) and 0.18 instead of 0.54 (PPG).
    if pad >= x.shape[1]:  # reflected more than once
        return np.pad(x, ((0, 0), (pad, pad)), mode="reflect")
    return np.concatenate((x[:, pad:0:-1], x, x[:, -2 : -pad - 2 : -1]), axis=1)  # a third of what `np.pad` takes


@lru_cache(maxsize=64)
def _sections(rule, spec, rate: float, mains: float | None):
    """Second-order sections of band and notches at the canonical rate, their state at rest, and names to report."""
    sections, named, nyquist = [], [], min(rate, rule.rate) / 2
    if rule.low is not None:
        sections.append(scipy.signal.butter(spec.order, rule.low, "highpass", fs=rule.rate, output="sos"))
        named.append(f"high-pass {rule.low:g} Hz")
    if rule.high is not None and rule.high < 0.95 * nyquist:  # above, the recording itself has ended
        sections.append(scipy.signal.butter(spec.order, rule.high, "lowpass", fs=rule.rate, output="sos"))
        named.append(f"low-pass {rule.high:g} Hz")
    for hertz in spec.notch_hz if mains is None else (float(mains),):
        if rule.powerline and 0 < hertz < 0.95 * nyquist:
            sections.append(scipy.signal.tf2sos(*scipy.signal.iirnotch(hertz, spec.notch_q, fs=rule.rate)))
            named.append(f"notch {hertz:g} Hz")
    if not sections:
        return np.zeros((0, 6)), None, ()
    sections = np.concatenate(sections)
    return sections, scipy.signal.sosfilt_zi(sections), tuple(named)


def resample(x: np.ndarray, rate: float, target: float, first: float, count: int, spec) -> np.ndarray:
    """Band-limited samples of x at exact times.

    Args:
        x: [C, n] float64; sample i was taken at i / rate seconds.
        first: time of the first output sample, seconds; need not lie on a sample of x.
        count: output samples, at first + k / target seconds. Outside x the signal counts as 0.

    Returns:
        [C, count] float64.
    """
    up, down, position = _ratio(rate, target, first)
    whole = round(position)
    shift = position - whole if abs(position - whole) > 1e-6 else 0.0
    if up == down == 1 and shift == 0.0:
        lead, tail = max(0, -whole), max(0, whole + count - x.shape[1])
        return np.pad(x, ((0, 0), (lead, tail)))[:, whole + lead : whole + lead + count]
    kernel, centre = resampling_kernel(up, down, shift, spec.kernel_lobes, spec.kernel_beta)
    # output k is the convolution at whole + k * down + centre; zeros before the kernel put that on upfirdn's grid,
    # zeros before x make a position before its first sample a positive one
    lead = max(0, -(-(-whole - centre) // up))
    at = whole + centre + lead * up
    late = -at % down
    index = (at + late) // down
    tail = max(0, -(-((index + count - 1) * down - late - len(kernel) + 1) // up) + 1 - x.shape[1] - lead)
    x = np.pad(x, ((0, 0), (lead, tail)))
    return scipy.signal.upfirdn(np.concatenate((np.zeros(late), kernel)), x, up, down, axis=1)[:, index : index + count]


def _ratio(rate, target, first):
    """(up, down, position of `first` on the upsampled grid); the rate as the simplest fraction that serves."""
    for denominator in (10_000, 1_000, 100, 10, 1):  # 62.4725 Hz = 24989 / 400 exactly; huge kernels are avoided
        ratio = Fraction(target).limit_denominator(1) / Fraction(rate).limit_denominator(denominator)
        if max(ratio.numerator, ratio.denominator) <= 200_000:
            break
    return ratio.numerator, ratio.denominator, first * rate * ratio.numerator


@lru_cache(maxsize=32)
def resampling_kernel(up, down, shift, lobes, beta):
    """Kaiser-windowed sinc on the upsampled grid, read `shift` grid steps late; (taps, index of centre)."""
    widest = max(up, down)
    half = lobes * widest
    t = np.arange(-half, half + 1) + shift
    inside = np.clip(1 - (t / (half + 1)) ** 2, 0, None)
    taps = np.sinc(t / widest) * np.i0(beta * np.sqrt(inside)) / np.i0(beta)
    return taps * (up / taps.sum()), half


def robust_deviation(y, bad):
    """1.4826 x median absolute deviation of each row's valid samples (plain deviation where that is 0): [C]."""
    scale = np.zeros(len(y))
    for i, (row, wrong) in enumerate(zip(y, bad)):
        good = row[~wrong]
        if good.size:
            scale[i] = 1.4826 * np.median(np.abs(good - np.median(good))) or good.std()
    return scale


def published_cleaning(x, rate, rule):
    """The published model's chain: FFT resampling, then neurokit2's default cleaning, edges as it has them."""
    if rate != rule.rate:
        x = scipy.signal.resample(x, int(x.shape[1] * rule.rate / rate), axis=1)
    if rule.modality == "ppg":
        sections = scipy.signal.butter(2, (0.5, 8.0), "bandpass", fs=rule.rate, output="sos")
        return scipy.signal.sosfiltfilt(sections, x, axis=1)
    x = scipy.signal.sosfiltfilt(scipy.signal.butter(5, 0.5, "highpass", fs=rule.rate, output="sos"), x, axis=1)
    width = int(rule.rate / 50)  # one 50 Hz period, whatever the mains
    return scipy.signal.filtfilt(np.ones(width), [width], x, axis=1)
