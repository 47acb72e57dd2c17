"""Draws a recording on ECG paper (25 mm/s, 10 mm/mV) to PNG; with a checkpoint, its reconstruction too."""

from pathlib import Path

import numpy as np

from csfm_jax.commands.options import WrittenHere
from data_pipelines.errors import BadInput
from data_pipelines.masking import STRATEGIES


def arguments(parser) -> None:
    parser.add_argument(
        "--input",
        required=True,
        help="one recording, e.g. a WFDB header (.hea), or a source, of which the first recording is drawn",
    )
    parser.add_argument("--output", required=True, action=WrittenHere, help="the PNG to write")
    parser.add_argument("--checkpoint", help="work directory, its checkpoints folder, or one step; here, gs://, s3://")
    parser.add_argument("--strategy", choices=STRATEGIES, default="random", help="what is hidden (with --checkpoint)")
    parser.add_argument("--start", type=float, default=0.0, metavar="S", help="seconds into the recording")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="length of the page; default 10, or the model's window"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the mask")


def run(args) -> None:
    from csfm_jax import drawing

    if args.output.suffix.lower() != ".png":
        raise BadInput("--output", "a name that does not end in .png", "a name ending in .png", "choose such a name")
    if args.seconds is not None and not args.seconds > 0:
        raise BadInput("--seconds", f"{args.seconds:g}", "more than 0", "correct it")
    recording = first_recording(args.input)
    if not 0 <= args.start < recording.seconds:
        raise BadInput("--start", f"{args.start:g} s", f"0 to {recording.seconds:g} s, its length", "start earlier")
    if args.checkpoint:
        page = reconstructed(recording, args.checkpoint, args.strategy, args.start, args.seconds, args.seed)
    else:
        page = as_recorded(recording, args.start, args.seconds or 10.0)
    print(f"drew {drawing.save(page, args.output)}")


def first_recording(where: str):
    """The recording of a file, or the first one of a folder or a simulated cohort."""
    import data_pipelines
    from data_pipelines.datasets import open_sources

    if not (where.startswith("simulated") or Path(where).is_dir()):
        return data_pipelines.read(where)
    source = open_sources(where)[0]
    return source.read(source.entries()[0])


def as_recorded(recording, start: float, seconds: float):
    """The page of a recording as it is in its file; ECG leads less their median, since paper has no other zero."""
    from csfm_jax import drawing
    from data_pipelines.preprocess import unit_factor
    from data_pipelines.signals import modality_of, standard_name

    seconds = min(seconds, recording.seconds - start)
    traces = []
    for number, channel in enumerate(recording.channels, 1):
        standard = standard_name(channel.name, channel.unit)
        unit, signal = channel.unit, channel.signal
        factor = unit_factor(unit, "ecg") if standard and modality_of(standard).name == "ecg" else None
        if factor is not None:
            unit, signal = "mV", signal * factor
        first = round((start - channel.start) * channel.rate)
        samples = signal[max(first, 0) : max(first + round(seconds * channel.rate), 0)]
        if not np.isfinite(samples).any():
            continue
        if factor is not None:
            samples = samples - np.nanmedian(samples)
        offset = max(channel.start - start, 0.0)
        name = standard or f"channel {number}"  # a name that is not known might be a person's
        traces.append(drawing.Trace(name, unit, channel.rate, samples, offset))
    return drawing.draw(traces, seconds, "As recorded", f"from {start:g} s, no filter")


def reconstructed(recording, checkpoint: str, strategy: str, start: float, seconds: float | None, seed: int):
    """The page of one window as the model gets it, partly hidden, with the decoder's answer over the hidden patches."""
    import jax

    from csfm_jax import drawing
    from csfm_jax.encoding import load_objective
    from data_pipelines import preprocess

    objective, encoder = load_objective(checkpoint)
    if not hasattr(objective, "reconstruct"):
        found, remedy = f"the objective {encoder.config.objective.name!r}, which reconstructs nothing", "show another"
        raise BadInput("--checkpoint", found, "a checkpoint of masked reconstruction", remedy)
    longest = encoder.config.data.window.seconds
    seconds = min(seconds or longest, recording.seconds - start)
    if seconds > longest + 1e-6:
        raise BadInput("--seconds", f"{seconds:g}", f"at most {longest:g}, the model's window", "shorten it")
    given = [(c.name, c.rate, c.unit, c.start, c.signal) for c in recording.channels]
    made = preprocess.prepare(given, spec=encoder.spec, mains=recording.mains)
    window = encoder.window_at(made, start, seconds)
    batch = _masked(window, encoder.config, strategy, seed)
    predicted = np.asarray(jax.jit(objective.reconstruct)(batch))[0]
    seen = np.zeros(batch.channel.shape[1] + 1, bool)
    seen[batch.visible[0]] = True
    hidden = ~seen[:-1] & (batch.channel[0] > 0)
    traces = [_trace(c, x, batch, hidden, predicted, encoder.config.tokens) for c, x in window.channels]
    title = f"Reconstruction after {encoder.provenance['step']:,} steps"
    share = hidden.sum() / max(1, (batch.channel[0] > 0).sum() - 1)
    caption = f"hidden: {share:.0%} of the patches ({strategy})    prepared by {encoder.spec}    from {start:g} s"
    return drawing.draw(traces, seconds, title, caption)


def _masked(window, config, strategy: str, seed: int):
    """A batch of one row that holds the window, hidden as in training."""
    from data_pipelines.rows import RowWriter, empty_batch
    from data_pipelines.signals import modality_of

    tokens = config.tokens
    most = 1 + sum(len(x) // tokens.patch[modality_of(c).name] for c, x in window.channels)
    batch = empty_batch(1, (most, most, 1), tokens)
    writer = RowWriter(batch, 0, tokens, config.data.mask, np.random.default_rng(seed), strategy)
    writer.add([((c,), x[None]) for c, x in window.channels], np.zeros(0, np.int32), 0)
    if batch.window[0, 0] < 0:
        raise BadInput("--start", "no valid patch there", "a stretch with signal", "start elsewhere")
    return batch


def _trace(channel: int, counts: np.ndarray, batch, hidden: np.ndarray, predicted: np.ndarray, tokens):
    """One channel in its unit: what was recorded, which spans were hidden, and what was predicted there."""
    from csfm_jax import drawing
    from data_pipelines.preprocess import INVALID
    from data_pipelines.signals import CHANNELS, modality_of

    modality = modality_of(channel)
    patch, valid = tokens.patch[modality.name], counts != INVALID
    samples = np.where(valid, counts * modality.step, np.nan)
    # the z-score that the loader took, undone
    mean, deviation = (samples[valid].mean(), samples[valid].std()) if valid.any() else (0.0, 1.0)
    drawn, spans = np.full(len(samples), np.nan), []
    for token in np.flatnonzero(hidden & (batch.channel[0] == channel)):
        first = round(float(batch.time[0, token]) * modality.rate - patch / 2)
        drawn[first : first + patch] = predicted[token, :patch] * deviation + mean
        begin, end = first / modality.rate, (first + patch) / modality.rate
        if spans and begin - spans[-1][1] < 1e-6:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((begin, end))
    name, unit = CHANNELS[channel].name, modality.unit
    return drawing.Trace(name, unit, modality.rate, samples, 0.0, tuple(spans), drawn)
