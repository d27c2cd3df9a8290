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
            needed = 5 * pairs + 1
            raise UserError(
                f"source.length={length} is too short: {pairs} pairs and as many questions need {needed} tokens\n"
                f"    try: source.length={needed}"
            )
        self.length, self.pairs, self.texts, self.seed = length, pairs, texts, seed

    def documents(self) -> Iterator[Document]:
        for start in range(0, self.texts, _AT_ONCE):
            rng = np.random.Generator(np.random.PCG64([self.seed, start]))
            for i, text in enumerate(self._texts(rng)[: self.texts - start]):
                yield Document(text, str(start + i))

    def _texts(self, rng: np.random.Generator) -> list[str]:
        n, p = _AT_ONCE, self.pairs
        # Distinct keys of all texts at once: the order of random numbers is a random permutation.
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


@sources.register("arithmetic")
class Arithmetic:
    """Plain sums a+b=c in decimal digits, written `07+12?019`: `?` stands for the equals sign and asks for the sum.

    All numbers have leading zeros, the summands `digits` digits and the sum one more, so an answer is the digits + 1
    tokens after `?`: use tokenizer=symbols with tokenizer.alphabet=".?+0123456789", and objective=answers with
    objective.skip=0 and objective.count=3 (for two digits).  A share `held_out` of the pairs {a, b}, chosen by a hash,
    occurs in the validation split alone, in either order.  Source: generated.
    """

    def __init__(
        self,
        *,
        digits: Annotated[int, Range(1, 15), "digits of each summand"] = 2,
        sums: Annotated[int, Range(1, 10_000), "sums in a text"] = 3,
        reverse: Annotated[bool, "digits of the sum from the last to the first, as carries are computed"] = False,
        held_out: Annotated[float, Range(0, 1, open_low=True, open_high=True), "share of the pairs held out"] = 0.1,
        texts: Annotated[int, Range(100, 10_000_000), "number of texts in both splits together"] = 40_000,
        seed: Annotated[int, Range(0, 2**31), "seed of the texts"] = 0,
    ) -> None:
        self.digits, self.sums, self.reverse, self.held_out, self.texts, self.seed = (
            digits, sums, reverse, held_out, texts, seed,
        )  # fmt: skip

    def documents(self) -> Iterator[Document]:
        kept = {"train": self.texts - self.texts // 20, "validation": self.texts // 20}
        number = 0
        for split, count in kept.items():
            rng = np.random.Generator(np.random.PCG64([self.seed, number]))
            for _ in range(count):
                pairs = [self._pair(rng, held_out=split == "validation") for _ in range(self.sums)]
                yield Document("".join(self._written(a, b) for a, b in pairs), str(number), split)  # type: ignore[arg-type]
                number += 1

    def _pair(self, rng: np.random.Generator, held_out: bool) -> tuple[int, int]:
        """A random pair of summands that belongs to this split."""
        # Rejection keeps both splits uniform over their pairs.
        for _ in range(100_000):
            a, b = map(int, rng.integers(10**self.digits, size=2))
            if self._is_held_out(a, b) == held_out:
                return a, b
        raise UserError(
            f"source.held_out={self.held_out}: the {10**self.digits} numbers have no pair for one of the splits\n"
            "    try: source.held_out=0.2"
        )

    def _is_held_out(self, a: int, b: int) -> bool:
        digest = hashlib.sha256(f"{self.seed}:{min(a, b)}+{max(a, b)}".encode()).digest()
        # Sorted summands: a + b in training would tell b + a.
        return int.from_bytes(digest[:8], "big") < self.held_out * 2.0**64

    def _written(self, a: int, b: int) -> str:
        total = f"{a + b:0{self.digits + 1}d}"
        return f"{a:0{self.digits}d}+{b:0{self.digits}d}{ASKED}{total[::-1] if self.reverse else total}"

    def fingerprint(self) -> str:
        knobs = (self.digits, self.sums, self.reverse, self.held_out, self.texts, self.seed)
        return hashlib.sha256(f"arithmetic-1 {knobs}".encode()).hexdigest()
