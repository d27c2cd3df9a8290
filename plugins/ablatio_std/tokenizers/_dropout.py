"""BPE-dropout (Provilkov et al. 2019, arXiv:1910.13267): merges that are left out at random."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from itertools import pairwise

import tokenizers as hf

from ablatio_std.tokenizers._chunks import pieces_of

VARIANTS = 1024  # segmentations that are drawn for each different word


class MergeDropout:
    """Encode a text with random merges: in each step each possible merge is left out with the probability p.

    As in the authors' code (https://github.com/rsennrich/subword-nmt), the best merge of a step is made wherever it was
    not left out. The tokenizers library's own dropout leaves out less, since merges that have become void bring back
    those that were left out, and it cannot be seeded.

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
                ids += self._variant(word, draw.randrange(VARIANTS))
        return ids

    def _variant(self, word: str, number: int) -> list[int]:
        key = word, number
        if key not in self._drawn:
            # Memory is bounded; what is dropped is drawn again, with the same result.
            if len(self._drawn) > 1 << 20:
                self._drawn.clear()
            self._drawn[key] = [self.vocab[token] for token in self._merged(word, random.Random(f"{number}/{word}"))]
        return self._drawn[key]

    def _merged(self, word: str, draw: random.Random) -> list[str]:
        tokens = [symbol for character in word for symbol in self._symbols(character)]
        while True:
            found = [(self.rank[pair], i) for i, pair in enumerate(pairwise(tokens)) if pair in self.rank]
            # Drawn anew in each step, as in the paper: a merge left out once may be made later.
            kept = [pair for pair in found if draw.random() >= self.p]
            if not kept:
                return tokens
            best, at, merged = min(kept)[0], 0, list[str]()
            for rank, i in kept:
                if rank == best and i >= at:  # of overlapping pairs the first is merged
                    merged += [*tokens[at:i], tokens[i] + tokens[i + 1]]
                    at = i + 2
            tokens = merged + tokens[at:]

    def _symbols(self, character: str) -> list[str]:
        """The character, or its bytes if it has no id."""
        if character in self.vocab:
            return [character]
        return [f"<0x{byte:02X}>" for byte in character.encode()]
