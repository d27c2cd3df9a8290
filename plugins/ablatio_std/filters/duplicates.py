"""Filters of repeated text: sentences, whole documents, and text that is held out."""

from collections.abc import Iterable
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from ablatio import Fraction, Range, filters
from ablatio.data.filters import Verdict

from ._common import given_digest, given_texts, hash64, hashes, mixed, ngrams, sentences, words

Signature = NDArray[np.uint64]


@filters.register("dedup_sentence", paper="arXiv:1910.10683")
class DedupSentence:
    """Removes spans of `span` consecutive sentences that occurred before, in this or an earlier document (C4).

    The first occurrence stays.  Sentences are compared without case, punctuation and spaces.
    """

    changes_text, order_independent = True, False

    def __init__(
        self,
        *,
        span: Annotated[int, Range(1, 100), "sentences of a span; C4 takes 3"] = 3,
        words: Annotated[int, Range(0, 10**6), "fewest words of a span that counts as repeated"] = 0,
    ) -> None:
        self.span, self.words, self.seen = span, words, set[int]()

    def measure(self, text: str) -> list[list[int]]:
        """[length in characters, hash, number of words] of each sentence; the hash of one without words is 0."""
        found = []
        for sentence in sentences(text):
            bare = words(sentence)
            found.append([len(sentence), hash64(" ".join(bare)) if bare else 0, len(bare)])
        return found

    def judge(self, text: str, measure: list[list[int]]) -> Verdict:
        units = [i for i, (_, digest, _) in enumerate(measure) if digest]  # sentences with words
        repeated = set[int]()
        for first in range(len(units) - self.span + 1):
            span = units[first : first + self.span]
            key = hash64(" ".join(str(measure[i][1]) for i in span))
            if key in self.seen and sum(measure[i][2] for i in span) >= self.words:
                repeated.update(span)
            self.seen.add(key)
        if not repeated:
            return Verdict(text)
        kept, at = [], 0
        for i, (length, _, _) in enumerate(measure):
            kept += [] if i in repeated else [text[at : at + length]]
            at += length
        return Verdict("".join(kept), "all sentences are repeated", {"repeated sentences": len(repeated)})


@filters.register("dedup_document", paper="arXiv:2107.06499")
class DedupDocument:
    """Drops documents that repeat an earlier one: the first of each group stays.

    exact: the same words.  minhash: signatures of `bands` x `rows` minimal hashes of the word `ngram`s; two documents
    are compared if all rows of a band agree, which happens with probability 1 - (1 - J^rows)^bands at Jaccard
    similarity J (LSH), and the later one is dropped if the signatures agree in at least the share `similarity`.
    The defaults of bands, rows and ngram are FineWeb's (arXiv:2406.17557).
    """

    order_independent = False

    def __init__(
        self,
        *,
        by: Annotated[Literal["minhash", "exact"], "how documents are compared"] = "minhash",
        ngram: Annotated[int, Range(1, 100), "words of an n-gram"] = 5,
        bands: Annotated[int, Range(1, 1000), "bands of the signature"] = 14,
        rows: Annotated[int, Range(1, 1000), "minimal hashes per band"] = 8,
        similarity: Annotated[float, Fraction, "smallest estimated Jaccard similarity of a duplicate"] = 0.7,
    ) -> None:
        self.by, self.ngram, self.bands, self.rows, self.similarity = by, ngram, bands, rows, similarity
        self.signatures: list[Signature] = []
        self.index: dict[tuple[int, bytes], list[int]] = {}
        self.exact = set[int]()

    def measure(self, text: str) -> Signature:
        """MinHash signature (bands * rows,), or the hash of the words (1,); empty for a text without words."""
        found = words(text)
        if not found or self.by == "exact":
            return hashes([" ".join(found)] if found else [])
        return minhash(hashes(set(ngrams(found, self.ngram))), self.bands * self.rows)

    def judge(self, text: str, measure: Signature) -> Verdict:
        if not len(measure):
            return Verdict(text)
        if self.by == "exact":
            known = int(measure[0]) in self.exact
            self.exact.add(int(measure[0]))
            return Verdict(None, "exact duplicate") if known else Verdict(text)
        keys = [(band, measure[band * self.rows : (band + 1) * self.rows].tobytes()) for band in range(self.bands)]
        # Candidates by bands, and then the whole signatures: a band alone agrees by chance in a large corpus.
        near = sorted({number for key in keys for number in self.index.get(key, ())})
        if any(float((self.signatures[n] == measure).mean()) >= self.similarity for n in near):
            return Verdict(None, "near duplicate")
        for key in keys:
            self.index.setdefault(key, []).append(len(self.signatures))
        # Only of documents that stay: a chain of near copies is compared with its first, not with its last.
        self.signatures.append(measure)
        return Verdict(text)


def minhash(items: Signature, count: int) -> Signature:
    """Minimum of each of `count` hash functions over hashed items: (n,) -> (count,).

    Two signatures agree in a place with a probability equal to the Jaccard similarity of the sets (Broder 1997,
    doi:10.1109/SEQUEN.1997.666900).
    """
    return np.asarray([mixed(items, i).min() for i in range(count)], dtype=np.uint64)


@filters.register("dedup_dataset", paper="arXiv:2005.14165")
class DedupDataset:
    """Drops training documents that share n-grams of words with held-out text: contamination.

    A document is dropped if more than the share `most` of its n-grams occurs in the held-out documents or in `against`,
    such as the text of a benchmark.  GPT-3 (appendix C) takes 13 words.  A held-out text with fewer words is one n-gram
    that counts only as a whole document.  In a mixture, the held-out text of every source counts.
    """

    def __init__(
        self,
        *,
        ngram: Annotated[int, Range(1, 1000), "words of an n-gram"] = 13,
        most: Annotated[float, Fraction, "largest share of a document's n-grams that may be held out"] = 0.0,
        against: Annotated[str, "text file or folder of further held-out text"] = "",
    ) -> None:
        self.ngram, self.most, self.against = ngram, most, against
        self.held_out: NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)

    def avoid(self, texts: Iterable[str]) -> None:
        further = given_texts(self.against, "dedup_dataset.against") if self.against else []
        found = [self._grams(text) for held in (texts, further) for text in held]
        self.held_out = np.unique(np.concatenate(found)) if found else self.held_out

    def _grams(self, text: str) -> NDArray[np.uint64]:
        return hashes(ngrams(words(text), self.ngram))

    def measure(self, text: str) -> float:
        """Share of the document's n-grams that are held out."""
        # Different n-grams: a phrase that a document repeats counts once.
        found = np.unique(self._grams(text))
        return float(np.isin(found, self.held_out).mean()) if len(found) else 0.0

    def judge(self, text: str, measure: float) -> Verdict:
        return Verdict(None, "contains held-out text") if measure > self.most else Verdict(text)

    def fingerprint(self) -> str:
        return given_digest(self.against, "dedup_dataset.against")
