"""Tasks that are made: each text holds all that its answers follow from, and `?` stands where one is asked for.

Use them with tokenizer=symbols (one id a character) and objective=answers (the loss stands on the answers alone); with
data.rows=documents each row is one text.  A dot fills what is left of a text.
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
    """Multi-query associative recall: k1 v1 k2 v2 ..., later `? k v` for each of the keys in a new order, dots between.

    Source: Arora et al. 2023, arXiv:2312.04927.  Keys of a text differ; they come from 31 symbols and values from 31
    others.  What tells the answer is its key alone: the `?` only says that the token after the key is scored.  A text
    has `length` - 1 characters, so that it fills a row of `length` tokens with the sign that opens it.
    """

    def __init__(
        self,
        *,
        length: Annotated[int, Range(8, 65536), "tokens of a text, with the one that opens it"] = 32,
        pairs: Annotated[int, Range(1, 31), "of key and value in each text"] = 4,
        texts: Annotated[int, Range(100, 10_000_000), "of both splits together"] = 80_000,
        seed: Annotated[int, Range(0, 2**31), "of the texts"] = 0,
    ) -> None:
        if length < 5 * pairs + 1:
            raise UserError(f"source.length: {pairs} pairs and as many questions take {5 * pairs + 1}; came {length}")
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
        asked = np.sort(rng.random((n, free + p)).argsort(1)[:, :p], axis=1)  # each query stands for one place
        order = rng.random((n, p)).argsort(1)
        table = np.array(list(KEYS + VALUES + FILLER + ASKED))
        codes = np.full((n, self.length - 1), len(KEYS + VALUES))
        codes[:, : 2 * p : 2], codes[:, 1 : 2 * p : 2] = keys, values + len(KEYS)
        places = 2 * p + asked + 2 * np.arange(p)  # (n, p) of the question marks: those before take two more each
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
    why="{source.pairs} pairs and as many questions take {5 * source.pairs + 1} tokens; source.length={source.length}",
    fix="source.length={5 * source.pairs + 1}",
)
