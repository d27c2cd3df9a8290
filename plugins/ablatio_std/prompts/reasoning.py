"""Chains of thought: the model writes the steps to an answer before the answer."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from ablatio import Positive, prompts
from ablatio.model.prompting.types import Example, Form, Question, Reply, TextModel, Vote
from ablatio_std.prompts._common import (
    CONCLUSION,
    STEPS,
    Parse,
    Samples,
    SampleTemperature,
    Shots,
    reasoned,
    reasoning_prompt,
    with_rationale,
)


def stepwise(llm: TextModel, form: Form, question: str) -> tuple[str, str]:
    """(steps, text after "The answer is") of the two calls of zero-shot chain of thought (arXiv:2205.11916)."""
    text = f"{form.ask(question)} {STEPS}"
    ((steps,),) = llm.complete([text], stop=form.stop)
    # A second call, since free steps do not end in a form from which the answer can be read.
    ((last,),) = llm.complete([f"{text}{steps.text}\n{CONCLUSION}"], stop=form.stop)
    return steps.text, last.text


@prompts.register("chain_of_thought", paper="arXiv:2201.11903")
class ChainOfThought:
    """The question after random examples with their steps: "Q: ... A: STEPS The answer is ANSWER.".

    shots=0: "Let's think step by step." in place of examples, and a second call for the answer (arXiv:2205.11916).
    """

    uses_choices = False

    def __init__(self, form: Form, parse: Parse, *, shots: Shots = 4) -> None:
        self.form, self.parse, self.shots, self.uses_examples = form, parse, shots, shots > 0

    def answer(self, llm: TextModel, examples: Sequence[Example], question: Question) -> Reply:
        if not self.shots:
            steps, last = stepwise(llm, self.form, question.text)
            return Reply(self.parse(f"{CONCLUSION}{last}"), f"{steps}\n{CONCLUSION}{last}")
        solved = with_rationale(examples, self.shots, "chain_of_thought")
        text = reasoning_prompt(llm, self.form, solved, question.text, self.shots)
        ((found,),) = llm.complete([text], stop=self.form.stop)
        return Reply(self.parse(found.text), found.text)


@prompts.register("auto_cot", paper="arXiv:2210.03493")
class AutoCot:
    """Chain of thought with steps that the model wrote itself, for one question of each of `clusters` clusters.

    Questions of the examples are clustered by k-means on the model's mean hidden states.  Of each cluster, the question
    nearest to the center is solved by zero-shot chain of thought; the next one is taken instead if the question has
    more than `max_words` words or the solution more than `max_steps` lines or sentences.  The answers of the examples
    are not used.
    """

    examples, uses_choices = True, False

    def __init__(
        self,
        form: Form,
        parse: Parse,
        *,
        clusters: Annotated[int, Positive, "number of clusters, and of examples that are shown"] = 4,
        max_words: Annotated[int, Positive, "largest number of words of a question that is shown"] = 60,
        max_steps: Annotated[int, Positive, "largest number of steps of a solution that is shown"] = 5,
    ) -> None:
        self.form, self.parse, self.clusters = form, parse, clusters
        self.max_words, self.max_steps = max_words, max_steps
        self.shown: list[Example] | None = None

    def fit(self, llm: TextModel, examples: Sequence[Example]) -> None:
        from scipy.cluster.vq import kmeans2  # 0.4 s, of which only this part has a use

        vectors = llm.embed([e.question for e in examples])
        # k-means cannot start from more centers than there are different points.
        count = min(self.clusters, len(np.unique(vectors, axis=0)))
        rng = np.random.default_rng(llm.random("clusters").getrandbits(63))
        centers, members = kmeans2(vectors, count, minit="++", seed=rng)
        self.shown = []
        for cluster in range(count):
            # Infinite outside the cluster, so that one sort serves both filter and order.
            distance = np.where(members == cluster, np.linalg.norm(vectors - centers[cluster], axis=1), np.inf)
            near = [int(i) for i in np.argsort(distance, kind="stable") if np.isfinite(distance[i])]
            if found := self._solved(llm, [examples[i].question for i in near]):
                self.shown.append(found)

    def _solved(self, llm: TextModel, questions: Sequence[str]) -> Example | None:
        """The first question with a short solution, solved."""
        for question in questions:
            if len(question.split()) > self.max_words:
                continue
            steps, last = stepwise(llm, self.form, question)
            answer = self.parse(f"{CONCLUSION}{last}")
            # The paper's criteria: short chains are more often right.
            if answer and steps_of(steps) <= self.max_steps:
                return Example(question, answer, f"{STEPS}{steps}")
        return None

    def answer(self, llm: TextModel, examples: Sequence[Example], question: Question) -> Reply:
        if self.shown is None:
            self.fit(llm, examples)
        text = "".join(reasoned(self.form, e) for e in self.shown or ()) + f"{self.form.ask(question.text)} {STEPS}"
        ((found,),) = llm.complete([text], stop=self.form.stop)
        return Reply(self.parse(found.text), found.text)


def steps_of(text: str) -> int:
    """Number of steps of a chain of thought: its lines, or its sentences if it has one line (arXiv:2210.00720)."""
    lines = [line for line in text.split("\n") if line.strip()]
    return len(lines) if len(lines) > 1 else len([s for s in text.split(". ") if s.strip()])


@prompts.register("complex_cot", paper="arXiv:2210.00720")
class ComplexCot:
    """Chain of thought that shows the examples with the most steps, and lets the longest of several chains vote.

    Of `samples` chains, the `voters` with the most steps vote, each with the weight 1.
    """

    examples, uses_choices, rationale, samples = True, False, True, True

    def __init__(
        self,
        form: Form,
        parse: Parse,
        *,
        shots: Shots = 8,
        draws: Samples = 10,
        voters: Annotated[int, Positive, "number of chains with the most steps that vote"] = 5,
        temperature: SampleTemperature = 0.7,
    ) -> None:
        self.form, self.parse, self.shots = form, parse, shots
        self.draws, self.voters, self.temperature = draws, voters, temperature
        self.uses_examples = shots > 0

    def answer(self, llm: TextModel, examples: Sequence[Example], question: Question) -> Reply:
        solved = with_rationale(examples, self.shots, "complex_cot")
        hardest = sorted(solved, key=lambda e: -steps_of(e.rationale))[: self.shots]
        text = "".join(reasoned(self.form, e) for e in hardest) + self.form.ask(question.text)
        (chains,) = llm.complete([text], stop=self.form.stop, samples=self.draws, temperature=self.temperature)
        longest = sorted(chains, key=lambda c: -steps_of(c.text))[: self.voters]
        votes = [(self.parse(c.text), 1.0) for c in longest]
        winner = Vote.of(votes).winner
        text = next((c.text for c, (answer, _) in zip(longest, votes, strict=True) if answer == winner), "")
        return Reply(winner, text, tuple(votes))
