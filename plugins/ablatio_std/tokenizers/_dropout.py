"""BPE-dropout (Provilkov et al. 2019, arXiv:1910.13267): merges that are left out at random."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from itertools import pairwise

import tokenizers as hf

from ablatio_std.tokenizers._learned import pieces_of

VARIANTS = 64  # 6 bits; segmentations that are drawn for each different word


class MergeDropout:
    """Encode a text with random merges: in each step each possible merge is left out with the probability p.

    Where a word occurs, one of its `VARIANTS` segmentations is taken. Both draws follow from the text alone, so a text
    has the same ids in every process.
    """

    def __init__(self, model: hf.Tokenizer, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], p: float):
        self.model, self.vocab, self.p = model, vocab, p
        self.rank = {pair: i for i, pair in enumerate(merges)}
        self._drawn: dict[tuple[str, int], list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        """Return the ids of a text."""
        draw = random.Random(hashlib.sha256(text.encode()).digest())
        ids: list[int] = []
        for piece in pieces_of(text):
            written = self.model.normalizer.normalize_str(piece) if self.model.normalizer else piece
            for word, _ in self.model.pre_tokenizer.pre_tokenize_str(written):
                ids += self._variant(word, draw.getrandbits(6))
        return ids

    def _variant(self, word: str, number: int) -> list[int]:
        key = word, number
        if key not in self._drawn:
            if len(self._drawn) > 1 << 20:
                self._drawn.clear()
            self._drawn[key] = [self.vocab[token] for token in self._merged(word, random.Random(f"{number}/{word}"))]
        return self._drawn[key]

    def _merged(self, word: str, draw: random.Random) -> list[str]:
        tokens = [symbol for character in word for symbol in self._symbols(character)]
        while True:
            found = [(self.rank[pair], i) for i, pair in enumerate(pairwise(tokens)) if pair in self.rank]
            kept = [pair for pair in found if draw.random() >= self.p]
            if not kept:
                return tokens
            _, i = min(kept)
            tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]

    def _symbols(self, character: str) -> list[str]:
        """The character, or its bytes if it has no id."""
        if character in self.vocab:
            return [character]
        return [f"<0x{byte:02X}>" for byte in character.encode()]
