"""The model card of an export: what the model takes, how it was trained, in numbers and without ids."""

from csfm_jax.config import Config
from csfm_jax.models.vocabulary import Vocabulary
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


def text(config: Config, spec: Spec, run: dict, parameters: int) -> str:
    """The card in Markdown with YAML front matter.

    Args:
        run: what the run recorded; only its numbers are used. parameters: count, encoder with text embedding.
    """
    channels = [CHANNELS[i].name for i in Vocabulary.of(config.tokens).channels]
    example = [c for c in ("I", "II", "PPG") if c in channels] or channels[:1]
    unit = MODALITIES[next(c.modality for c in CHANNELS if c.name == example[0])].unit
    use = _USE.format(channels=example, unit=unit, width=config.encoder.width)
    parts = (
        _FRONT,
        "# CSFM encoder\n",
        _about(config, parameters, channels),
        use,
        _signals(config, spec),
        _run(config, run),
    )
    return "\n".join(parts)


def _about(config, parameters, channels):
    e = config.encoder
    text = f"reports of up to {config.tokens.text_length} tokens" if config.tokens.text_length else "no text"
    return (
        "An encoder of biosignals for any subset of sensors, pretrained by reconstructing masked patches (after Gu et "
        "al., Nature Machine Intelligence 8, 220-233, 2026).\n\n"
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
