"""Overlap of evaluation items with the training text."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated

from ablatio import Range, metrics
from ablatio.data.items import Item, Request, Response, Texts

WORD = re.compile(r"\w+")


@metrics.register("contamination", paper="arXiv:2005.14165")
class Contamination:
    """Mean share of an item's word n-grams that occur in the training text of the run's source.

    Words are compared in lower case, without punctuation.  An item with fewer than n words has one n-gram, the whole.
    contaminated  share of items of which more than `threshold` of the n-grams occur
    """

    labels, scores, better = (), ("contamination", "contaminated"), "lower"

    def __init__(
        self,
        texts: Texts,
        *,
        n: Annotated[int, Range(1, 1000), "words of an n-gram; GPT-3's report uses 13"] = 13,
        threshold: Annotated[float, Range(0, 1, open_high=True), "share above which an item is contaminated"] = 0.5,
    ) -> None:
        self.texts, self.n, self.threshold = texts, n, threshold
        self.wanted: dict[int, set[tuple[str, ...]]] = {}  # n-grams of the items that were asked, by length
        self.found: set[tuple[str, ...]] | None = None

    def requests(self, item: Item) -> list[Request]:
        """Nothing is asked of the model; the item's n-grams are kept, so that one pass over the text finds all."""
        for gram in self._grams(item):
            self.wanted.setdefault(len(gram), set()).add(gram)
        self.found = None
        return []

    def score(self, item: Item, responses: Sequence[Response]) -> dict[str, float]:
        if self.found is None:
            self.found = self._in_training_text()
        grams = self._grams(item)
        share = sum(gram in self.found for gram in grams) / len(grams) if grams else 0.0
        return {"contamination": share, "contaminated": float(share > self.threshold)}

    def _grams(self, item: Item) -> list[tuple[str, ...]]:
        words = _words(f"{item.question or item.prompt} {item.correct or ''}")
        # An item shorter than n words is one n-gram; without it short items would all be clean.
        return list(_windows(words, min(self.n, len(words)))) if words else []

    def _in_training_text(self) -> set[tuple[str, ...]]:
        found: set[tuple[str, ...]] = set()
        for text in self.texts("train"):
            words = _words(text)
            for n, wanted in self.wanted.items():
                # Only n-grams of the items are kept, so that memory does not grow with the training text.
                found |= wanted.intersection(_windows(words, n))
        return found


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _windows(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(n)), strict=False)
