"""Probes with symbols: sums and nested brackets."""

from collections.abc import Iterator
from itertools import accumulate
from typing import Annotated

from ablatio import Range, evals
from ablatio.data.items import Item

from ._common import Count, Seed, draws

BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">"}


@evals.register("addition", paper="arXiv:2307.03381")
class Addition:
    """Add numbers, after worked examples: `3+4=7` lines, then `12+30=` -> `42`.

    Each number has up to `digits` digits, each number of digits equally often.  Of more than two `terms`, a prompt of
    chain of thought shows the steps, as in `3+8+5=`: `3+8=11. 11+5=16.` (scratchpads, arXiv:2112.00114).
    """

    def __init__(
        self,
        *,
        digits: Annotated[int, Range(1, 18), "largest number of digits of a summand"] = 2,
        shots: Annotated[int, Range(0, 64), "worked examples before the question"] = 4,
        terms: Annotated[int, Range(2, 16), "numbers in a sum"] = 2,
        spaces: Annotated[bool, "spaces around + and =, as most pretrained models have read them"] = False,
        items: Count = 200,
        seed: Seed = 0,
    ) -> None:
        self.digits, self.shots, self.terms, self.count, self.seed = digits, shots, terms, items, seed
        self.plus, self.equals, self.delimiter = (" + ", " =", " ") if spaces else ("+", "=", "")

    def items(self) -> Iterator[Item]:
        rng = draws("addition", self.seed)

        def number() -> int:
            # The number of digits is drawn first: of uniform numbers nine of ten would have the most digits.
            size = rng.randint(1, self.digits)
            return rng.randrange(10 ** (size - 1) if size > 1 else 0, 10**size)

        for index in range(self.count):
            sums = [[number() for _ in range(self.terms)] for _ in range(self.shots + 1)]
            told = "".join(f"{self._left(one)}{self.delimiter}{sum(one)}\n" for one in sums[:-1])
            question = self._left(sums[-1])
            steps = self._steps(sums[-1]) if self.terms > 2 else ""
            yield Item(
                str(index), told + question, str(sum(sums[-1])), delimiter=self.delimiter, question=question,
                room=self._room, rationale=steps,
            )  # fmt: skip

    @property
    def _room(self) -> int:
        """Tokens of the result, and of the steps and "The answer is", if there are some, at one token a letter."""
        steps = (self.terms - 1) * (3 * (self.digits + 2) + 8) + 32 if self.terms > 2 else 0
        return self.digits + 4 + steps

    def _left(self, numbers: list[int]) -> str:
        return self.plus.join(map(str, numbers)) + self.equals

    def _steps(self, numbers: list[int]) -> str:
        """The sums of the first two numbers, three, and so on: `3+8=11. 11+5=16.`."""
        totals = [*accumulate(numbers)]
        pairs = zip(totals, numbers[1:], totals[1:], strict=False)
        return " ".join(f"{self._left([a, b])}{self.delimiter}{c}." for a, b, c in pairs)


@evals.register("dyck", paper="arXiv:2105.11115")
class Dyck:
    """Close the innermost open bracket of a Dyck word: `( [ { }` -> `]`.

    The prompt is a random prefix of a word of Dyck-`kinds` with at most `depth` open brackets and at least one; the
    choices are the closing brackets.  Chance is 1 / `kinds`.
    """

    labels, measured_by = ("target", "choices"), ("likelihood_choice",)

    def __init__(
        self,
        *,
        kinds: Annotated[int, Range(2, 4), "kinds of brackets"] = 3,
        depth: Annotated[int, Range(1, 64), "largest number of open brackets"] = 4,
        length: Annotated[int, Range(1, 1024), "brackets in the prompt"] = 16,
        items: Count = 200,
        seed: Seed = 0,
    ) -> None:
        self.kinds, self.depth, self.length, self.count, self.seed = kinds, depth, length, items, seed

    def items(self) -> Iterator[Item]:
        rng, opening = draws("dyck", self.seed), list(BRACKETS)[: self.kinds]
        # All kinds in a fixed order: the chance is the same for every item.
        choices = tuple(BRACKETS[b] for b in opening)
        for number in range(self.count):
            word, stack = list[str](), list[str]()
            # A word that is closed at this length goes on: the question needs an open bracket.
            while len(word) < self.length or not stack:
                if not stack or (len(stack) < self.depth and rng.random() < 0.5):
                    stack.append(rng.choice(opening))
                    word.append(stack[-1])
                else:
                    word.append(BRACKETS[stack.pop()])
            gold = choices.index(BRACKETS[stack[-1]])
            yield Item(str(number), " ".join(word), choices=choices, gold=gold, room=4)
