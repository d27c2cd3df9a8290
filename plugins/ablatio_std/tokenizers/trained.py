"""Tokenizers: bytes, byte-pair encoding, symbols.  At their defaults all are lossless for any text.

No text is encoded to the id `eos`.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import tokenizers as hf
from numpy.typing import NDArray

from ablatio import Range, tokenizers
from ablatio.data.types import Ids, token_type
from ablatio.errors import DamagedFile, UserError
from ablatio_std.tokenizers._chunks import pieces_of
from ablatio_std.tokenizers._common import BYTE_OF, state_of, text_of
from ablatio_std.tokenizers._dropout import MergeDropout
from ablatio_std.tokenizers._learned import Learned, opening
from ablatio_std.tokenizers._spelling import BYTES, Spelling, without_rare

_BYTES = [*(bytes([byte]) for byte in range(256)), b""]

Merges = Sequence[tuple[str, str]]


def _bpe(vocab: dict[str, int], merges: Merges = (), spelling: Spelling = BYTES) -> hf.Tokenizer:
    model = hf.Tokenizer(hf.models.BPE(vocab, list(merges), byte_fallback=spelling.byte_fallback))
    return spelling.applied(model)


def _fast(vocab: dict[str, int], merges: Merges, eos: tuple[str, int], spelling: Spelling = BYTES) -> hf.Tokenizer:
    """BPE that puts the end-of-document token in front of each text, as in training."""
    model = _bpe(vocab | dict([eos]), merges, spelling)
    model.decoder = spelling.decoder()
    return opening(model, eos[0])


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


class MergedBytes(Learned):
    """Base of byte-pair encodings: vocabulary and merges, how they are trained, encoding, state."""

    def __init__(self, vocab_size: int, *, spelling: Spelling = BYTES, dropout: float = 0.0) -> None:
        super().__init__(vocab_size)
        self.spelling, self.dropout = spelling, dropout
        self._set_vocabulary(spelling.alphabet, [])

    def _set_vocabulary(self, vocab: dict[str, int], merges: Merges) -> None:
        """Set vocabulary and merges.  Raises DamagedFile, KeyError, TypeError or ValueError if they are not consistent.

        The library's model is built at the first text, since most runs read their tokens from the cache.
        """
        tokens = sorted(vocab, key=vocab.__getitem__)
        if [vocab[token] for token in tokens] != list(range(len(tokens))) or not 256 <= len(tokens) < self.vocab_size:
            raise DamagedFile(f"a BPE of {len(tokens)} ids does not fit tokenizer.vocab_size={self.vocab_size}")
        if not self.spelling.byte_fallback and (unknown := set().union(*tokens) - BYTE_OF.keys()):
            raise ValueError(f"{min(unknown)!r} does not stand for a byte")
        for left, right in merges:
            if not (left in vocab and right in vocab and left + right in vocab):
                raise ValueError(f"the merge of {left!r} and {right!r} needs a token that is not in the vocabulary")
        self._vocab, self._merges = {token: i for i, token in enumerate(tokens)}, merges
        self._table = [self.spelling.bytes_of(token) for token in tokens]
        self._table += [b""] * (self.vocab_size - len(tokens))
        self._state, self._made = "", None
        self._dropped: MergeDropout | None = None

    def _build(self) -> hf.Tokenizer:
        return _bpe(self._vocab, self._merges, self.spelling)

    def train(self, texts: Iterable[str]) -> None:
        pieces = (piece for text in texts for piece in pieces_of(text))
        alphabet, base = sorted(BYTE_OF), 0
        if self.spelling.byte_fallback:
            # Bytes take the first 256 ids; the library trains the others and knows nothing of bytes.
            base = 256
            # Half of the ids at most for characters, so that some are left for merges.
            alphabet, pieces = without_rare(self.spelling, pieces, (self.vocab_size - 1 - base) // 2)
        trainer = hf.trainers.BpeTrainer(  # no special token, as the library would look for its name in the text
            vocab_size=self.vocab_size - 1 - base, initial_alphabet=alphabet, show_progress=False
        )
        model = self.spelling.applied(hf.Tokenizer(hf.models.BPE()))
        model.train_from_iterator(pieces, trainer)
        trained = json.loads(model.to_str())["model"]
        self._set_vocabulary(*self.spelling.completed(trained["vocab"], [(a, b) for a, b in trained["merges"]]))

    def encode_train(self, texts: Sequence[str]) -> list[Ids]:
        """Encode training documents: with dropout."""
        if not self.dropout:
            return self.encode(texts)
        self._dropped = self._dropped or MergeDropout(self._model, self._vocab, self._merges, self.dropout)
        dtype = token_type(self.vocab_size)
        return [np.array(self._dropped(text), dtype=dtype) for text in texts]

    def state(self) -> str:
        if not self._state:  # kept, as a run needs it several times
            state = {"tokenizer": "bpe", "vocab": self._vocab, "merges": self._merges, **self._settings()}
            self._state = json.dumps(state, ensure_ascii=False)
        return self._state

    def _settings(self) -> dict[str, Any]:
        """Knobs beside the vocabulary that change the ids, if they differ from their defaults."""
        return self.spelling.settings() | ({"dropout": self.dropout} if self.dropout else {})

    def restore(self, state: str) -> None:
        saved = state_of(state)
        own = self._settings()
        if (kept := {k: v for k, v in saved.items() if k not in ("tokenizer", "vocab", "merges")}) != own:
            raise DamagedFile(f"the saved state has the settings {kept or 'none'}, expected {own or 'none'}")
        try:
            self._set_vocabulary(saved["vocab"], [(left, right) for left, right in saved["merges"]])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DamagedFile(f"the saved state is not that of tokenizer=bpe ({reason})") from error


@tokenizers.register("bpe", paper="arXiv:1508.07909")
class BPE(MergedBytes):
    """Byte-pair encoding (Sennrich et al. 2016), by default on bytes (GPT-2, Radford et al. 2019).

    Starting from 256 bytes, the most frequent pair of adjacent tokens inside words becomes a new id, until there are
    vocab_size - 1 ids; eos is the last id.  If a small corpus has fewer pairs, the remaining ids stay unused.

    byte_fallback  starts from the characters of the text instead (as in LLaMA, arXiv:2302.13971); a character without
                   an id is written as its bytes, with 256 more ids.  It then takes at least 513 ids
    normalize      nfkc loses the difference of compatible characters: the text that comes back is the normalized one,
                   and bits per byte count its bytes
    dropout        BPE-dropout (Provilkov et al. 2019, arXiv:1910.13267): each merge is left out with this probability
                   where a training document is tokenized.  Held-out text and prompts are encoded without it.  The
                   tokens are drawn once, so all epochs see the same
    """

    def __init__(
        self,
        *,
        vocab_size: Annotated[int, Range(257, 1_000_000), "number of ids, with 256 bytes and eos"] = 2048,
        digits: Annotated[bool, "each digit is a token of its own"] = False,
        byte_fallback: Annotated[bool, "tokens are made of characters, and of bytes for rare ones"] = False,
        normalize: Annotated[Literal["none", "nfkc"], "Unicode normal form of all text before it is encoded"] = "none",
        dropout: Annotated[float, Range(0, 1, open_high=True), "share of the merges left out in training text"] = 0.0,
    ) -> None:
        if byte_fallback and vocab_size < 513:
            raise UserError(
                f"tokenizer.vocab_size={vocab_size} is too small for byte_fallback: bytes, characters and eos need at "
                "least 513 ids\n    try: tokenizer.vocab_size=2048"
            )
        super().__init__(vocab_size, spelling=Spelling(digits, byte_fallback, normalize), dropout=dropout)

    def fast(self, eos: str) -> hf.Tokenizer:
        return _fast(self._vocab, self._merges, (eos, self.eos), self.spelling)


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
            raise UserError(f"tokenizer.alphabet contains {twice!r} more than once; expected each character once\n"
                            "    try: ablatio show tokenizer=symbols")  # fmt: skip
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
        # 32 ids and not 256: the vocabulary of a synthetic task stays small.
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
