"""BLiMP-like minimal pairs, made by rules: a sentence and the same one with a single violation of grammar."""

import random
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from ablatio import evals
from ablatio.data.items import Item

from ._common import Count, Seed, draws

SINGULAR = ("boy", "girl", "teacher", "senator", "doctor", "farmer", "soldier", "president", "worker", "child")
PLURAL = (
    "boys",
    "girls",
    "teachers",
    "senators",
    "doctors",
    "farmers",
    "soldiers",
    "presidents",
    "workers",
    "children",
)
VERBS = (("walks", "walk"), ("knows", "know"), ("speaks", "speak"), ("works", "work"), ("believes", "believe"),
         ("remembers", "remember"))  # fmt: skip
TRANSITIVE = ("saw", "helped", "called", "praised", "followed", "thanked")
PLACES = ("near the house", "from the city", "with the letter", "in the garden", "of the country")
MEN, WOMEN = ("the king", "the boy", "the man", "his father"), ("the queen", "the girl", "the woman", "her mother")

Pair = tuple[str, str]


def _agreement(rng: random.Random) -> Pair:
    """The boys walk. / The boys walks."""
    plural = rng.random() < 0.5
    noun, (one, many) = rng.choice(PLURAL if plural else SINGULAR), rng.choice(VERBS)
    right, wrong = (many, one) if plural else (one, many)
    return f"The {noun} {right}.", f"The {noun} {wrong}."


def _distractor(rng: random.Random) -> Pair:
    """The boys near the teacher walk. / The boys near the teacher walks."""
    plural = rng.random() < 0.5
    noun, other = rng.choice(PLURAL if plural else SINGULAR), rng.choice(SINGULAR if plural else PLURAL)
    one, many = rng.choice(VERBS)
    right, wrong = (many, one) if plural else (one, many)
    return f"The {noun} near the {other} {right}.", f"The {noun} near the {other} {wrong}."


def _determiner(rng: random.Random) -> Pair:
    """They saw these boys. / They saw these boy."""
    number, verb = rng.randrange(len(SINGULAR)), rng.choice(TRANSITIVE)
    word, plural = rng.choice((("this", False), ("that", False), ("these", True), ("those", True)))
    forms = SINGULAR[number], PLURAL[number]
    return tuple(f"They {verb} {word} {forms[plural == right]}." for right in (True, False))  # type: ignore[return-value]


def _reflexive(rng: random.Random) -> Pair:
    """The queen saw herself. / The queen saw himself."""
    woman, verb = rng.random() < 0.5, rng.choice(TRANSITIVE)
    who = rng.choice(WOMEN if woman else MEN)
    right, wrong = ("herself", "himself") if woman else ("himself", "herself")
    return tuple(f"{who[0].upper()}{who[1:]} {verb} {word}." for word in (right, wrong))  # type: ignore[return-value]


def _word_order(rng: random.Random) -> Pair:
    """The boy saw the teacher near the house. / The boy the saw teacher near the house."""
    subject, thing = rng.sample(SINGULAR, 2)
    verb, place = rng.choice(TRANSITIVE), rng.choice(PLACES)
    return f"The {subject} {verb} the {thing} {place}.", f"The {subject} the {verb} {thing} {place}."


PARADIGMS: dict[str, Callable[[random.Random], Pair]] = {
    "agreement": _agreement, "distractor": _distractor, "determiner": _determiner, "reflexive": _reflexive,
    "word_order": _word_order,
}  # fmt: skip


@evals.register("minimal_pairs", paper="arXiv:1912.00582")
class MinimalPairs:
    """Prefer the grammatical sentence of a pair: log p(`The boys walk.`) > log p(`The boys walks.`).

    The five paradigms take turns: agreement, agreement past a distractor, determiners, reflexives, word order.  Chance
    is 1/2.
    """

    labels, measured_by = ("target", "choices"), ("likelihood_choice",)

    def __init__(
        self,
        *,
        paradigm: Annotated[
            Literal["all", "agreement", "distractor", "determiner", "reflexive", "word_order"], "kind of violation"
        ] = "all",
        items: Count = 200,
        seed: Seed = 0,
    ) -> None:
        self.paradigms = list(PARADIGMS) if paradigm == "all" else [paradigm]
        self.count, self.seed = items, seed

    def items(self) -> Iterator[Item]:
        rng = draws("minimal_pairs", self.seed)
        for number in range(self.count):
            name = self.paradigms[number % len(self.paradigms)]
            right, wrong = PARADIGMS[name](rng)
            # Drawn, so that a model that always prefers the first scores 1/2.
            gold = rng.randrange(2)
            choices = (right, wrong) if gold == 0 else (wrong, right)
            yield Item(f"{name}/{number}", choices=choices, gold=gold, more={"paradigm": name})
