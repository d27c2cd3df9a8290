"""SuperBPE: byte-pair encoding whose last merges may join words."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import tokenizers as hf
from numpy.typing import NDArray

from ablatio import Range, tokenizers
from ablatio.data.types import Ids, token_type
from ablatio_std.tokenizers._common import BYTE_OF
from ablatio_std.tokenizers._spelling import Merges, Spelling
from ablatio_std.tokenizers.trained import BPE

_SAMPLE = 1 << 20  # characters from which merges of words are counted
_AT_ONCE = 16  # texts that are encoded at a time
_LINE = hf.Regex(r"[^\n]*\n+|[^\n]+")
_SPACE = next(character for character, byte in BYTE_OF.items() if byte == ord(" "))
_BORDER = -1  # between two lines


class Superwords(Spelling):
    """Text is split into lines alone: merges learned within words stay there, as no word begins before its space."""

    def applied(self, model: hf.Tokenizer) -> hf.Tokenizer:
        as_bytes = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        model.pre_tokenizer = hf.pre_tokenizers.Sequence([hf.pre_tokenizers.Split(_LINE, "isolated"), as_bytes])
        return model

    def settings(self) -> dict[str, Any]:
        return {"superwords": True}


@tokenizers.register("superbpe", paper="arXiv:2503.13423")
class SuperBPE(BPE):
    """SuperBPE (Liu et al. 2025): a BPE on bytes, of which a share 1 - transition of the merges may join words.

    The first ids are those of tokenizer=bpe.  Then pairs of adjacent tokens of a line are merged wherever they stand,
    the most frequent first, into tokens of at most `words` words.  Merges of words are counted in the first 2^20
    characters of the training text.  No token crosses a line end.
    """

    def __init__(
        self,
        *,
        vocab_size: Annotated[int, Range(257, 1_000_000), "number of ids, with 256 bytes and eos"] = 2048,
        transition: Annotated[float, Range(0, 1), "share of the merges that are learned within words"] = 0.9,
        words: Annotated[int, Range(2, 64), "words of a token, at most"] = 4,
    ) -> None:
        self.transition, self.words = transition, words
        super().__init__(vocab_size=vocab_size)
        self.spelling = Superwords()

    def train(self, texts: Iterable[str]) -> None:
        held: list[str] = []
        within = round(self.transition * (self.vocab_size - 257))
        first = BPE(vocab_size=257 + within)
        first.train(_watched(texts, held))
        vocab, merges = dict(first._vocab), [(a, b) for a, b in first._merges]
        ids = [first.encode(line) for line in (text.splitlines(keepends=True) for text in held) if line]
        tokens = np.concatenate([np.append(line, _BORDER) for text in ids for line in text] or [np.array([_BORDER])])
        size = len(vocab) + self.vocab_size - 257 - within  # a small corpus may have filled fewer ids
        merges += joined(vocab, tokens.astype(np.int64), size, self.words)
        self._set_vocabulary(vocab, merges)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        dtype, found = token_type(self.vocab_size), list[Ids]()
        for start in range(0, len(texts), _AT_ONCE):
            # Whole texts: a piece that ends within a line would end a token that joins words.
            group = self._model.encode_batch_fast(list(texts[start : start + _AT_ONCE]), add_special_tokens=False)
            found += [np.array(encoded.ids, dtype=dtype) for encoded in group]
        return found


def _watched(texts: Iterable[str], held: list[str]) -> Iterator[str]:
    """The texts, of which the first `_SAMPLE` characters are kept in `held`: a stream can be read once."""
    size = 0
    for text in texts:
        if size < _SAMPLE:
            held.append(text[: _SAMPLE - size])
            size += len(text)
        yield text


def joined(vocab: dict[str, int], tokens: NDArray[np.int64], size: int, words: int) -> Merges:
    """Merge the most frequent pair of neighboring tokens until `vocab`, which is extended, has `size` ids.

    tokens: ids with `_BORDER` between lines
    """
    names, merges = sorted(vocab, key=vocab.__getitem__), list[tuple[str, str]]()
    done = set[tuple[int, int]]()
    while len(names) < size:
        inside = (tokens[:-1] != _BORDER) & (tokens[1:] != _BORDER)
        pairs, frequency = np.unique(np.stack([tokens[:-1], tokens[1:]])[:, inside], axis=1, return_counts=True)
        best = next(
            (
                (int(a), int(b))
                # Ids break ties, so that the vocabulary is the same on every machine.
                for _, a, b in sorted(zip(-frequency, *pairs, strict=True))
                if (a, b) not in done and _words(names[a] + names[b]) <= words
            ),
            None,
        )
        if best is None:
            break
        done.add(best)
        left, right = best
        name = names[left] + names[right]
        if name not in vocab:
            vocab[name] = len(names)
            names.append(name)
        merges.append((names[left], names[right]))
        tokens = _merged(tokens, left, right, vocab[name])
    return merges


def _words(token: str) -> int:
    """Number of words that a token is part of: each space opens one."""
    return token.count(_SPACE) + (not token.startswith(_SPACE))


def _merged(tokens: NDArray[np.int64], left: int, right: int, new: int) -> NDArray[np.int64]:
    """Replace each `left right` by `new`, from the left where they overlap."""
    places = np.flatnonzero((tokens[:-1] == left) & (tokens[1:] == right))
    if left == right and len(places):  # of a run of equal tokens, every second place
        runs = np.flatnonzero(np.diff(places, prepend=places[0] - 2) > 1)
        within = np.arange(len(places)) - np.repeat(runs, np.diff(np.append(runs, len(places))))
        places = places[within % 2 == 0]
    tokens = tokens.copy()
    tokens[places] = new
    return np.delete(tokens, places + 1)
