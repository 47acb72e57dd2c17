"""A trained encoder in use: `embed` a raw recording, `encode` a prepared window, or run whole batches."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from csfm_jax.config import Config
from csfm_jax.embedding import Embedding, Window, given_channels, window_of
from csfm_jax.models.encoder import Encoder
from csfm_jax.models.vocabulary import Vocabulary
from csfm_jax.spread import OverDevices
from data_pipelines import preprocess
from data_pipelines.batch import TokenBatch
from data_pipelines.errors import BadInput
from data_pipelines.loader import pack_windows
from data_pipelines.recording import Recording
from data_pipelines.signals import CHANNEL_ID, CHANNELS, modality_of
from data_pipelines.windows import row_length, samples_in

_MOST_ROWS = 16  # windows of a long recording that are encoded at once; bounds memory


class LoadedEncoder:
    """An encoder with everything that it needs to be used: weights, vocabulary, preprocessing, words.

    Args:
        config: the run's configuration. encoder: the network; its weights are copied to the device once.
        spec: preprocessing that the network was trained with, applied by `embed`.
        tokenizer_json: text of a `tokenizer.json`, or None: then `text` must be given as token ids.
        provenance: where the weights come from ("path", "step", "seed", ...), for reports.
    """

    def __init__(
        self,
        config: Config,
        encoder: Encoder,
        spec: preprocess.Spec,
        tokenizer_json: str | None = None,
        provenance: dict[str, Any] | None = None,
    ):
        self.config, self.encoder, self.spec = config, encoder, spec
        self.tokenizer_json, self.provenance = tokenizer_json, provenance or {}
        self.known = set(Vocabulary.of(config.tokens).channels)
        graphdef, self._state = nnx.split(encoder)
        # jit keeps one program for each shape of batch that it has met
        self._apply = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch))
        # a recording is one device's work; the batches of many are all devices'
        pooled = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch).pooled)
        self._pooled = OverDevices(pooled, self._state, config.tokens)

    @property
    def width(self) -> int:
        """D, the length of an embedding."""
        return self.config.encoder.width

    @property
    def pooling(self) -> str:
        """What a window's vector is: "cls" or "mean" (of its tokens)."""
        return self.config.encoder.pooling

    def embed(
        self,
        signal: np.ndarray | Sequence[np.ndarray] | Recording,
        rate: float | Sequence[float] | None = None,
        channels: Sequence[str] | None = None,
        unit: str | Sequence[str] = "mV",
        text: str | Sequence[int] | None = None,
        mains: float | None = None,
    ) -> Embedding:
        """Preprocesses a raw recording as the training data was, and embeds it.

        Args:
            signal: [channels, samples] in physical units, NaN where invalid; or one array a channel; or a `Recording`,
                which brings its own rates, channels, units and mains frequency.
            rate: Hz, one for all channels or one each.
            channels: names, as recorded ("II", "MLII", "PLETH"); those not known are left out and reported.
            unit: of the samples, one for all channels or one each; a sensor without a physical scale takes any.
            text: a report, or token ids; cut to the length that the model reads. It joins every window.
            mains: powerline frequency in Hz; None removes both 50 and 60 Hz.

        Returns:
            An `Embedding`. Windows do not overlap, and are as long as the config's: a last part that is shorter than a
            window is left out, unless it is all there is.

        Raises:
            BadInput: wrong shapes, no channel that can be used, or a recording below the config's shortest window.
        """
        given, mains = given_channels(signal, rate, channels, unit, mains)
        made = preprocess.prepare(given, spec=self.spec, mains=mains)
        windows = self.windows(made)
        return self._embedding(windows, self.words(text), made.report)

    def encode(
        self,
        window: np.ndarray | Sequence[np.ndarray],
        channels: Sequence[str | int],
        text: Sequence[int] | None = None,
    ) -> Embedding:
        """Embeds one window that is preprocessed already: nothing is resampled, filtered or quantised.

        Each channel is z-scored over its valid samples, as the loader does after reading, so scale and offset do not
        matter.

        Args:
            window: [channels, samples] float at the modality's rate, NaN where absent; or one array a channel, as
                modalities of different rates need.
            channels: standard names or ids. text: token ids.

        Raises:
            BadInput: a channel that the model does not know, wrong shapes, no valid patch, or one too long.
        """
        if len(window) != len(channels) or not len(channels):
            raise BadInput("channels", f"{len(channels)} names for {len(window)} signals", "one each", "name every row")
        ids = [CHANNEL_ID.get(c, 0) if isinstance(c, str) else int(c) for c in channels]
        for name, id_ in zip(channels, ids):
            if id_ not in self.known:
                raise BadInput(
                    "channels", repr(name), "channels that the model knows: " + self._known_names(), "rename it"
                )
        if len(set(ids)) < len(ids):
            raise BadInput("channels", "a channel given twice", "each channel once", "leave one out")
        rows = []
        for id_, samples in zip(ids, window):
            samples = np.asarray(samples, np.float32)
            if samples.ndim != 1:
                raise BadInput("window", f"{samples.ndim + 1} dimensions", "[channels, samples]", "encode one window")
            self._check_length(id_, len(samples))
            rows.append((id_, samples))
        return self._embedding([Window(0.0, rows)], self.words(text), [])

    def windows(self, made: preprocess.PreparedRecording) -> list[Window]:
        """Cuts a prepared recording into windows, one after another.

        Channels that the model does not know are left out, and marked as dropped in `made.report`.

        Raises:
            BadInput: no usable channel, or a recording below the config's shortest window.
        """
        rule = self.config.data.window
        length = min(rule.seconds, made.seconds)
        count = max(1, int(made.seconds / rule.seconds + 1e-6))
        return [self.window_at(made, i * length, length) for i in range(count)]

    def window_at(self, made: preprocess.PreparedRecording, start: float, seconds: float) -> Window:
        """One window of a prepared recording, of the channels that the model knows; raises as `windows`."""
        for row in made.report:
            if row["status"] == "kept" and CHANNEL_ID[row["channel"]] not in self.known:
                row.update(status="dropped", reason="not known to the model")
        usable = [(int(c), x) for c, x in zip(made.channels, made.samples) if int(c) in self.known]
        if not usable:
            fate = "; ".join(f"{r['name']}: {r.get('reason', 'dropped')}" for r in made.report) or "no channel"
            expected = "at least one of " + self._known_names()
            raise BadInput("signal", f"no usable channel ({fate})", expected, "check names, units and signals")
        least = self.config.data.window.minimum_seconds
        if min(seconds, made.seconds - start) < least - 1e-6:
            expected = f"at least {least:g} s (config.data.window.minimum_seconds)"
            raise BadInput("signal", f"{made.seconds - start:g} s", expected, "give a longer stretch")
        rows = []
        for channel, samples in usable:
            rate = modality_of(channel).rate
            first = int(start * rate + 0.5)
            rows.append((channel, samples[first : first + int(samples_in(seconds, rate))]))
        return Window(start, rows)

    def words(self, text: str | Sequence[int] | None) -> np.ndarray:
        """Token ids [n] int32 of a report (or of ids, checked), as many as the model reads; none for None."""
        tokens = self.config.tokens
        if text is None or len(text) == 0:
            return np.zeros(0, np.int32)
        if not tokens.text_length:
            raise BadInput("text", "a text", "none: the model was trained without text", "leave text out")
        if isinstance(text, str):
            text = self._tokenise(text)
        ids = np.asarray(text)
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= tokens.text_vocabulary:
            raise BadInput(
                "text",
                "something else than token ids",
                f"a report, or integers from 0 to {tokens.text_vocabulary - 1}",
                "use the tokenizer that the model was trained with",
            )
        return ids[: tokens.text_length].astype(np.int32)

    def batch_shape(self, longest: int) -> dict[str, int]:
        """Shape of batches that hold windows of up to `longest` tokens, all of them visible.

        Attention over a row that is seen whole costs its length squared, so rows are as short as the longest window
        allows, and as many as make the batch as large as in training, and as the devices divide.
        """
        data = self.config.data
        tokens = row_length(longest, data.row_windows)
        rows = max(1, data.rows * data.row_visible // tokens) if data.row_visible else data.rows
        return {"rows": self._pooled.rows(rows), "row_tokens": tokens, "row_windows": data.row_windows}

    def embed_batches(self, batches: Iterable[TokenBatch]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Runs packed batches through the network, rows over all devices, one compiled program for each shape.

        Args:
            batches: with every token visible (`loader.evaluation_batches(..., hide=False)`).

        Yields:
            ids [n] int32, rows of the window table (`batch.window`), and their embeddings [n, D] float32.
        """
        for run, pooled in self._pooled.over(batches):
            there = run.window >= 0
            yield run.window[there], pooled[there]

    def _embedding(self, windows: list[Window], words: np.ndarray, report: list[dict]) -> Embedding:
        parts = []
        for first in range(0, len(windows), _MOST_ROWS):
            some = windows[first : first + _MOST_ROWS]
            batch = self._one_a_row(some, words)
            encoded = jax.device_get(self._apply(self._state, batch))
            rows = {int(i): row for row, i in enumerate(batch.window[:, 0])}
            parts += [window_of(encoded, rows[i], w) for i, w in enumerate(some) if i in rows]
        if not parts:
            raise BadInput("signal", "no valid patch in any window", "some valid samples", "check the recording")
        starts = np.array([w.start for w, *_ in parts], np.float32)
        return Embedding(
            pooled=np.stack([pooled for _, pooled, *_ in parts]),
            tokens=np.concatenate([tokens for *_, tokens in parts]),
            channel=tuple(CHANNELS[i].name for _, _, channel, *_ in parts for i in channel),
            time=np.concatenate([time for _, _, _, time, _ in parts]),
            window=np.repeat(np.arange(len(parts)), [len(channel) for _, _, channel, *_ in parts]),
            starts=starts,
            seconds=max(len(x) / modality_of(c).rate for c, x in windows[0].channels),
            report=report,
        )

    def _one_a_row(self, windows: list[Window], words: np.ndarray) -> TokenBatch:
        """Each window in a row of its own, and as many rows as the next power of two, so that recordings of one kind
        share a compiled program."""
        tokens = self.config.tokens
        most = max(sum(len(x) // tokens.patch[modality_of(c).name] for c, x in window.channels) for window in windows)
        (batch,) = pack_windows(
            [w.channels for w in windows],
            tokens,
            rows=1 << (len(windows) - 1).bit_length(),
            row_tokens=row_length(1 + most + len(words)),
            row_windows=1,
            texts=[words] * len(windows),
        )
        return batch

    def _tokenise(self, text: str) -> list[int]:
        if self.tokenizer_json is None:
            raise BadInput("text", "a report", "token ids: no tokenizer came with the weights", "tokenise it yourself")
        from tokenizers import Tokenizer

        from data_pipelines.text import clean_report

        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer.encode(clean_report(text), add_special_tokens=False).ids

    def _check_length(self, channel: int, samples: int) -> None:
        seconds = samples / modality_of(channel).rate
        encoder = self.config.encoder
        longest = encoder.position_steps * encoder.position_seconds
        if encoder.position == "learned" and seconds > longest + 1e-6:
            raise BadInput("window", f"{seconds:g} s", f"at most {longest:g} s, the model's table of times", "cut it")

    def _known_names(self) -> str:
        return ", ".join(CHANNELS[i].name for i in sorted(self.known))
