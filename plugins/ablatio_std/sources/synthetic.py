"""Synthetic tasks: each text contains all that is needed for its answers, and `?` marks where an answer is asked for.

Use them with tokenizer=symbols (one id per character) and objective=answers (loss on the answers only); with
data.rows=documents each row is one text.  Dots pad a text.
"""

import hashlib
import string
from collections.abc import Iterator
from typing import Annotated

import numpy as np

from ablatio import Range, rule, sources
from ablatio.data.types import Document
from ablatio.errors import UserError

SYMBOLS = string.digits + string.ascii_uppercase + string.ascii_lowercase
FILLER, ASKED = ".", "?"
KEYS, VALUES = SYMBOLS[:31], SYMBOLS[31:]
_AT_ONCE = 1024


@sources.register("mqar")
class AssociativeRecall:
    """Multi-query associative recall: k1 v1 k2 v2 ..., then `? k v` for each key in a new order, with dots in between.

    Keys of a text are distinct and come from 31 symbols, values from 31 others.  The answer follows from the key alone;
    `?` only marks that the token after the key has the loss.  A text has `length` - 1 characters and, with the token
    that opens a document, fills a row of `length` tokens.  Source: Arora et al. 2023, arXiv:2312.04927.
    """

    def __init__(
        self,
        *,
        length: Annotated[int, Range(8, 65536), "tokens of a text, with the token that opens it"] = 32,
        pairs: Annotated[int, Range(1, 31), "pairs of key and value in a text"] = 4,
        texts: Annotated[int, Range(100, 10_000_000), "number of texts in both splits together"] = 80_000,
        seed: Annotated[int, Range(0, 2**31), "seed of the texts"] = 0,
    ) -> None:
        if length < 5 * pairs + 1:
            raise UserError(
                f"source.length={length} is too short: {pairs} pairs and as many questions need {5 * pairs + 1} tokens"
            )
        self.length, self.pairs, self.texts, self.seed = length, pairs, texts, seed

    def documents(self) -> Iterator[Document]:
        for start in range(0, self.texts, _AT_ONCE):
            rng = np.random.Generator(np.random.PCG64([self.seed, start]))
            for i, text in enumerate(self._texts(rng)[: self.texts - start]):
                yield Document(text, str(start + i))

    def _texts(self, rng: np.random.Generator) -> list[str]:
        n, p = _AT_ONCE, self.pairs
        keys = rng.random((n, len(KEYS))).argsort(1)[:, :p]
        values = rng.integers(len(VALUES), size=(n, p))
        free = self.length - 1 - 5 * p
        # Random places for p queries among the free characters; a query counts as one place here and takes three.
        asked = np.sort(rng.random((n, free + p)).argsort(1)[:, :p], axis=1)
        order = rng.random((n, p)).argsort(1)
        table = np.array(list(KEYS + VALUES + FILLER + ASKED))
        codes = np.full((n, self.length - 1), len(KEYS + VALUES))
        codes[:, : 2 * p : 2], codes[:, 1 : 2 * p : 2] = keys, values + len(KEYS)
        places = 2 * p + asked + 2 * np.arange(p)  # (n, p): indices of the question marks
        rows = np.arange(n)[:, None]
        codes[rows, places] = len(table) - 1
        codes[rows, places + 1] = np.take_along_axis(keys, order, 1)
        codes[rows, places + 2] = np.take_along_axis(values, order, 1) + len(KEYS)
        return ["".join(row) for row in table[codes]]

    def fingerprint(self) -> str:
        knobs = (self.length, self.pairs, self.texts, self.seed)
        return hashlib.sha256(f"mqar-1 {knobs}".encode()).hexdigest()


rule(
    when="source.name == 'mqar' and source.length < 5 * source.pairs + 1",
    why="{source.pairs} pairs and as many questions need {5 * source.pairs + 1} tokens; source.length={source.length}",
    fix="source.length={5 * source.pairs + 1}",
)
