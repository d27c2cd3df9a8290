"""Shared by tokenizers that are trained: encoding in pieces, tables of bytes, and counts of words."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
import tokenizers as hf
from numpy.typing import NDArray

from ablatio.data.types import Ids
from ablatio_std.tokenizers._chunks import ByChunks, pieces_of
from ablatio_std.tokenizers._common import BYTE_OF, text_of

_WORDS = 1 << 22  # different words that are counted at a time; beyond, those that occurred once are dropped
_AS_BYTES = str.maketrans({character: chr(byte) for character, byte in BYTE_OF.items()})


def byte_words() -> hf.pre_tokenizers.PreTokenizer:
    """GPT-2's words (letters, digits or signs, with the space before them), written in its alphabet of bytes."""
    return hf.pre_tokenizers.ByteLevel(add_prefix_space=False)


def word_counts(texts: Iterable[str]) -> Counter[str]:
    """Count the words of texts, written in GPT-2's alphabet of bytes; memory is bounded by `_WORDS`."""
    split, counts = byte_words(), Counter[str]()
    for text in texts:
        for piece in pieces_of(text):
            counts.update(word for word, _ in split.pre_tokenize_str(piece))
            if len(counts) > _WORDS:
                counts = Counter({word: n for word, n in counts.items() if n > 1})
    return counts


def bytes_of(token: str) -> bytes:
    """Bytes of a token that is written in GPT-2's alphabet of bytes."""
    return token.translate(_AS_BYTES).encode("latin-1")


class Learned:
    """A tokenizer with a trained vocabulary; eos is its last id.

    Subclasses set `_table`, the bytes of each id, and build the library's tokenizer in `_build`. It is built at the
    first text, since most runs read their tokens from the cache.
    """

    trained: ClassVar[bool] = True
    _table: list[bytes]
    _made: hf.Tokenizer | None = None
    _chunks: ByChunks | None = None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.eos = vocab_size, vocab_size - 1

    def _build(self) -> hf.Tokenizer:
        raise NotImplementedError

    @property
    def _model(self) -> hf.Tokenizer:
        self._made = self._made or self._build()
        return self._made

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        model = self._model
        if self._chunks is None or self._chunks.model is not model:  # a new vocabulary has another model
            self._chunks = ByChunks(model, self._lengths())
        return self._chunks(texts)

    def decode(self, ids: Sequence[int]) -> str:
        return text_of(self._table, ids)

    def token_bytes(self) -> NDArray[np.int64]:
        return self._lengths()

    def _lengths(self) -> NDArray[np.int64]:
        """Number of bytes of each id, as the library's model sees them."""
        return np.array([len(token) for token in self._table], dtype=np.int64)


def opening(model: hf.Tokenizer, eos: str) -> hf.Tokenizer:
    """Make the library's tokenizer put its token `eos` in front of each text, as in training, and return it."""
    model.add_special_tokens([eos])
    ends = [(eos, model.token_to_id(eos))]
    model.post_processor = hf.processors.TemplateProcessing(f"{eos} $A", special_tokens=ends)
    return model
