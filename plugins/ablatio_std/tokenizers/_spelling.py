"""How a byte-pair encoding writes text before merging: its words, its smallest tokens, and normalization."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import tokenizers as hf

from ablatio_std.tokenizers._common import BYTE_OF
from ablatio_std.tokenizers._learned import byte_words, bytes_of

ALPHABET = {character: i for i, character in enumerate(sorted(BYTE_OF))}
SPELLED = {f"<0x{byte:02X}>": byte for byte in range(256)}  # SentencePiece's names of bytes
COVERAGE = 0.9995  # share of the text whose characters have ids, as in SentencePiece
_SAMPLE = 1 << 24  # characters from which the alphabet is counted
# The words of GPT-2 (Radford et al. 2019), for text that is not written in bytes.
_WORDS = hf.Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

Merges = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Spelling:
    """Settings of a BPE beside its size; see its docstring."""

    digits: bool = False
    byte_fallback: bool = False
    normalize: str = "none"

    @property
    def alphabet(self) -> dict[str, int]:
        """Tokens before training: the 256 bytes."""
        return SPELLED if self.byte_fallback else ALPHABET

    def settings(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        chosen = {"digits": self.digits, "byte_fallback": self.byte_fallback}
        found: dict[str, Any] = {name: True for name, value in chosen.items() if value}
        return found | ({"normalize": self.normalize} if self.normalize != "none" else {})

    def applied(self, model: hf.Tokenizer) -> hf.Tokenizer:
        """Set the model's words and normalization, and return it."""
        words = hf.pre_tokenizers.Split(_WORDS, "isolated") if self.byte_fallback else byte_words()
        if self.digits:
            words = hf.pre_tokenizers.Sequence([hf.pre_tokenizers.Digits(individual_digits=True), words])
        model.pre_tokenizer = words
        if self.normalize == "nfkc":
            model.normalizer = hf.normalizers.NFKC()
        return model

    def decoder(self) -> Any:
        """The library's inverse."""
        if self.byte_fallback:
            return hf.decoders.Sequence([hf.decoders.ByteFallback(), hf.decoders.Fuse()])
        return hf.decoders.ByteLevel()

    def bytes_of(self, token: str) -> bytes:
        """Bytes of a token."""
        if not self.byte_fallback:
            return bytes_of(token)
        return bytes([SPELLED[token]]) if token in SPELLED else token.encode()

    def completed(self, vocab: dict[str, int], merges: Merges) -> tuple[dict[str, int], Merges]:
        """Vocabulary and merges as trained, with the bytes in front of the characters.

        A merge that would make the name of a byte, from a text that holds such names, is left out with those on it.
        """
        if not self.byte_fallback:
            return vocab, merges
        tokens = [token for token in sorted(vocab, key=vocab.__getitem__) if not any(n in token for n in SPELLED)]
        known = set(tokens)
        kept = [(a, b) for a, b in merges if {a, b, a + b} <= known]
        return {token: i for i, token in enumerate((*SPELLED, *tokens))}, kept


BYTES = Spelling()


def without_rare(spelling: Spelling, pieces: Iterable[str], most: int) -> tuple[list[str], Iterator[str]]:
    """Return (the most frequent characters, at most `most`; the texts between the others).

    The characters are counted in the first `_SAMPLE` characters of the text, which are held in memory.
    """
    stream, held, size = iter(pieces), list[str](), 0
    normalizer = spelling.applied(hf.Tokenizer(hf.models.BPE())).normalizer
    # The characters have to be known before the texts are read for merges, and a stream can be read once.
    while size < _SAMPLE and (piece := next(stream, None)) is not None:
        held.append(piece)
        size += len(piece)
    counts = Counter[str]()
    for piece in held:
        counts.update(normalizer.normalize_str(piece) if normalizer else piece)
    kept, covered, total = list[str](), 0, sum(counts.values())
    # The character breaks ties, so that the vocabulary is the same on every machine.
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]:
        if covered >= COVERAGE * total:
            break
        kept.append(character)
        covered += count
    rare = re.compile(f"[^{re.escape(''.join(kept))}]") if kept else re.compile(".", re.DOTALL)

    def common() -> Iterator[str]:
        for piece in itertools.chain(held, stream):
            text = normalizer.normalize_str(piece) if normalizer else piece
            yield from filter(None, rare.split(text))

    return sorted(kept), common()
