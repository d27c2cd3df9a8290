"""Tokenizers: bytes, byte-level BPE, symbols. All give back any text; `eos` is an id that no text encodes to."""

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

_AT_ONCE = 256  # pieces that are encoded together: what the library keeps of each token takes a hundred bytes and more
_PIECE = 1 << 14  # characters of a piece
_CUT = re.compile(r"(?<=\S)[ \n]")  # a word never reaches over a space or a line end that follows anything else


_BYTES = [*(bytes([byte]) for byte in range(256)), b""]
_ALPHABET = {character: i for i, character in enumerate(sorted(BYTE_OF))}
_AS_BYTES = str.maketrans({character: chr(byte) for character, byte in BYTE_OF.items()})

Merges = Sequence[tuple[str, str]]


def _bpe(vocab: dict[str, int], merges: Merges = ()) -> hf.Tokenizer:
    model = hf.Tokenizer(hf.models.BPE(vocab, list(merges)))
    model.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return model


def _pieces(text: str) -> Iterator[str]:
    """A long text in pieces that are tokenized alike alone and together."""
    start = 0
    while len(text) - start > _PIECE and (cut := _CUT.search(text, start + _PIECE)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _fast(vocab: dict[str, int], merges: Merges, eos: tuple[str, int]) -> hf.Tokenizer:
    """Byte-level BPE with its end sign in front of each text, as a document begins in training."""
    model = _bpe(vocab | dict([eos]), merges)
    model.decoder = hf.decoders.ByteLevel()
    model.add_special_tokens([eos[0]])
    model.post_processor = hf.processors.TemplateProcessing(f"{eos[0]} $A", special_tokens=[eos])
    return model


@tokenizers.register("bytes")
class Bytes:
    """One id per UTF-8 byte, id = byte, and eos = 256: 257 ids, nothing to train."""

    trained = False
    vocab_size, eos = 257, 256

    def train(self, texts: Iterable[str]) -> None:
        """There is nothing to learn."""

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
            raise DamagedFile("this is not the state of tokenizer=bytes; choose the tokenizer that it comes from")


@tokenizers.register("bpe", paper="arXiv:1508.07909")
class BPE:
    """Byte-level byte-pair encoding (Sennrich et al. 2016; on bytes: GPT-2, Radford et al. 2019).

    From 256 bytes on, the most frequent pair of neighbours inside a word becomes a new id until there are
    vocab_size - 1; eos is the last id. A small corpus may have fewer pairs: the other ids then stay unused.
    """

    trained = True

    def __init__(
        self, *, vocab_size: Annotated[int, Range(257, 1_000_000), "ids in all, with 256 bytes and eos"] = 2048
    ) -> None:
        self.vocab_size, self.eos = vocab_size, vocab_size - 1
        self._know(_ALPHABET, [])

    def _know(self, vocab: dict[str, int], merges: Merges) -> None:
        """What was learnt.  The library's model of it is made when a text comes: most runs read tokens from the cache.

        Raises KeyError, TypeError or ValueError for what is no vocabulary with its merges.
        """
        tokens = sorted(vocab, key=vocab.__getitem__)
        if [vocab[token] for token in tokens] != list(range(len(tokens))) or not 256 <= len(tokens) < self.vocab_size:
            raise DamagedFile(f"a BPE of {len(tokens)} ids does not fit tokenizer.vocab_size={self.vocab_size}")
        if strange := set().union(*tokens) - BYTE_OF.keys():
            raise ValueError(f"{min(strange)!r} stands for no byte")
        for left, right in merges:
            if not (left in vocab and right in vocab and left + right in vocab):
                raise ValueError(f"{left!r} and {right!r} are merged, and one of the three is no token")
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
        trainer = hf.trainers.BpeTrainer(  # no special token: the library would find its name in the text
            vocab_size=self.vocab_size - 1, initial_alphabet=sorted(BYTE_OF), show_progress=False
        )
        model.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
        told = json.loads(model.to_str())["model"]
        self._know(told["vocab"], [(left, right) for left, right in told["merges"]])

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
        if not self._state:  # written once: a run asks several times
            known = {"tokenizer": "bpe", "vocab": self._vocab, "merges": self._merges}
            self._state = json.dumps(known, ensure_ascii=False)
        return self._state

    def fast(self, eos: str) -> hf.Tokenizer:
        return _fast(self._vocab, self._merges, (eos, self.eos))

    def restore(self, state: str) -> None:
        came = state_of(state)
        try:
            self._know(came["vocab"], [(left, right) for left, right in came["merges"]])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DamagedFile(f"this is not the state of tokenizer=bpe ({type(error).__name__}: {error})") from error


@tokenizers.register("symbols")
class Symbols:
    """One id per character of a small alphabet, id = place in it; any other byte is two ids of 32 more: its halves.

    For tasks that are made of symbols (source=mqar): a vocabulary of 64 + 32 + 1, and nothing to train.  The default
    alphabet is the dot, the question mark, digits and letters.
    """

    trained = False

    def __init__(
        self,
        *,
        alphabet: Annotated[str, "each character once; the order gives the ids"] = (
            ".?0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
        ),
    ) -> None:
        if len(set(alphabet)) != len(alphabet):
            twice = next(c for i, c in enumerate(alphabet) if c in alphabet[:i])
            raise UserError(f"tokenizer.alphabet: {twice!r} stands in it more than once; expected each character once")
        self.alphabet, self.halves = alphabet, len(alphabet)
        self.eos = len(alphabet) + 32
        self.vocab_size = self.eos + 1
        self._ids = {character: [i] for i, character in enumerate(alphabet)}

    def train(self, texts: Iterable[str]) -> None:
        """There is nothing to learn."""

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
        """The upper half of a byte counts for nothing, the lower for one."""
        return np.array([*(len(c.encode()) for c in self.alphabet), *[0] * 16, *[1] * 16, 0], dtype=np.int64)

    def state(self) -> str:
        return json.dumps({"tokenizer": "symbols", "alphabet": self.alphabet})

    def restore(self, state: str) -> None:
        if state_of(state) != {"tokenizer": "symbols", "alphabet": self.alphabet}:
            raise DamagedFile("this is not the state of tokenizer=symbols with this alphabet")
