"""Types of prompt programs: questions, examples, replies, and the language model that they call."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Question:
    """A question; choices: the answers to choose from, if they are given."""

    text: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its answer; rationale: the steps that lead to the answer, if they are known."""

    question: str
    answer: str
    rationale: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer of a prompt program.

    answer       the final answer, as `parse` finds it in the text
    text         the text that holds it
    candidates   (answer, weight) of each text that took part in a vote, in the order in which they were drawn
    choice_probabilities  of the question's choices, for programs that score these
    usage        calls and tokens of the model, filled in by who runs the program; None: not counted by question
    """

    answer: str
    text: str = ""
    candidates: tuple[tuple[str, float], ...] = ()
    choice_probabilities: tuple[float, ...] = ()
    usage: "Usage | None" = None


@dataclass(frozen=True, slots=True)
class Form:
    r"""How questions and answers are written: prefixes of a question and of its answer, and what ends an answer.

    With the default, one example and a question are "Q: ...\nA: ...\n\nQ: ...\nA:".
    """

    question: str = "Q: "
    answer: str = "\nA:"
    end: str = "\n\n"

    def shot(self, example: Example, reason: str = "") -> str:
        """A solved question; reason: text between the answer's prefix and the answer."""
        return f"{self.question}{example.question}{self.answer}{reason} {example.answer}{self.end}"

    def ask(self, question: str) -> str:
        """A question up to the place of its answer; empty for no question."""
        return f"{self.question}{question}{self.answer}" if question else ""

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer: what ends it in the examples, or another question."""
        return tuple(dict.fromkeys(s for s in (self.end, f"\n{self.question}") if s.strip() or len(s) > 1))


@dataclass(frozen=True, slots=True)
class Completion:
    """A continuation as text, without the stop string; logprob: of its tokens under the model, in nats."""

    text: str
    logprob: float = 0.0
    tokens: int = 0


@dataclass(slots=True)
class Usage:
    """Calls of a TextModel, and the tokens that it read and generated in them."""

    calls: int = 0
    read: int = 0
    generated: int = 0

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.calls - other.calls, self.read - other.read, self.generated - other.generated)

    def copy(self) -> "Usage":
        """The counts so far."""
        return Usage(self.calls, self.read, self.generated)


class TextModel(Protocol):
    """A language model as text in, text out."""

    @property
    def usage(self) -> Usage:
        """Calls and tokens so far."""
        ...

    def complete(
        self,
        prompts: Sequence[str],
        *,
        stop: Sequence[str] = (),
        samples: int = 1,
        tokens: int | None = None,
        temperature: float | None = None,
    ) -> list[list[Completion]]:
        """Return `samples` continuations of each prompt.

        stop         strings that end a continuation; they are not part of it
        samples      1: the continuation of the chosen `decode`; more: independent samples, the likeliest not first
        tokens       largest number of new tokens; None: the session's
        temperature  of the samples; None: that of the chosen `decode` if it samples, else 1
        """
        ...

    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> NDArray[np.float64]:
        """Return log p(continuation | prompt) of each pair, in nats, summed over the tokens: (N,)."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return an embedding of each text: (N, D)."""
        ...

    def token_candidates(self, prompts: Sequence[str], trigger: str, answers: Sequence[str], k: int) -> list[list[str]]:
        """Return, for each token of `trigger`, k triggers in which it is replaced, those that lower the loss most.

        To first order in the embedding of the token; the loss is -log p(answer | prompt), summed over the pairs.  Each
        prompt holds the trigger; what is returned has as many tokens as it.  Models without gradients raise UserError.
        """
        ...

    def random(self, name: str) -> random.Random:
        """Return the random numbers of this name: the same sequence for the same seed and name."""
        ...


@dataclass(frozen=True, slots=True)
class Vote:
    """Votes by answer: the sums of the weights, and the winner (the earliest of equals)."""

    weights: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, candidates: Sequence[tuple[str, float]]) -> "Vote":
        """Count weighted answers; "", no answer, does not vote."""
        weights: dict[str, float] = {}
        for answer, weight in candidates:
            if answer:
                weights[answer] = weights.get(answer, 0.0) + weight
        return cls(weights)

    @property
    def winner(self) -> str:
        """The answer with the largest weight; "" if nobody voted."""
        return max(self.weights, key=lambda a: self.weights[a]) if self.weights else ""
