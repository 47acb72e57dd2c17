"""The model card of an export: what the model takes, how it was trained, in numbers and without ids."""

from csfm_jax.config import Config
from csfm_jax.evaluation.calibrated import KINDS
from csfm_jax.evaluation.fine_tuned import FineTuned
from csfm_jax.export.task import held_out
from csfm_jax.models.vocabulary import Vocabulary
from csfm_jax.tasks.resolve import read_tokens
from data_pipelines.preprocess import Spec
from data_pipelines.signals import CHANNELS, MODALITIES

_FRONT = """---
license: other
library_name: csfm
pipeline_tag: feature-extraction
tags:
- biosignals
- ecg
- ppg
- foundation-model
---
"""

_USE = """## Use

```python
from csfm_torch import CSFMEncoder          # torch, numpy, scipy, safetensors

encoder = CSFMEncoder.from_folder(".")      # verifies every file first
result = encoder.embed(signal, rate=500, channels={channels}, unit="{unit}")
result.pooled    # [windows, {width}]
result.tokens    # [windows, tokens, {width}], with result.channel and result.time (seconds)
result.report    # what was resampled, filtered, dropped or not known
```

`signal` is [channels, samples] in physical units, NaN where invalid. Give the sensors that were recorded, in any order;
never zeros for those that were not. `encode` takes windows that are preprocessed already, `forward` takes tokens.
`AutoModel.from_pretrained(FOLDER, trust_remote_code=True)` gives the same encoder as `.encoder`, with `transformers`.

Check the copy you hold: `python csfm_torch.py --selfcheck` compares every file with `manifest.json`, then runs raw
signals through preprocessing and model and compares with the JAX model that was exported.
"""


_PREDICT = """```python
from csfm_torch import CSFMTask

model = CSFMTask.from_folder(".")
result = model.predict(signal, rate=500, channels={channels}, unit="{unit}")
result.values       # {{"{label}": {meaning}, ...}}, of the whole recording{decisions}
```
"""
_MEANING = {"regression": "value in its own unit", "survival": "log-hazard"}


def text(config: Config, spec: Spec, run: dict, parameters: int, model: FineTuned | None = None) -> str:
    """The card in Markdown with YAML front matter.

    Args:
        run: what the run recorded; only its numbers are used. parameters: count, encoder with text embedding.
        model: of a fine-tuned checkpoint.
    """
    channels = [CHANNELS[i].name for i in Vocabulary.of(config.tokens).channels]
    example = [c for c in ("I", "II", "PPG") if c in channels] or channels[:1]
    unit = MODALITIES[next(c.modality for c in CHANNELS if c.name == example[0])].unit
    use = _USE.format(channels=example, unit=unit, width=config.encoder.width)
    parts = (
        _FRONT,
        "# CSFM encoder\n" if model is None else f"# CSFM, fine-tuned: {model.task.about}\n",
        _about(config, parameters, channels, run),
        *([_task(model, channels)] if model else []),
        use,
        _signals(config, spec),
        _run(config, run),
    )
    return "\n".join(parts)


def _task(model, channels):
    task, ours, fitted = model.task, model.config.adaptation, model.calibrated
    read, crops = read_tokens(model.config).modalities, task.crops_of(model.config.data.window).most_per_recording
    known = [c.name for c in CHANNELS if c.name in channels and c.modality in read]
    example = [c for c in ("I", "II", "PPG") if c in known] or known[:1]
    unit = MODALITIES[next(c.modality for c in CHANNELS if c.name == example[0])].unit
    decisions = '\nresult.decisions    # {"LABEL": whether it is called}' if fitted else ""
    meaning = _MEANING.get(task.kind, "calibrated probability" if fitted else "probability, not calibrated")
    label = model.outputs[0]
    lines = [
        "## Task\n",
        f"{task.name}: {task.about} ({task.kind}). Reads {', '.join(read)}; the mean over up to {crops} windows "
        f"of a recording. Head: {ours.head}; trained: {ours.trainable}.\n",
        f"Labels: {', '.join(model.outputs)}.\n",
        _PREDICT.format(channels=example, unit=unit, label=label, meaning=meaning, decisions=decisions),
    ]
    if figures := held_out(model.provenance["path"]):
        lines.append("On validation recordings of the training's stores: " + _listed(figures) + ".\n")
    if fitted:
        pairs = {name: pair for name, pair in fitted.figures.items() if "/" not in name}
        told = ", ".join(f"{name} {before:.4f}, then {after:.4f}" for name, (before, after) in pairs.items())
        rule = f"{fitted.rule} at {fitted.specificity:g}" if fitted.rule == "specificity" else fitted.rule
        lines.append(
            f"Calibrated on {fitted.recordings:,} validation recordings (temperatures "
            f"{', '.join(f'{t:.3g}' for t in fitted.temperature)}); there: {told}. Decisions by the rule {rule}; "
            f"thresholds: {_listed(dict(zip(fitted.labels, fitted.thresholds)))}. What was fitted there looks better "
            "there than elsewhere: measure it on your own patients.\n"
        )
    elif task.kind in KINDS:
        lines.append("Probabilities are not calibrated, and no thresholds were chosen.\n")
    return "\n".join(lines)


def _listed(figures):
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if value == value) or "none"


def _about(config, parameters, channels, run):
    e = config.encoder
    text = f"reports of up to {config.tokens.text_length} tokens" if config.tokens.text_length else "no text"
    scratch = config.adaptation.task and not run.get("initial")
    way = "trained for the task below alone" if scratch else "pretrained by reconstructing masked patches"
    return (
        f"An encoder of biosignals for any subset of sensors, {way} (after Gu et al., Nature Machine Intelligence 8, "
        "220-233, 2026).\n\n"
        f"{parameters:,} parameters: width {e.width}, {e.depth} blocks, {e.heads} heads of {e.head_dim}, MLP {e.mlp}; "
        f"{e.position} positions, {e.projection} patch projection, {e.pooling} pooling. Windows of "
        f"{config.data.window.seconds:g} s; {text}.\n\n"
        f"Channels: {', '.join(channels)}.\n\n"
        "Research software: not a medical device.\n"
    )


def _signals(config, spec):
    lines = [
        "## Preprocessing\n",
        f"Specification {spec}, in full in `preprocessor_config.json`; the code is `preprocess.py`; `embed` runs it.\n",
        "| modality | rate (Hz) | patch (samples) | band (Hz) | unit |",
        "|---|---|---|---|---|",
    ]
    for name in config.tokens.modalities:
        m = MODALITIES[name]
        band = " to ".join("open" if b is None else f"{b:g}" for b in m.band)
        lines.append(f"| {name} | {m.rate} | {config.tokens.patch[name]} | {band} | {m.unit} |")
    lines.append(
        "\nEvery window and channel is z-scored over its valid samples; a patch with an invalid sample is absent.\n"
    )
    return "\n".join(lines)


def _run(config, run):
    step = run.get("step")
    lines = ["## Training\n"]
    if step is not None:
        lines.append(f"{int(step):,} of {config.training.steps:,} optimizer steps of {config.data.rows} packed rows, "
                     f"{config.data.row_tokens:,} tokens each.")  # fmt: skip
    if config.training.ema:
        lines.append(f"The weights are their running average (decay {config.training.ema:g}).")
    if not config.adaptation.task:  # a task sees everything
        mask = config.data.mask
        lines.append(f"Hidden: {1 - mask.keep_signal:.0%} of signal tokens, {1 - mask.keep_text:.0%} of text tokens.")
    if subjects := (run.get("subjects") or {}).get("count"):
        lines.append(f"Trained on {subjects:,} subjects, of the training split only.")
    if initial := run.get("initial"):
        known = (initial["subjects"] or {}).get("count")
        of = f"{known:,} subjects" if known is not None else "subjects that are not listed here"
        kind = "published CSFM weights" if "sha256" in initial else f"step {initial['step']:,} of an earlier run"
        lines.append(f"Began from {kind}, trained on {of}, instead of from a random initialisation.")
    for name, store in sorted((run.get("stores") or {}).items()):
        numbers = ", ".join(f"{v:,} {k}" for k, v in store.items() if isinstance(v, int))
        lines.append(f"Store {name}: {numbers}.")
    return "\n".join(lines) + "\n"
