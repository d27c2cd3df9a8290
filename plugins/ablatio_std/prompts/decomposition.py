"""Programs that solve a question in parts: least to most, and a search over partial solutions."""

import re
from collections.abc import Sequence
from typing import Annotated

from ablatio import Positive, prompts
from ablatio.model.prompting.types import Example, Form, Question, Reply, TextModel
from ablatio_std.prompts._common import CONCLUSION, Parse, SampleTemperature, Shots, probabilities

NUMBERED = re.compile(r"^\s*(?:\d+[.):]|[-*])?\s*")
JUDGEMENTS = {"sure": 20.0, "likely": 1.0, "impossible": 0.001}  # the paper's weights, section 4.1 of its code
JUDGE = "\nIs this right so far? sure, likely or impossible:"


@prompts.register("least_to_most", paper="arXiv:2205.10625")
class LeastToMost:
    """Splits a question into easier ones, answers these in order, each after the ones before it, then the question.

    The first call continues `decompose`, whose {question} is the question; each line of it, without its number, is a
    smaller question.  Examples with a rationale show the splitting: its lines are their smaller questions.
    """

    uses_choices = False

    def __init__(
        self,
        form: Form,
        parse: Parse,
        *,
        shots: Shots = 0,
        parts: Annotated[int, Positive, "largest number of smaller questions"] = 4,
        decompose: Annotated[str, "text that asks for smaller questions"] = (
            'To answer the question "{question}", we first need to answer these questions:\n'
        ),
    ) -> None:
        self.form, self.parse, self.shots, self.parts, self.decompose = form, parse, shots, parts, decompose
        self.uses_examples = shots > 0

    def answer(self, llm: TextModel, examples: Sequence[Example], question: Question) -> Reply:
        solved = [e for e in examples if e.rationale.strip()]
        shown = llm.random("shots").sample(solved, min(self.shots, len(solved)))
        text, candidates = "", list[tuple[str, float]]()
        # The question itself is the last of its parts: answered with all the others before it.
        for smaller in [*self.smaller(llm, shown, question.text), question.text]:
            text += self.form.ask(smaller)
            ((found,),) = llm.complete([text], stop=self.form.stop)
            text += f"{found.text}{self.form.end}"
            candidates.append((self.parse(found.text), 1.0))
        return Reply(candidates[-1][0], text.removesuffix(self.form.end), tuple(candidates))

    def smaller(self, llm: TextModel, shown: Sequence[Example], question: str) -> list[str]:
        """The smaller questions of a question, in order."""
        lead = "".join(f"{self._asked(e.question)}{e.rationale.strip()}{self.form.end}" for e in shown)
        ((found,),) = llm.complete([lead + self._asked(question)], stop=self.form.stop)
        lines = [NUMBERED.sub("", line).strip() for line in found.text.split("\n")]
        # A weak model repeats lines, or the question; each is asked once.
        return [line for line in dict.fromkeys(lines) if line and line != question][: self.parts]

    def _asked(self, question: str) -> str:
        return self.decompose.replace("{question}", question)


@prompts.register("tree_of_thoughts", paper="arXiv:2305.10601")
class TreeOfThoughts:
    """Breadth-first search over partial solutions: each step continues, judges and keeps the best `keep` of them.

    A state is the question with its steps so far.  Each of the kept states is continued by `branch` sampled lines; the
    value of a new state is 20 p(sure) + p(likely) + 0.001 p(impossible), the probabilities of the three words after
    "Is this right so far?".  After `depth` steps the answer is completed from the best state.
    """

    uses_choices, samples = False, True

    def __init__(
        self,
        form: Form,
        parse: Parse,
        *,
        shots: Shots = 0,
        depth: Annotated[int, Positive, "number of steps"] = 3,
        branch: Annotated[int, Positive, "number of continuations of each state"] = 3,
        keep: Annotated[int, Positive, "number of states that are kept after each step"] = 2,
        temperature: SampleTemperature = 0.7,
    ) -> None:
        self.form, self.parse, self.shots = form, parse, shots
        self.depth, self.branch, self.keep, self.temperature = depth, branch, keep, temperature
        self.uses_examples = shots > 0

    def answer(self, llm: TextModel, examples: Sequence[Example], question: Question) -> Reply:
        picked = llm.random("shots").sample(list(examples), min(self.shots, len(examples)))
        lead = "".join(self.form.shot(e, f" {e.rationale.strip()}" if e.rationale else "") for e in picked)
        root = f"{lead}{self.form.ask(question.text)}"
        states, values = [root], {root: 0.0}
        for _ in range(self.depth):
            drawn = llm.complete(
                states, stop=("\n", *self.form.stop), samples=self.branch, temperature=self.temperature
            )
            new = [f"{s}{c.text}\n" for s, row in zip(states, drawn, strict=True) for c in row if c.text.strip()]
            # Only empty lines were drawn: the states stay as they are.
            if not new:
                break
            # Samples of one state often coincide; as one state they leave room for others.
            values = {state: self.value(llm, state) for state in dict.fromkeys(new)}
            states = sorted(values, key=lambda s: -values[s])[: self.keep]
        best = states[0]
        ((found,),) = llm.complete([f"{best}{CONCLUSION}"], stop=self.form.stop)
        text = f"{best.removeprefix(root)}{CONCLUSION}{found.text}"
        kept = tuple((state.removeprefix(root).strip(), values[state]) for state in states if state != root)
        return Reply(self.parse(f"{CONCLUSION}{found.text}"), text, kept)

    def value(self, llm: TextModel, state: str) -> float:
        """The expected weight of the model's judgement of a state."""
        chances = probabilities(llm, f"{state.rstrip()}{JUDGE}", tuple(JUDGEMENTS))
        return float(sum(p * w for p, w in zip(chances, JUDGEMENTS.values(), strict=True)))
