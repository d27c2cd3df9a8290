"""Generated sources that show in-context learning: linear functions, bursty classes, hidden Markov models.

A text is written in the characters of tokenizer=symbols, one per token, and `?` announces what is to be predicted. The
validation split asks for what no training text tells: other functions, other classes, examples of a hidden concept. So
its accuracy under objective=answers is that of learning in context, and its loss by position falls with the examples.
"""

import hashlib
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from ablatio import Fraction, NonNegative, Range, sources
from ablatio.data.types import Document

from .synthetic import ASKED, SYMBOLS

HELD_OUT = 20  # one text in so many is held out
_TABLE = np.array(list(SYMBOLS + ASKED))
_ASKED = len(SYMBOLS)
_AT_ONCE = 256

Codes = NDArray[np.int64]
Texts = Annotated[int, Range(100, 10_000_000), "number of texts in both splits together"]
Seed = Annotated[int, Range(0, 2**31), "seed of the texts"]


def _documents(name: str, codes: Iterator[tuple[Literal["train", "validation"], Codes]]) -> Iterator[Document]:
    for number, (split, row) in enumerate(codes):
        yield Document("".join(_TABLE[row]), f"{name}:{number}", split)


def _generator(*seeds: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(list(seeds)))


def _split_of(number: int) -> Literal["train", "validation"]:
    # By number: texts are independent draws, so no hash is needed, and the share is exact.
    return "validation" if number % HELD_OUT == HELD_OUT - 1 else "train"


def _fingerprint(name: str, *knobs: object) -> str:
    return hashlib.sha256(f"{name}-1 {knobs}".encode()).hexdigest()


@sources.register("linear_functions")
class LinearFunctions:
    """y_i = w x_i with a new w in each text: x_1 ? y_1 x_2 ? y_2 ...; the function has to be found in context.

    w and x_i are normal, w with the variance 1 / dim, so y_i has the variance 1, to which `noise` adds.  Each number is
    one symbol, one of `levels` equal steps from -2.5 to 2.5.  Score with objective=answers, objective.skip=0: the loss
    of y_i by position falls from that of a guess as dim + 1 examples come by.  In both splits every text has a w of
    its own.  Source: Akyürek et al. 2022, arXiv:2211.15661.
    """

    def __init__(
        self,
        *,
        dim: Annotated[int, Range(1, 32), "numbers in each x"] = 2,
        examples: Annotated[int, Range(2, 4096), "pairs of x and y in a text"] = 12,
        levels: Annotated[int, Range(3, len(SYMBOLS)), "steps that a number is rounded to"] = 21,
        noise: Annotated[float, NonNegative, "standard deviation of what is added to y"] = 0.0,
        texts: Texts = 20_000,
        seed: Seed = 0,
    ) -> None:
        self.dim, self.examples, self.levels, self.noise, self.texts, self.seed = (
            dim, examples, levels, noise, texts, seed,
        )  # fmt: skip

    def _rows(self) -> Iterator[tuple[Literal["train", "validation"], Codes]]:
        for start in range(0, self.texts, _AT_ONCE):
            # A generator for each block: a text depends on its number alone, and not on how many are made.
            rng = _generator(self.seed, start)
            w = rng.standard_normal((_AT_ONCE, self.dim, 1)) / self.dim**0.5
            x = self._rounded(rng.standard_normal((_AT_ONCE, self.examples, self.dim)))
            # From the rounded x, which the model reads: the rest of x would be noise that no model could explain.
            y = self._values(x) @ w + self.noise * rng.standard_normal((_AT_ONCE, self.examples, 1))
            asked = np.full((_AT_ONCE, self.examples, 1), _ASKED)
            rows = np.concatenate([x, asked, self._rounded(y)], 2).reshape(_AT_ONCE, -1)
            for i, row in enumerate(rows[: self.texts - start], start):
                yield _split_of(i), row

    def _rounded(self, x: NDArray[np.float64]) -> Codes:
        step = 5.0 / (self.levels - 1)
        found: Codes = np.clip(np.rint((x + 2.5) / step), 0, self.levels - 1).astype(np.int64)
        return found

    def _values(self, codes: Codes) -> NDArray[np.float64]:
        """The numbers that symbols stand for."""
        found: NDArray[np.float64] = codes * (5.0 / (self.levels - 1)) - 2.5
        return found

    def documents(self) -> Iterator[Document]:
        return _documents("linear_functions", self._rows())

    def fingerprint(self) -> str:
        return _fingerprint("linear_functions", self.dim, self.examples, self.levels, self.noise, self.texts, self.seed)


@sources.register("bursty")
class Bursty:
    """Classes and their labels in context, then an item whose label is asked: item label ... item label ? item label.

    An item is the code of its class, three symbols; in training a class has the same label everywhere, so it can be
    learned in the weights.  In a share `bursty` of the texts the asked class occurs three times in the context of eight
    pairs, and another class as often, so it can be read there, too; the others draw all their classes at random, with
    the frequency rank^-zipf.  Held-out texts have classes that no training text has, two with four items each, and
    labels drawn anew for each text: only the context tells them.  Score with objective=answers, objective.skip=3;
    guessing among the two labels gives 1/2.  A text fills a row of 37 tokens.  Source: Chan et al. 2022,
    arXiv:2205.05055.
    """

    context, width = 8, 3

    def __init__(
        self,
        *,
        bursty: Annotated[float, Fraction, "share of the training texts whose context shows the asked class"] = 0.9,
        classes: Annotated[int, Range(8, 20_000), "classes of the training texts"] = 512,
        labels: Annotated[int, Range(2, len(SYMBOLS)), "different labels"] = 16,
        zipf: Annotated[float, Range(0, 4), "exponent of the frequencies of classes; 0: equal"] = 0.0,
        texts: Texts = 20_000,
        seed: Seed = 0,
    ) -> None:
        self.bursty, self.classes, self.labels, self.zipf, self.texts, self.seed = (
            bursty, classes, labels, zipf, texts, seed,
        )  # fmt: skip

    def _rows(self) -> Iterator[tuple[Literal["train", "validation"], Codes]]:
        n = len(SYMBOLS)
        rng = _generator(self.seed, 1)
        held_out = max(8, self.classes // 8)
        # Distinct codes, those of held-out classes included.
        numbers = rng.choice(n**self.width, self.classes + held_out, replace=False)
        codes = np.stack([numbers // n**i % n for i in range(self.width)], 1)
        labels = rng.integers(self.labels, size=self.classes)
        frequency = np.arange(1, self.classes + 1) ** -self.zipf
        frequency /= frequency.sum()
        for number in range(self.texts):
            if number % _AT_ONCE == 0:
                rng = _generator(self.seed, 2, number)
            split = _split_of(number)
            if split == "train":
                classes = self._training_classes(rng, frequency)
                yield split, self._row(codes[classes], labels[classes])
            else:
                two = rng.choice(held_out, 2, replace=False)
                shown = rng.permutation(np.repeat([0, 1], self.context // 2))
                which = np.append(shown, rng.integers(2))
                given = rng.choice(self.labels, 2, replace=False)
                yield split, self._row(codes[self.classes + two[which]], given[which])

    def _training_classes(self, rng: np.random.Generator, frequency: NDArray[np.float64]) -> Codes:
        """Classes of the pairs in context, and of the asked item at the end."""
        if rng.random() < self.bursty:
            # Four different classes: the two frequent ones and two that fill the context.
            asked, other, *rest = rng.choice(self.classes, self.context - 4, replace=False, p=frequency)
            return np.append(rng.permutation([asked] * 3 + [other] * 3 + rest[:2]), asked)
        found: Codes = rng.choice(self.classes, self.context + 1, p=frequency)
        return found

    def _row(self, codes: Codes, labels: Codes) -> Codes:
        pairs = np.concatenate([codes, labels[:, None]], 1)
        return np.concatenate([pairs[:-1].ravel(), [_ASKED], pairs[-1]])

    def documents(self) -> Iterator[Document]:
        return _documents("bursty", self._rows())

    def fingerprint(self) -> str:
        return _fingerprint("bursty", self.bursty, self.classes, self.labels, self.zipf, self.texts, self.seed)


@sources.register("ginc")
class Ginc:
    """GINC: documents of a mixture of hidden Markov models; held out are prompts of examples that share a concept.

    A state is an entity and a property; their table gives the symbol.  The property moves by a matrix that is the
    concept of the document, a sharp mixture of permutations; the entity mostly stays.  Property 0 is the delimiter,
    written `?`.  Train with objective=lm.  A held-out prompt has `shown` examples of `length` symbols, each after a
    delimiter, of one concept and with one first property: the last symbol of an example follows from the others once
    the concept is known.  `ablatio evaluate RUN --objective answers` scores it for length=2; the paper's
    lengths are 3, 5, 8 and 10, for which objective.skip is the length - 1.  Source: Xie et al. 2021, arXiv:2111.02080.
    """

    properties, entities = 10, 10

    def __init__(
        self,
        *,
        concepts: Annotated[int, Range(1, 1000), "hidden Markov models that documents are drawn from"] = 5,
        symbols: Annotated[int, Range(4, len(SYMBOLS)), "vocabulary, with the delimiter"] = 50,
        stay: Annotated[float, Fraction, "share of the identity in the entity's transitions"] = 0.9,
        temperature: Annotated[float, Range(0.01, 100), "of the weights of a concept's permutations"] = 0.1,
        tokens: Annotated[int, Range(16, 1_000_000), "of a training document"] = 1024,
        documents: Annotated[int, Range(1, 10_000_000), "number of training documents"] = 1000,
        shown: Annotated[int, Range(1, 1024), "examples of a held-out prompt, the scored ones"] = 32,
        length: Annotated[int, Range(2, 64), "symbols of an example"] = 2,
        seed: Seed = 0,
    ) -> None:
        self.concepts, self.symbols, self.stay, self.temperature = concepts, symbols, stay, temperature
        self.tokens, self.number, self.shown, self.length, self.seed = tokens, documents, shown, length, seed

    def _mixture(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        """A convex combination of n permutation matrices of size n, with the weights softmax(u / temperature)."""
        u = (rng.random(n) - 0.5) / self.temperature
        weights = np.exp(u - u.max())
        weights /= weights.sum()
        found: NDArray[np.float64] = sum(w * np.eye(n)[rng.permutation(n)] for w in weights)
        return found

    def world(self) -> tuple[Codes, NDArray[np.float64], NDArray[np.float64]]:
        """(symbol of each entity and property, transitions of the entity, those of the property by concept)."""
        rng = _generator(self.seed, 3)
        table = rng.integers(self.symbols - 1, size=(self.entities, self.properties))
        table[:, 0] = _ASKED
        entity = (1 - self.stay) * self._mixture(rng, self.entities) + self.stay * np.eye(self.entities)
        return table, entity, np.stack([self._mixture(rng, self.properties) for _ in range(self.concepts)])

    def _rows(self) -> Iterator[tuple[Literal["train", "validation"], Codes]]:
        table, entity, concepts = self.world()
        entity_sum, concept_sum = entity.cumsum(1), concepts.cumsum(2)

        def walk(rng: np.random.Generator, concept: Codes, e: Codes, p: Codes, length: int) -> Codes:
            """Symbols of n documents from their concepts, first entities and properties, each (n,): (n, length)."""
            found = np.empty((len(e), length), dtype=np.int64)
            for step, (u, v) in enumerate(rng.random((length, 2, len(e), 1))):
                found[:, step] = table[e, p]
                # Inverse of the cumulative distribution; the minimum is for a sum that rounding leaves below 1.
                e = np.minimum((entity_sum[e] <= u).sum(1), self.entities - 1)
                p = np.minimum((concept_sum[concept, p] <= v).sum(1), self.properties - 1)
            return found

        for start in range(0, self.number, _AT_ONCE):
            rng = _generator(self.seed, 4, start)
            concept, e, p = (rng.integers(m, size=_AT_ONCE) for m in (self.concepts, self.entities, self.properties))
            yield from (("train", row) for row in walk(rng, concept, e, p, self.tokens)[: self.number - start])
        for number in range(max(10, self.number // HELD_OUT)):
            rng = _generator(self.seed, 5, number)
            concept, first = rng.integers(self.concepts), rng.integers(1, self.properties)
            e = rng.integers(self.entities, size=self.shown)
            examples = walk(rng, np.full(self.shown, concept), e, np.full(self.shown, first), self.length)
            asked = np.full((self.shown, 1), _ASKED)
            yield "validation", np.concatenate([asked, examples], 1).ravel()

    def documents(self) -> Iterator[Document]:
        return _documents("ginc", self._rows())

    def fingerprint(self) -> str:
        model = self.concepts, self.symbols, self.stay, self.temperature
        return _fingerprint("ginc", *model, self.tokens, self.number, self.shown, self.length, self.seed)
