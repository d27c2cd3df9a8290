"""Answers by vote: of several chains, of several prompts, or weighted by a verifier."""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np

from ablatio import Positive, prompts
from ablatio.errors import UserError
from ablatio.model.prompting.types import Completion, Example, Form, Question, Reply, TextModel, Vote
from ablatio_std.prompts._common import (
    Parse,
    Samples,
    SampleTemperature,
    Shots,
    chosen,
    probabilities,
    reasoned,
    reasoning_prompt,
    with_rationale,
)


def chains(
    llm: TextModel, form: Form, examples: Sequence[Example], question: Question, shots: int, name: str, draws: int,
    temperature: float,
) -> list[Completion]:  # fmt: skip
    """Independent chains of thought for a question."""
    solved = with_rationale(examples, shots, name)
    text = reasoning_prompt(llm, form, solved, question.text, shots)
    (found,) = llm.complete([text], stop=form.stop, samples=draws, temperature=temperature)
    return found


def reply_of(votes: Sequence[tuple[str, float]], texts: Sequence[str]) -> Reply:
    """Return the answer with the most votes, and the first text that ends in this answer."""
    winner = Vote.of(votes).winner
    text = next((t for t, (answer, _) in zip(texts, votes, strict=True) if answer == winner), "")
    return Reply(winner, text, tuple(votes))


@prompts.register("self_consistency", paper="arXiv:2203.11171")
class SelfConsistency:
    """argmax_a sum_i 1(a_i = a) over `draws` sampled chains of thought; the earliest of equals."""

    uses_choices, samples = False, True

    def __init__(
        self, form: Form, parse: Parse, *, shots: Shots = 4, draws: Samples = 10, temperature: SampleTemperature = 0.7
    ) -> None:
        self.form, self.parse, self.shots, self.draws, self.temperature = form, parse, shots, draws, temperature
        self.uses_examples = shots > 0

    def answer(self, llm: TextModel, examples: Sequence[Example], question: Question) -> Reply:
        found = chains(llm, self.form, examples, question, self.shots, "self_consistency", self.draws, self.temperature)
        return reply_of([(self.parse(c.text), 1.0) for c in found], [c.text for c in found])


@prompts.register("verifier", paper="arXiv:2110.14168")
class Verifier:
    """Sampled chains of thought, judged by a verifier: the best one, or a vote with its scores as weights.

    vote: best, the answer of the chain with the highest score | weighted, argmax_a sum_i v_i 1(a_i = a)
    (arXiv:2206.02336); negative scores weigh nothing.
    """

    uses_choices, samples, verifies = False, True, True

    def __init__(
        self,
        form: Form,
        parse: Parse,
        verify: Callable[[str, str], float] | None,
        *,
        shots: Shots = 4,
        draws: Samples = 10,
        temperature: SampleTemperature = 0.7,
        vote: Annotated[Literal["best", "weighted"], "how the scores choose an answer"] = "best",
    ) -> None:
        self.form, self.parse, self.verify, self.shots = form, parse, verify, shots
        self.draws, self.temperature, self.vote = draws, temperature, vote
        self.uses_examples = shots > 0

    def answer(self, llm: TextModel, examples: Sequence[Example], question: Question) -> Reply:
        if self.verify is None:
            raise UserError("prompt=verifier needs a verifier of answers, and there is none\n"
                            "    try: reward=length, or prompt=self_consistency, which takes a vote")  # fmt: skip
        found = chains(llm, self.form, examples, question, self.shots, "verifier", self.draws, self.temperature)
        scores = [float(self.verify(question.text, c.text)) for c in found]
        votes = [(self.parse(c.text), score) for c, score in zip(found, scores, strict=True)]
        if self.vote == "weighted":
            # A bad chain must not cancel a good one with the same answer.
            return reply_of([(answer, max(0.0, score)) for answer, score in votes], [c.text for c in found])
        best = max(range(len(found)), key=lambda i: scores[i])
        return Reply(votes[best][0], found[best].text, tuple(votes))


@prompts.register("ensemble", paper="arXiv:2207.00747")
class Ensemble:
    """A vote of `prompts` prompts with different random examples in different orders, one answer each.

    Examples with a rationale show it.  For questions with choices: argmax of the mean probability of each choice.
    """

    examples = True

    def __init__(
        self,
        form: Form,
        parse: Parse,
        *,
        prompts: Annotated[int, Positive, "number of prompts"] = 5,
        shots: Shots = 4,
    ) -> None:
        self.form, self.parse, self.prompts, self.shots = form, parse, prompts, shots
        self.uses_examples = shots > 0

    def answer(self, llm: TextModel, examples: Sequence[Example], question: Question) -> Reply:
        texts = [self._text(llm, examples, question, number) for number in range(self.prompts)]
        if question.choices:
            return chosen(question.choices, np.mean([probabilities(llm, t, question.choices) for t in texts], axis=0))
        found = [c[0].text for c in llm.complete(texts, stop=self.form.stop)]
        return reply_of([(self.parse(text), 1.0) for text in found], found)

    def _text(self, llm: TextModel, examples: Sequence[Example], question: Question, number: int) -> str:
        # A stream of its own for each prompt, so that prompt i is the same for every question and any number of
        # prompts.
        picked = llm.random(f"ensemble/{number}").sample(list(examples), min(self.shots, len(examples)))
        shown = [reasoned(self.form, e) if e.rationale else self.form.shot(e) for e in picked]
        return "".join(shown) + self.form.ask(question.text)
