"""Tokenizers: bytes, byte-level BPE, symbols.  All are lossless for any text; no text is encoded to the id `eos`."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import numpy as np
import tokenizers as hf
from numpy.typing import NDArray

from ablatio import Range, tokenizers
from ablatio.data.types import Ids, token_type
from ablatio.errors import DamagedFile, UserError
from ablatio_std.tokenizers._common import BYTE_OF, state_of, text_of

_AT_ONCE = 256  # pieces per batch: the library keeps over a hundred bytes of memory per token
_PIECE = 1 << 14  # characters of a piece, at least
_CUT = re.compile(r"(?<=\S)[ \n]")  # a space or line end after a non-space: no token crosses it

_BYTES = [*(bytes([byte]) for byte in range(256)), b""]
_ALPHABET = {character: i for i, character in enumerate(sorted(BYTE_OF))}
_AS_BYTES = str.maketrans({character: chr(byte) for character, byte in BYTE_OF.items()})

Merges = Sequence[tuple[str, str]]


def _bpe(vocab: dict[str, int], merges: Merges = ()) -> hf.Tokenizer:
    model = hf.Tokenizer(hf.models.BPE(vocab, list(merges)))
    model.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return model


def _pieces(text: str) -> Iterator[str]:
    """Split a long text where the tokens of the pieces are those of the whole text."""
    start = 0
    while len(text) - start > _PIECE and (cut := _CUT.search(text, start + _PIECE)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _fast(vocab: dict[str, int], merges: Merges, eos: tuple[str, int]) -> hf.Tokenizer:
    """Byte-level BPE that puts the end-of-document token in front of each text, as in training."""
    model = _bpe(vocab | dict([eos]), merges)
    model.decoder = hf.decoders.ByteLevel()
    model.add_special_tokens([eos[0]])
    model.post_processor = hf.processors.TemplateProcessing(f"{eos[0]} $A", special_tokens=[eos])
    return model


@tokenizers.register("bytes")
class Bytes:
    """One id per UTF-8 byte, id = byte, and eos = 256: 257 ids; needs no training."""

    trained = False
    vocab_size, eos = 257, 256

    def train(self, texts: Iterable[str]) -> None:
        """Do nothing: the ids are fixed."""

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return text_of(_BYTES, ids)

    def token_bytes(self) -> NDArray[np.int64]:
        return np.append(np.ones(256, dtype=np.int64), 0)

    def state(self) -> str:
        return json.dumps({"tokenizer": "bytes"})

    def fast(self, eos: str) -> hf.Tokenizer:
        return _fast(dict(BYTE_OF), [], (eos, self.eos))

    def restore(self, state: str) -> None:
        if state_of(state).get("tokenizer") != "bytes":
            raise DamagedFile("the saved state is not that of tokenizer=bytes; choose the tokenizer that wrote it")


@tokenizers.register("bpe", paper="arXiv:1508.07909")
class BPE:
    """Byte-level byte-pair encoding (Sennrich et al. 2016; on bytes: GPT-2, Radford et al. 2019).

    Starting from 256 bytes, the most frequent pair of adjacent tokens inside words becomes a new id, until there are
    vocab_size - 1 ids; eos is the last id.  If a small corpus has fewer pairs, the remaining ids stay unused.
    """

    trained = True

    def __init__(
        self, *, vocab_size: Annotated[int, Range(257, 1_000_000), "number of ids, with 256 bytes and eos"] = 2048
    ) -> None:
        self.vocab_size, self.eos = vocab_size, vocab_size - 1
        self._set_vocabulary(_ALPHABET, [])

    def _set_vocabulary(self, vocab: dict[str, int], merges: Merges) -> None:
        """Set vocabulary and merges.  Raises DamagedFile, KeyError, TypeError or ValueError if they are not consistent.

        The library's model is built at the first text, since most runs read their tokens from the cache.
        """
        tokens = sorted(vocab, key=vocab.__getitem__)
        if [vocab[token] for token in tokens] != list(range(len(tokens))) or not 256 <= len(tokens) < self.vocab_size:
            raise DamagedFile(f"a BPE of {len(tokens)} ids does not fit tokenizer.vocab_size={self.vocab_size}")
        if unknown := set().union(*tokens) - BYTE_OF.keys():
            raise ValueError(f"{min(unknown)!r} does not stand for a byte")
        for left, right in merges:
            if not (left in vocab and right in vocab and left + right in vocab):
                raise ValueError(f"the merge of {left!r} and {right!r} needs a token that is not in the vocabulary")
        self._vocab, self._merges = {token: i for i, token in enumerate(tokens)}, merges
        self._table = [token.translate(_AS_BYTES).encode("latin-1") for token in tokens]
        self._table += [b""] * (self.vocab_size - len(tokens))
        self._state = ""
        self._made: hf.Tokenizer | None = None

    @property
    def _model(self) -> hf.Tokenizer:
        self._made = self._made or _bpe(self._vocab, self._merges)
        return self._made

    def train(self, texts: Iterable[str]) -> None:
        model = _bpe(_ALPHABET)
        trainer = hf.trainers.BpeTrainer(  # no special token, as the library would look for its name in the text
            vocab_size=self.vocab_size - 1, initial_alphabet=sorted(BYTE_OF), show_progress=False
        )
        model.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
        trained = json.loads(model.to_str())["model"]
        self._set_vocabulary(trained["vocab"], [(left, right) for left, right in trained["merges"]])

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        pieces = [(i, piece) for i, text in enumerate(texts) for piece in _pieces(text)]
        parts: list[list[Ids]] = [[] for _ in texts]
        dtype = token_type(self.vocab_size)
        for start in range(0, len(pieces), _AT_ONCE):
            group = pieces[start : start + _AT_ONCE]
            encoded = self._model.encode_batch_fast([piece for _, piece in group], add_special_tokens=False)
            for (i, _), result in zip(group, encoded, strict=True):
                parts[i].append(np.array(result.ids, dtype=dtype))
        return [np.concatenate(part) for part in parts]

    def decode(self, ids: Sequence[int]) -> str:
        return text_of(self._table, ids)

    def token_bytes(self) -> NDArray[np.int64]:
        return np.array([len(token) for token in self._table], dtype=np.int64)

    def state(self) -> str:
        if not self._state:  # kept, as a run needs it several times
            state = {"tokenizer": "bpe", "vocab": self._vocab, "merges": self._merges}
            self._state = json.dumps(state, ensure_ascii=False)
        return self._state

    def fast(self, eos: str) -> hf.Tokenizer:
        return _fast(self._vocab, self._merges, (eos, self.eos))

    def restore(self, state: str) -> None:
        saved = state_of(state)
        try:
            self._set_vocabulary(saved["vocab"], [(left, right) for left, right in saved["merges"]])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DamagedFile(f"the saved state is not that of tokenizer=bpe ({reason})") from error


@tokenizers.register("symbols")
class Symbols:
    """One id per character of a small alphabet, in its order; other bytes become two ids, one per half, of 32 more ids.

    For synthetic tasks on symbols (source=mqar).  The default alphabet, the dot, the question mark, digits and letters,
    gives a vocabulary of 64 + 32 + 1; it needs no training.
    """

    trained = False

    def __init__(
        self,
        *,
        alphabet: Annotated[str, "characters in the order of their ids, each once"] = (
            ".?0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
        ),
    ) -> None:
        if len(set(alphabet)) != len(alphabet):
            twice = next(c for i, c in enumerate(alphabet) if c in alphabet[:i])
            raise UserError(f"tokenizer.alphabet contains {twice!r} more than once; expected each character once")
        self.alphabet, self.halves = alphabet, len(alphabet)
        self.eos = len(alphabet) + 32
        self.vocab_size = self.eos + 1
        self._ids = {character: [i] for i, character in enumerate(alphabet)}

    def train(self, texts: Iterable[str]) -> None:
        """Do nothing: the ids are fixed."""

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        dtype = token_type(self.vocab_size)
        return [
            np.array([i for c in text for i in self._ids.get(c) or self._spelled(c)], dtype=dtype) for text in texts
        ]

    def _spelled(self, character: str) -> list[int]:
        return [self.halves + 16 * low + half for b in character.encode() for low, half in enumerate(divmod(b, 16))]

    def decode(self, ids: Sequence[int]) -> str:
        found, high = bytearray(), 0
        for i in ids:
            if i < self.halves:
                found += self.alphabet[i].encode()
            elif i < self.halves + 16:
                high = i - self.halves
            elif i < self.eos:
                found.append(16 * high + i - self.halves - 16)
        return found.decode("utf-8", errors="replace")

    def token_bytes(self) -> NDArray[np.int64]:
        """Bytes per id; of the two halves of a byte, the upper counts 0 and the lower 1."""
        return np.array([*(len(c.encode()) for c in self.alphabet), *[0] * 16, *[1] * 16, 0], dtype=np.int64)

    def state(self) -> str:
        return json.dumps({"tokenizer": "symbols", "alphabet": self.alphabet})

    def restore(self, state: str) -> None:
        if state_of(state) != {"tokenizer": "symbols", "alphabet": self.alphabet}:
            raise DamagedFile("the saved state is not that of tokenizer=symbols with this alphabet")
