"""Sums with worked steps: a task that small models learn, with right and wrong solutions and a label for each step."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np

from ablatio import Fraction, Range, sources
from ablatio.data.types import Conversation, Document, Feedback, Message

from ._records import as_documents


@sources.register("worked_sums")
class WorkedSums:
    """Sums of one-digit numbers: the question `3+8+5`, the answer `3+8=11`, `11+5=16`, `#### 16`, each on its line.

    Conversations have right answers, with their steps for a share `worked` of the questions and else the result alone.
    `few` gives steps to the first `few` questions only, and leaves the others out.  Feedback has two solutions of each
    question: the right one, and one with an error in one step from which the later steps follow; each step is labeled.
    Source: the scratchpads of Nye et al. 2021, arXiv:2112.00114, and of arXiv:2203.14465, section 4.1.
    """

    def __init__(
        self,
        *,
        size: Annotated[int, Range(20, 100_000), "number of questions in both splits together"] = 1000,
        terms: Annotated[int, Range(2, 9), "numbers in a sum"] = 3,
        worked: Annotated[float, Fraction, "share of the questions whose answer has its steps"] = 1.0,
        few: Annotated[int | None, Range(1), "number of questions, all with their steps; null: all questions"] = None,
        seed: Annotated[int, Range(0, 2**31), "seed of the questions"] = 1,
    ) -> None:
        self.size, self.terms, self.worked, self.few, self.seed = size, terms, worked, few, seed

    def _problems(self) -> Iterator[tuple[str, tuple[int, ...], np.random.Generator]]:
        """Yield (id, numbers, random numbers for the rest) of distinct questions."""
        seen = set[tuple[int, ...]]()
        rng = np.random.Generator(np.random.PCG64(self.seed))
        most = min(self.size, 10**self.terms)
        while len(seen) < most:
            numbers = tuple(map(int, rng.integers(10, size=self.terms)))
            if numbers not in seen:
                seen.add(numbers)
                name = f"worked_sums:{'+'.join(map(str, numbers))}"
                # A generator from the numbers of the question: its wrong step does not depend on how many questions
                # came before.
                yield name, numbers, np.random.Generator(np.random.PCG64([self.seed, *numbers]))

    def conversations(self) -> Iterator[Conversation]:
        for i, (name, numbers, rng) in enumerate(self._problems()):
            if self.few is not None and i >= self.few:
                return
            with_steps = self.few is not None or rng.random() < self.worked
            lines = _solution(numbers)
            answer = "\n".join(lines if with_steps else lines[-1:])
            yield Conversation((_question(numbers), Message("assistant", answer)), name)

    def feedback(self) -> Iterator[Feedback]:
        for name, numbers, rng in self._problems():
            at = int(rng.integers(self.terms - 1))
            wrong = _solution(numbers, at, int(rng.choice([-2, -1, 1, 2])))
            labels = tuple(float(i != at) for i in range(self.terms - 1))
            right = _solution(numbers)
            # The result is right if it is that of the question, whatever the step before it was.
            ends = (1.0,), (float(wrong[-1] == right[-1]),)
            marks = ((1.0,) * (self.terms - 1) + ends[0], labels + ends[1])
            yield Feedback(
                (_question(numbers),), ("\n".join(right), "\n".join(wrong)), (1.0, 0.0), name, labels=marks
            )  # fmt: skip

    def documents(self) -> Iterator[Document]:
        yield from as_documents(self.conversations())

    def fingerprint(self) -> str:
        knobs = self.size, self.terms, self.worked, self.few, self.seed
        return hashlib.sha256(f"worked_sums-1 {knobs}".encode()).hexdigest()


def _question(numbers: Sequence[int]) -> Message:
    return Message("user", "+".join(map(str, numbers)))


def _solution(numbers: Sequence[int], wrong: int | None = None, error: int = 0) -> list[str]:
    """The lines of a solution; `error` is added to the result of the step `wrong`, and carried on."""
    total, lines = numbers[0], list[str]()
    for i, number in enumerate(numbers[1:]):
        result = total + number + (error if i == wrong else 0)
        # No negative result, which would give the wrong step away.
        result = result + 2 * abs(error) if result < 0 else result
        lines.append(f"{total}+{number}={result}")
        total = result
    return [*lines, f"#### {total}"]
