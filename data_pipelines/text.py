"""Reports as tokens: cleaning, a vocabulary that cannot single out a person, and which tokenizer a run uses.

No function here logs a report or puts one into an exception.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterable

import numpy as np

from data_pipelines.config import TokenConfig
from data_pipelines.errors import BadInput
from data_pipelines.storage import Missing, Place, is_remote, join, place, read_bytes

_REMEMBERED = 1 << 16  # reports whose ids a reader keeps: enough for small stores, bounded for large ones
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_REFERS_BACK = re.compile(r"compared (to|with)|previous (tracing|ecg)|tracing #|^\W*$", re.IGNORECASE)


def clean_report(report: str) -> str:
    """Leaves what describes this recording, on one line (Gu et al. 2026, `utils/preprocess_text.py`, in spirit).

    Sentences that refer to another tracing ("Compared to ...", "previous tracing", "TRACING #2") are dropped; the
    rest is joined by commas, with runs of white space made one space. Case is left to the tokenizer.
    """
    sentences = re.split(r"[\n\r]+|\.(?!\d)", report)
    kept = [" ".join(s.split()).strip(" ,;") for s in sentences if not _REFERS_BACK.search(s)]
    return ", ".join(s for s in kept if s)


def train_tokenizer(
    texts: Iterable[str], subjects: Iterable[str], vocabulary_size: int = 30522, minimum_subjects: int = 20
):
    """Trains a WordPiece vocabulary (lower case, BERT's splitting) that holds no word of a few people only.

    Words seen in fewer than `minimum_subjects` subjects are taken out before training, so every entry is a common
    word or a piece of one; letters that occur in rare words only are not in it either.

    Args:
        texts: reports, not yet cleaned. subjects: whose report each is, in the same order.
        vocabulary_size: entries at most, special tokens included.
        minimum_subjects: see above.

    Returns:
        `tokenizers.Tokenizer`, the same bytes for the same reports in the same order; [PAD] is 0.
    """
    from tokenizers import Tokenizer, decoders, models, trainers

    split = _empty_tokenizer({})
    people: dict[str, set] = {}
    lines = []
    for text, subject in zip(texts, subjects):
        words = _words(split, clean_report(text))
        lines.append(words)
        for word in set(words):
            seen = people.setdefault(word, set())
            if len(seen) < minimum_subjects:  # more need not be remembered
                seen.add(subject)
    common = {word for word, seen in people.items() if len(seen) >= minimum_subjects}
    del people
    letters = sorted({letter for word in common for letter in word})
    # The trainer numbers continuation letters in the order of a randomised hash, and breaks ties by number. Giving
    # them as special tokens fixes the numbers, hence the vocabulary; they are ordinary entries in what is returned.
    fixed = [*SPECIAL_TOKENS, *letters, *("##" + letter for letter in letters)]
    training = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    training.pre_tokenizer = split.pre_tokenizer
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocabulary_size, len(fixed)), special_tokens=fixed, show_progress=False, min_frequency=2
    )
    training.train_from_iterator((" ".join(w for w in words if w in common) for words in lines), trainer)
    vocabulary = {
        token: number for token, number in training.get_vocab().items() if number < max(vocabulary_size, len(fixed))
    }
    tokenizer = _empty_tokenizer(vocabulary)
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _empty_tokenizer(vocabulary):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if vocabulary:
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _words(tokenizer, text: str) -> list[str]:
    normal = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]


def choose_tokenizer(stores, tokens: TokenConfig, path: str = "") -> str | None:
    """The tokenizer of a run, as JSON text: the file that the config names, else the one that the stores share.

    Args:
        stores: `store.Store`s. tokens: `text_length` 0 means no text. path: `data.tokenizer`.

    Returns:
        The JSON text, or None where there is no text to tokenise.

    Raises:
        BadInput: no tokenizer although there are reports, several different ones, one that is not readable, or one
            with more entries than `tokens.text_vocabulary`.
    """
    if tokens.text_length == 0:
        return None
    if path:
        return _checked(place(path), _read(place(path)), tokens)
    with_text = [store for store in stores if np.any(store.index.has_report)]
    found = {}
    for store in with_text:
        with contextlib.suppress(Missing):
            where = join(store.path, "tokenizer.json")
            found.setdefault(store.read_file("tokenizer.json") if is_remote(where) else read_bytes(where), where)
    found.pop(None, None)
    if len(found) == 1:
        data, where = next(iter(found.items()))
        return _checked(where, data, tokens)
    if not with_text:
        return None
    raise BadInput(
        "config.data.tokenizer",
        f"{len(found) or 'no'} tokenizers with {len(with_text)} stores of reports" if found else "no tokenizer",
        "one tokenizer for all stores",
        "name a tokenizer.json, for example that of one store, or set config.tokens.text_length=0",
    )


def _read(where: Place) -> bytes:
    try:
        return read_bytes(where)
    except Missing as error:
        raise BadInput(str(where), error.found, "a tokenizer.json", "correct config.data.tokenizer") from None


def _checked(where: Place, data: bytes, tokens: TokenConfig) -> str:
    from tokenizers import Tokenizer

    try:
        text = data.decode()
        size = Tokenizer.from_str(text).get_vocab_size()
    except Exception:  # tokenizers raises bare Exception
        raise BadInput(
            str(where), "a file that `tokenizers` cannot read", "a tokenizer.json", "correct config.data.tokenizer"
        ) from None
    if size > tokens.text_vocabulary:
        raise BadInput(
            str(where),
            f"{size} entries",
            f"at most config.tokens.text_vocabulary = {tokens.text_vocabulary}",
            f"set config.tokens.text_vocabulary={size} or name a smaller tokenizer",
        )
    return text


class Reports:
    """Token ids of stores' reports; made where they are used and never written.

    Args:
        stores: `store.Store`s. tokens: `text_length` truncates. tokenizer: JSON text, or None for no text at all.

    A worker process gets the stores' paths and the tokenizer, and reads the reports itself.
    """

    def __init__(self, stores, tokens: TokenConfig, tokenizer: str | None):
        self._stores, self._length, self._json = stores, tokens.text_length, tokenizer
        self._tokenizer, self._texts, self._ids = None, {}, {}

    def __getstate__(self):
        return {**self.__dict__, "_tokenizer": None, "_texts": {}, "_ids": {}}

    @property
    def digest(self) -> str:
        """Of the tokenizer and the length: with the stores' digests, decides every id."""
        return hashlib.sha256(f"{self._length}:{self._json}".encode()).hexdigest()

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        if self._tokenizer is None:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_str(self._json)
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
        encoded = self._tokenizer.encode_batch([clean_report(t) for t in texts], add_special_tokens=False)
        return [np.array(e.ids[: self._length], np.int32) for e in encoded]

    def _store_texts(self, store: int) -> list[str | None]:
        if store not in self._texts:
            self._texts[store] = self._stores[store].reports()
        return self._texts[store]

    def counts(self) -> list[np.ndarray]:
        """For each store, int16 [recordings]: text tokens of each recording's report; 0 = none."""
        counts = []
        for position, store in enumerate(self._stores):
            count = np.zeros(len(store.index.seconds), np.int16)
            if self._json is not None and np.any(store.index.has_report):
                texts = self._store_texts(position)
                having = [i for i, text in enumerate(texts) if text]
                for begin in range(0, len(having), 4096):  # bounds the memory that encodings take
                    part = having[begin : begin + 4096]
                    count[part] = [len(ids) for ids in self._encode([texts[i] for i in part])]
            counts.append(count)
        return counts

    def ids(self, store: int, recording: int) -> np.ndarray:
        """int32 [at most text_length]: a recording's report; empty where it has none."""
        if self._json is None or not self._stores[store].index.has_report[recording]:
            return _NO_TEXT
        key = (store, recording)
        if key not in self._ids:
            if len(self._ids) >= _REMEMBERED:
                self._ids.clear()
            text = self._store_texts(store)[recording]
            self._ids[key] = self._encode([text])[0] if text else _NO_TEXT
        return self._ids[key]


_NO_TEXT = np.zeros(0, np.int32)
