"""Encode words once: a memory of their ids in front of a tokenizer of the tokenizers library."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

import numpy as np
import tokenizers as hf
from numpy.typing import NDArray

from ablatio.data.types import Ids, token_type

# White space with what follows it, up to the next space or line end after other text. Of two chunks the second begins
# with a run of white space, which GPT-2's words never join to what stands before it: no token crosses the border.
# A tab or another white space does not end a chunk, since Python calls some characters so that the library does not.
_CHUNK = re.compile(r"\s*\S+(?:[^\S \n]\s*(?:\S+|\Z))*|\s+")
_PIECE = 1 << 14  # characters of a piece, at least
_CUT = re.compile(r"(?<=\S)[ \n]")  # a space or line end after a non-space: no token crosses it
_CHARACTERS = 1 << 21  # characters of the chunks that are remembered: about 300,000 chunks and 50 MB
_TOGETHER = 1 << 14  # characters of texts whose chunks are looked up together
_TRIAL = 1 << 15  # characters of texts with unknown chunks after which it is asked whether texts repeat their chunks
_WHOLE = 1 << 18, 1 << 23  # characters that are encoded as whole texts where they do not: after one trial, and at most
_AT_ONCE = 1 << 8  # chunks that are encoded together: the library keeps over a hundred bytes of memory per token

# The tokenizers (of files) whose words are GPT-2's, or are smaller.
_WORDS = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_DIGITS = "Digits"


def pieces_of(text: str) -> Iterator[str]:
    """Split a long text where the tokens of the pieces are those of the whole text."""
    start = 0
    # In pieces of bounded length, since the library keeps over a hundred bytes of memory per token.
    while len(text) - start > _PIECE and (cut := _CUT.search(text, start + _PIECE)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


class _Known(dict[str, bytes]):
    """Packed ids of chunks. One that is not there is empty, and noted in `missing`.

    Noted by the look-up itself: a search for unknown chunks before it would take as long again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.missing: list[str] = []

    def __missing__(self, chunk: str) -> bytes:
        self.missing.append(chunk)
        return b""


class ByChunks:
    """Encode texts chunk by chunk, each different chunk once.

    A text repeats its words, so most chunks are found in a dict; the library finds the words of each text anew, which
    takes most of its time. Memory is bounded: what is dropped is encoded again.

    model        its words must be GPT-2's (or smaller): then the ids are those of the whole text
    token_bytes  (V,) number of bytes of each id
    """

    def __init__(self, model: hf.Tokenizer, token_bytes: NDArray[np.int64]) -> None:
        self.model, self.bytes, self.dtype = model, token_bytes, token_type(len(token_bytes))
        self._known = _Known()
        self._characters = self._seen = self._new = self._whole = 0
        self._pause = _WHOLE[0]

    def __call__(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text."""
        pieces = [[*pieces_of(text)] for text in texts]
        encoded = iter(self._encode([*chain.from_iterable(pieces)]))
        return [np.concatenate([*islice(encoded, len(of))]) if len(of) > 1 else next(encoded) for of in pieces]

    def _encode(self, texts: Sequence[str]) -> list[Ids]:
        found, rest = list[Ids](), iter(texts)
        while some := [*_first(rest, _TOGETHER)]:
            size = sum(map(len, some))
            if self._whole > 0:
                self._whole -= size
                found += self._ids(some)
                continue
            rows = [*map(_CHUNK.findall, some)]
            ids = [*map(self._joined, rows)]
            if self._known.missing:
                self._learn(size)
                ids = [*map(self._joined, rows)]
            found += ids
            if self._characters > _CHARACTERS:
                self._known, self._characters = _Known(), 0
        return found

    def _joined(self, chunks: Iterable[str]) -> Ids:
        return np.frombuffer(bytearray().join(map(self._known.__getitem__, chunks)), dtype=self.dtype)

    def _learn(self, characters: int) -> None:
        """Encode the chunks that were missing in texts with so many characters."""
        new, self._known.missing = set(self._known.missing), []
        size = sum(map(len, new))
        inner = [chunk for chunk in new if chunk[0] in " \n" and not chunk[-1].isspace()]
        for start in range(0, len(inner), _AT_ONCE):
            self._learn_together(inner[start : start + _AT_ONCE])
        self._learn_alone([*new.difference(inner)])
        self._characters += size
        self._seen += characters
        self._new += size
        if self._seen >= _TRIAL:
            # Chinese lines without spaces, or random strings, hardly repeat: they are faster as whole texts.
            if self._new > 0.8 * self._seen:
                self._whole, self._pause = self._pause, min(2 * self._pause, _WHOLE[1])
            else:
                self._pause = _WHOLE[0]
            self._seen = self._new = 0

    def _learn_together(self, chunks: Sequence[str]) -> None:
        """Encode chunks as one text, which costs half of what they cost alone: any text is a row of chunks."""
        (ids,) = self._ids(["".join(chunks)])
        ends = np.cumsum([len(chunk.encode()) for chunk in chunks])
        reached = np.cumsum(self.bytes[ids])
        borders = np.searchsorted(reached, ends) + 1  # the token that ends with the chunk is its last
        if len(reached) == 0 or reached[-1] != ends[-1] or bool((reached[borders - 1] != ends).any()):
            self._learn_alone(chunks)  # a normalized text has other bytes
            return
        packed, size = ids.tobytes(), ids.itemsize
        for chunk, start, end in zip(chunks, [0, *borders[:-1].tolist()], borders.tolist(), strict=True):
            self._known[chunk] = packed[start * size : end * size]

    def _learn_alone(self, chunks: Sequence[str]) -> None:
        for chunk, ids in zip(chunks, self._ids(chunks), strict=True):
            self._known[chunk] = ids.tobytes()

    def _ids(self, texts: Sequence[str]) -> list[Ids]:
        # Without special tokens, which the packing of documents adds itself.
        encoded = self.model.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(result.ids, dtype=self.dtype) for result in encoded]


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Texts from the first to the one that reaches a number of characters."""
    for text in texts:
        yield text
        if (characters := characters - len(text)) <= 0:
            return


def has_words_of_gpt2(model: hf.Tokenizer) -> bool:
    """True if no token of the model, read from a file, crosses a border of chunks: what `ByChunks` takes.

    Its words are GPT-2's, perhaps with single digits; it does not change the text before, draws nothing at random, and
    has no token that is looked for in the text before words are.
    """
    data = json.loads(model.to_str())
    steps = data["pre_tokenizer"] or {}
    *first, last = steps.get("pretokenizers") or [steps]
    words = all(last.get(name) == value for name, value in _WORDS.items()) and all(s["type"] == _DIGITS for s in first)
    searched = any(not token.special for token in model.get_added_tokens_decoder().values())
    return words and not searched and data["normalizer"] is None and not data["model"].get("dropout")
