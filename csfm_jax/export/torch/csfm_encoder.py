"""The encoder of CSFM in plain PyTorch; parameter names are those of its published weights (Gu et al. 2026)."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

try:
    from .csfm_files import Refused, verify
    from .csfm_layers import Transformer, angles, projection
    from .preprocess import INVALID, Spec, normalise, prepare, tokens
    from .signals import CHANNEL_ID, CHANNELS, CLS, PAD, TEXT, modality_of
except ImportError:
    from csfm_files import Refused, verify
    from csfm_layers import Transformer, angles, projection
    from preprocess import INVALID, Spec, normalise, prepare, tokens
    from signals import CHANNEL_ID, CHANNELS, CLS, PAD, TEXT, modality_of

GRID = 25  # windows of a task start at multiples of 1 / GRID s


@dataclass
class Encoded:
    """What the encoder returns. B windows, T tokens of the longest window, D width.

    Attributes:
        pooled: [B, D], one vector a window. tokens: [B, T, D], zero where padded.
        channel: [B, T] int64, id in `signals.CHANNELS`, 0 where padded.
        time: [B, T] seconds of the patch's centre, from the window's start (of `embed`: from the recording's); the
            index of a text token.
        starts: [B] seconds of the windows' starts; report: what preprocessing resampled, filtered, dropped or did not
            know, one dict a given channel (both of `embed` only).
    """

    pooled: torch.Tensor
    tokens: torch.Tensor
    channel: torch.Tensor
    time: torch.Tensor
    starts: torch.Tensor | None = None
    report: list | None = None


class CSFMEncoder(nn.Module):
    """Tokens of signals and text -> embeddings, for any subset of the sensors it knows.

    Attributes:
        most: windows of a long recording that are embedded at once; bounds memory.

    Args:
        config: the content of `config.json`.
        spec: the preprocessing of `preprocessor_config.json`, for `embed`; None leaves `forward` and `encode`.
    """

    most = 16

    def __init__(self, config, spec=None):
        super().__init__()
        encoder, vocabulary = config["encoder"], config["tokens"]
        self.config_dict, self.spec = config, spec
        self.position, self.pooling = encoder["position"], encoder["pooling"]
        self.position_seconds, self.head_dim = encoder["position_seconds"], encoder["head_dim"]
        self.modalities = tuple(vocabulary["modalities"])
        self.patch = {m: vocabulary["patch"][m] for m in self.modalities}
        self.known = tuple(CHANNEL_ID[name] for name in config["channels"])
        width, text_length = encoder["width"], vocabulary["text_length"]
        self.text_length = text_length
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.ts_channel_type_embedding = nn.Parameter(torch.randn(1, len(self.known), width))
        if self.position == "learned":
            self.ts_pos_embedding = nn.Parameter(torch.randn(1, encoder["position_steps"], width))
        if encoder["projection"] == "shared":
            self.ts_to_patch_embedding = projection(max(self.patch.values()), width)
        else:
            self.ts_to_patch_embedding = nn.ModuleDict({m: projection(p, width) for m, p in self.patch.items()})
        if text_length:
            self.text_type_embedding = nn.Parameter(torch.randn(1, 1, width))
            self.text_pos_embedding = nn.Parameter(torch.randn(1, text_length, width))
            words = nn.Embedding(vocabulary["text_vocabulary"], width)
            self.text_to_embedding = nn.Sequential(words, nn.LayerNorm(width))
        sizes = (encoder[k] for k in ("width", "depth", "heads", "head_dim", "mlp", "dropout", "output"))
        self.dropout = nn.Dropout(encoder["dropout"])
        self.transformer = Transformer(*sizes)

    @classmethod
    def from_folder(cls, folder):
        """Reads an exported folder in evaluation mode, after verifying every file of it.

        Raises:
            Refused: a file is missing, was changed, or the weights do not fit the configuration.
        """
        config, spec, load = read_folder(Path(folder))
        return load(cls(config, spec), "encoder.").eval()

    def forward(self, patches, channel, time, text):
        """Embeds windows that are cut into tokens already (`tokenise` does that).

        Args:
            patches: [B, T, P] float32, P samples of the longest patch, shorter ones zero-filled at the end.
            channel: [B, T] int64, id in `signals.CHANNELS`; 0 = padding. time: [B, T] float32, seconds of the patch's
                centre, the index of a text token, 0 for CLS. text: [B, T] int64, token id where the channel is TEXT.

        Returns:
            `Encoded`.
        """
        x, there, turn = self._enter(patches, channel, time, text)
        x = self.transformer(x, there, turn) * there[..., None]
        chosen = channel == CLS if self.pooling == "cls" else there & (channel != CLS)
        return Encoded(_mean(x, chosen), x, channel, time)

    def layers(self, patches, channel, time, text):
        """Means over a window's tokens but CLS, for heads that read all layers; arguments as of `forward`.

        Returns:
            [B, D] of what enters the first block, and [L, B, D] of what leaves each, before the final LayerNorm.
        """
        x, there, turn = self._enter(patches, channel, time, text)
        chosen = there & (channel != CLS)
        return _mean(x, chosen), torch.stack([_mean(y, chosen) for y in self.transformer.blocks(x, there, turn)])

    def _enter(self, patches, channel, time, text):
        x = self.dropout(self._content(patches, channel, text) + self._place(channel, time))
        there = channel != PAD
        turn = None
        if self.position == "rotary":
            turn = angles(time, self.head_dim // 2) * _is_signal(channel)[..., None]
        # No query lacks keys: padded ones see the window's tokens too, and are zeroed or left out afterwards.
        return x * there[..., None], there, turn

    def _content(self, patches, channel, text):
        if isinstance(self.ts_to_patch_embedding, nn.ModuleDict):
            index = torch.tensor([self._modality_index(c.id) for c in CHANNELS], device=channel.device)[channel]
            x = 0.0
            for i, name in enumerate(self.modalities):
                one = self.ts_to_patch_embedding[name](patches[..., : self.patch[name]])
                x = x + one * (index == i)[..., None]
        else:
            x = self.ts_to_patch_embedding(patches)
        if self.text_length:
            x = torch.where((channel == TEXT)[..., None], self.text_to_embedding(text), x)
        return torch.where((channel == CLS)[..., None], self.cls_token, x)

    def _place(self, channel, time):
        row = torch.zeros(len(CHANNELS), dtype=torch.long)
        row[list(self.known)] = torch.arange(len(self.known))
        signal = _is_signal(channel)
        place = self.ts_channel_type_embedding[0][row.to(channel.device)[channel]]
        if self.position == "learned":
            place = place + self.ts_pos_embedding[0][self._step(time).long() * signal]
        elif self.position == "sincos":
            phase = angles(time, place.shape[-1] // 2)
            place = place + torch.cat([phase.sin(), phase.cos()], -1)
        place = place * signal[..., None]
        if self.text_length:
            is_text = channel == TEXT
            of_text = self.text_pos_embedding[0][(time * is_text).long()] + self.text_type_embedding[0]
            place = place + of_text * is_text[..., None]
        return place

    def _step(self, time):
        # the thousandth puts centres on the border between two steps on the later one, as in training
        return (time / self.position_seconds + 1e-3) // 1

    def _modality_index(self, channel):
        modality = modality_of(channel)
        return self.modalities.index(modality.name) if modality and modality.name in self.modalities else -1

    def tokenise(self, windows, text=None):
        """Cuts windows into tokens and pads them to one length.

        Args:
            windows: for every window a list of (channel id or name, float samples [n] at its modality's rate, after
                `preprocess.normalise`; NaN = absent). A patch with a NaN gives no token.
            text: for every window a sequence of token ids, or None.

        Returns:
            The arguments of `forward` as tensors on the parameters' device.
        """
        longest = max(self.patch.values())
        rows = []
        for i, window in enumerate(windows):
            parts = [(np.zeros((1, longest), np.float32), [CLS], [0.0], [0])]
            for channel, samples in window:
                id_ = CHANNEL_ID[channel] if isinstance(channel, str) else int(channel)
                if id_ not in self.known:
                    raise Refused(
                        f"channels: found {channel!r}; expected some of {', '.join(self.config_dict['channels'])}"
                    )
                parts.append(self._cut(id_, np.asarray(samples, np.float32), longest))
            words = [] if text is None or text[i] is None else list(text[i])
            if len(words) > self.text_length:
                raise Refused(f"text: found {len(words)} token ids; expected {self.text_length} at most; shorten it")
            n = len(words)
            parts.append((np.zeros((n, longest), np.float32), [TEXT] * n, range(n), words))
            rows.append([np.concatenate([np.asarray(p[field]) for p in parts]) for field in range(4)])
        tokens_, B = max(len(r[1]) for r in rows), len(rows)
        out = [np.zeros((B, tokens_, longest), np.float32), np.zeros((B, tokens_), np.int64)]
        out += [np.zeros((B, tokens_), np.float32), np.zeros((B, tokens_), np.int64)]
        for i, row in enumerate(rows):
            for array, values in zip(out, row):
                array[i, : len(values)] = values
        return tuple(torch.from_numpy(a).to(self.cls_token.device) for a in out)

    def _cut(self, channel, samples, longest):
        modality = modality_of(channel)
        patches, time, valid = tokens(samples, self.patch[modality.name], modality.rate)
        if self.position == "learned" and len(time) and self._step(time[-1]) >= self.ts_pos_embedding.shape[1]:
            longest = self.ts_pos_embedding.shape[1] * self.position_seconds
            raise Refused(f"window: found {len(samples) / modality.rate:g} s; expected {longest:g} s at most; cut it")
        patches = np.pad(patches[valid], ((0, 0), (0, longest - patches.shape[1])))
        return patches, [channel] * len(patches), time[valid], [0] * len(patches)

    @torch.no_grad()
    def encode(self, windows, channels, text=None):
        """Embeds a padded batch of windows that are preprocessed already; each channel is z-scored here.

        Args:
            windows: [B, C, N] float at each channel's modality's rate; NaN where a sensor is absent or has ended.
            channels: C names or ids for all windows, or for every window C of them (0 or "PAD" = none).
            text: [B, L] token ids, 0 = padding; or None.

        Returns:
            `Encoded`, tokens in the order CLS, channels as given, text.
        """
        if isinstance(channels[0], (str, int, np.integer)):
            channels = [channels] * len(windows)
        listed = [
            [(c, normalise(x)) for c, x in zip(ids, window) if c not in (PAD, "PAD")]
            for ids, window in zip(channels, np.where(np.isfinite(windows), windows, INVALID).astype(np.float32))
        ]
        words = None if text is None else [[int(t) for t in row if t] for row in text]
        return self(*self.tokenise(listed, words))

    @torch.no_grad()
    def embed(self, signal, rate, channels, unit="mV", *, text=None, mains=None):
        """Preprocesses a raw recording and embeds it.

        Args:
            signal: [C, samples] in physical units, NaN where invalid; or C arrays of their own length.
            rate: Hz; channels: names; unit: of the samples; rate and unit may be one a channel.
            text: token ids, or None. mains: powerline frequency in Hz, None = not known.

        Returns:
            `Encoded` with one row for every window of the recording (`window_seconds` of config.json), and `report`.

        Raises:
            Refused: nothing in it can be used; the message says what became of each channel.
        """
        cut, starts, report = self.cut(signal, rate, channels, unit, text=text, mains=mains)
        parts = [self(*(x[i : i + self.most] for x in cut)) for i in range(0, len(starts), self.most)]
        joined = {f: torch.cat([getattr(p, f) for p in parts]) for f in ("pooled", "tokens", "channel", "time")}
        joined["time"] = joined["time"] + starts[:, None] * (joined["channel"] != TEXT) * (joined["channel"] != PAD)
        return Encoded(**joined, starts=starts, report=report)

    def cut(self, signal, rate, channels, unit="mV", *, text=None, mains=None, task=None):
        """Preprocesses a raw recording and cuts it into the tokens of its windows.

        Args: as of `embed`. task: of config.json: its sensors, stretch of the recording and windows alone.

        Returns:
            The arguments of `forward`, [windows] seconds of the windows' starts, and the report.
        """
        if self.spec is None:
            raise Refused("preprocessing: found none; expected a folder read with from_folder; read one")
        n = len(channels)
        rates, units = [rate] * n if np.ndim(rate) == 0 else rate, [unit] * n if isinstance(unit, str) else unit
        rows = [np.asarray(row, np.float32) for row in signal]
        if not len(rows) == len(rates) == len(units) == n or any(row.ndim != 1 for row in rows):
            raise Refused(
                f"signal: found {len(rows)} rows for {n} channels; expected [channels, samples]; transpose it"
            )
        given = [(c, float(r), u, 0.0, row) for c, r, u, row in zip(channels, rates, units, rows)]
        made = prepare(given, spec=self.spec, mains=mains)
        read = self.modalities if task is None else task["sensors"]
        for told in made.report:
            if told["status"] == "kept" and CHANNEL_ID[told["channel"]] not in self.known:
                told.update(status="dropped", reason="not known to the model")
            elif told["status"] == "kept" and modality_of(told["channel"]).name not in read:
                told.update(status="dropped", reason="not read by the task")
        kept = {CHANNEL_ID[told["channel"]] for told in made.report if told["status"] == "kept"}
        usable = [(int(c), x) for c, x in zip(made.channels, made.samples) if int(c) in kept]
        if not usable:
            fate = "; ".join(f"{r['name']}: {r.get('reason', 'not known to the model')}" for r in made.report)
            raise Refused(f"signal: found no channel that can be used ({fate}); expected one; check names and units")
        windows = self._windows(usable, made.seconds, task)
        words = None if text is None else [list(text)[: self.text_length]] * len(windows)
        cut = self.tokenise([channels for _, channels in windows], words)
        starts = torch.tensor([start for start, _ in windows], dtype=torch.float32, device=cut[0].device)
        there = _is_signal(cut[1]).any(1)  # a window in which every patch is invalid says nothing
        if not there.any():
            raise Refused("signal: found no valid patch in any window; expected some; check the recording")
        return [x[there] for x in cut], starts[there], made.report

    def _windows(self, usable, seconds, task):
        """(start, channels normalised) of consecutive windows; a last part shorter than a window only if it is all.

        Those of a task lie evenly over its stretch of the recording, on the grid of starts, and may overlap.
        """
        longest, least = self.config_dict["window_seconds"], self.config_dict["minimum_seconds"]
        begin = 0.0
        if task is not None:
            begin = np.ceil(task["begin"] * GRID) / GRID
            seconds = min(seconds, task["end"] or seconds) - begin
        if seconds < least:
            raise Refused(f"signal: found {max(seconds, 0):g} s; expected {least:g} s or more; give a longer stretch")
        length, windows = min(longest, seconds), []
        if task is None:
            starts = [i * length for i in range(max(1, int(seconds / longest + 1e-6)))]
        else:
            spare = (seconds - length) * GRID  # in points of the grid
            wanted = max(task["crops"], int(np.ceil(seconds / longest - 1e-6)))
            many = min(wanted, int(spare + 1e-6) + 1, task["most_windows"])
            starts = [begin + int(i * spare / max(1, many - 1) + 1e-6) / GRID for i in range(many)]
        for start in starts:
            window = []
            for channel, samples in usable:
                rate = modality_of(channel).rate
                first = int(start * rate + 0.5)
                cut = samples[first : first + int(np.floor(length * rate + 0.5))]
                window.append((channel, normalise(cut, epsilon=self.spec.epsilon)))
            windows.append((start, window))
        return windows


def _is_signal(channel):
    return (channel != PAD) & (channel != CLS) & (channel != TEXT)


def _mean(x, chosen):
    """[B, D], the mean of [B, T, D] over the tokens that [B, T] bool chooses."""
    weight = chosen.to(x.dtype) / chosen.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bt,btd->bd", weight, x)


def read_folder(folder):
    """Verifies an exported folder.

    Returns:
        The content of config.json, the preprocessing, and a function (module, prefix) -> module, which puts the
        weights whose names begin so into it.

    Raises:
        Refused: a file is missing or was changed; by the function, weights that do not fit.
    """
    from safetensors.torch import load_file

    verify(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))

    def load(module, prefix):
        state = load_file(folder / "model.safetensors")
        try:
            module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        except RuntimeError as error:
            raise Refused(f"{folder / 'model.safetensors'}: {' '.join(str(error).split())[:300]}") from error
        return module

    return config, read_spec(folder), load


def read_spec(folder):
    """The preprocessing of an exported folder; refused where its digest is not that of the shipped code's fields."""
    path = Path(folder) / "preprocessor_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    spec = Spec.from_dict(values["spec"])
    if spec.digest() != values["digest"]:
        raise Refused(f"{path}: found digest {values['digest']}; expected {spec.digest()}; export again")
    return spec
