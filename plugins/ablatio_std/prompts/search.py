"""Prompts that are searched on solved examples: trigger tokens by gradient, edited instructions."""

import random
import re
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from ablatio import NonNegative, Positive, prompts
from ablatio.model.prompting.types import Example, Form, Question, Reply, TextModel
from ablatio_std.prompts._common import Parse, entropy, labels_of, one_answer, probabilities


class _Searched:
    """A prompt with a text before the question, which `fit` finds."""

    examples = True
    form: Form
    parse: Parse
    found: str | None = None

    def lead(self, text: str) -> str:
        """The searched text as it stands before a question."""
        return f"{text}{self.form.end}" if text else ""

    def fit(self, llm: TextModel, examples: Sequence[Example]) -> None:
        raise NotImplementedError

    def write(self, llm: TextModel, examples: Sequence[Example], question: Question) -> str:
        if self.found is None:
            self.fit(llm, examples)
        return f"{self.lead(self.found or '')}{self.form.ask(question.text)}"

    def answer(self, llm: TextModel, examples: Sequence[Example], question: Question) -> Reply:
        return one_answer(llm, self.write(llm, examples, question), question, self.form, self.parse)


@prompts.register("autoprompt", paper="arXiv:2010.15980")
class AutoPrompt(_Searched):
    """`length` trigger tokens before the question that maximize sum log p(answer | trigger, question).

    Each step draws a place and a batch of examples, takes the `candidates` tokens w that most raise the sum to first
    order, -e_w . grad, and keeps the best of them if it is better on the batch.  The trigger begins as `start`.
    """

    def __init__(
        self,
        form: Form,
        parse: Parse,
        *,
        length: Annotated[int, Positive, "number of words of the first trigger"] = 3,
        steps: Annotated[int, NonNegative, "number of tokens that are tried to replace"] = 10,
        candidates: Annotated[int, Positive, "number of tokens that are tried in each step"] = 10,
        batch: Annotated[int, Positive, "number of examples in each step"] = 8,
        start: Annotated[str, "word of which the first trigger consists"] = " the",
    ) -> None:
        self.form, self.parse, self.length, self.steps = form, parse, length, steps
        self.candidates, self.batch, self.start = candidates, batch, start

    def fit(self, llm: TextModel, examples: Sequence[Example]) -> None:
        rng, trigger = llm.random("autoprompt"), self.start * self.length
        for _ in range(self.steps):
            batch = rng.sample(list(examples), min(self.batch, len(examples)))
            prompts = [f"{self.lead(trigger)}{self.form.ask(e.question)}" for e in batch]
            places = llm.token_candidates(prompts, trigger, [f" {e.answer}" for e in batch], self.candidates)
            # The trigger itself competes on the same batch: first order may promise more than a swap keeps.
            tried = [trigger, *places[rng.randrange(len(places))]]
            scores = [self.score(llm, text, batch) for text in tried]
            trigger = tried[int(np.argmax(scores))]
        self.found = trigger

    def score(self, llm: TextModel, trigger: str, batch: Sequence[Example]) -> float:
        """Sum of log p(answer | trigger, question) over examples, in nats."""
        prompts = [f"{self.lead(trigger)}{self.form.ask(e.question)}" for e in batch]
        return float(llm.score(prompts, [f" {e.answer}" for e in batch]).sum())


@prompts.register("edit_search", paper="arXiv:2203.07281")
class EditSearch(_Searched):
    """Edits of an instruction, phrase by phrase, by greedy search: GrIPS.

    Each step makes `candidates` edits of the best instruction so far (delete a phrase, swap two, add a deleted one
    again, let the model paraphrase one) and keeps the best if its score is higher.  The score on the examples is
    balanced accuracy in percent + alpha H(predicted answers), H in nats.  The search ends after `patience` steps
    without an improvement.  Phrases are what punctuation or a conjunction separates; the paper uses a parser and
    another model's paraphrases.
    """

    def __init__(
        self,
        form: Form,
        parse: Parse,
        *,
        instruction: Annotated[str, "the instruction that is edited"] = (
            "You are given a question, and you have to answer it. Write only the answer, and do not explain it."
        ),
        steps: Annotated[int, NonNegative, "largest number of steps"] = 10,
        candidates: Annotated[int, Positive, "number of edits in each step"] = 5,
        patience: Annotated[int, Positive, "number of steps without an improvement that end the search"] = 2,
        alpha: Annotated[float, NonNegative, "weight of the entropy of the predicted answers"] = 10.0,
    ) -> None:
        self.form, self.parse, self.instruction, self.steps = form, parse, instruction, steps
        self.candidates, self.patience, self.alpha = candidates, patience, alpha

    def fit(self, llm: TextModel, examples: Sequence[Example]) -> None:
        rng, best, deleted, waited = llm.random("edit_search"), phrases(self.instruction), list[str](), 0
        most = self.score(llm, "".join(best), examples)
        for _ in range(self.steps):
            edits = [self.edit(llm, best, deleted, rng) for _ in range(self.candidates)]
            scores = [self.score(llm, "".join(edited), examples) for edited, _ in edits]
            place = int(np.argmax(scores))
            if scores[place] > most:
                most, waited = scores[place], 0
                best, gone = edits[place]
                deleted += gone
            else:
                waited += 1
            if waited == self.patience:
                break
        self.found = "".join(best).strip()

    def score(self, llm: TextModel, instruction: str, examples: Sequence[Example]) -> float:
        """Balanced accuracy in percent + alpha * entropy of the predicted answers in nats."""
        labels = labels_of(Question(""), examples)
        lead = self.lead(instruction.strip())
        predicted = [
            labels[int(probabilities(llm, lead + self.form.ask(e.question), labels).argmax())] for e in examples
        ]
        recalls = [
            np.mean([p == e.answer for p, e in zip(predicted, examples, strict=True) if e.answer == label])
            for label in labels
        ]
        shares = np.array([predicted.count(label) for label in labels]) / len(examples)
        # Percent, as in the authors' code: with shares of 1, alpha=10 would let the entropy decide alone.
        return 100 * float(np.mean(recalls)) + self.alpha * entropy(shares)

    def edit(
        self, llm: TextModel, parts: Sequence[str], deleted: Sequence[str], rng: random.Random
    ) -> tuple[list[str], list[str]]:
        """An edited copy of the phrases, and the phrases that it lost."""
        edited = list(parts)
        # A single phrase is not deleted, as an empty instruction has nothing left to edit.
        kinds = ["paraphrase", *(["delete", "swap"] if len(edited) > 1 else []), *(["add"] if deleted else [])]
        kind = rng.choice(kinds)
        if kind == "delete":
            return edited, [edited.pop(rng.randrange(len(edited)))]
        if kind == "swap":
            i, j = rng.sample(range(len(edited)), 2)
            edited[i], edited[j] = edited[j], edited[i]
        elif kind == "add":
            edited.insert(rng.randrange(len(edited) + 1), rng.choice(list(deleted)))
        else:
            place = rng.randrange(len(edited))
            ((found,),) = llm.complete([f"{edited[place].strip()}\nIn other words:"], stop=("\n",))
            if found.text.strip():
                edited[place] = f"{found.text.strip()} "
        return edited, []


def phrases(text: str) -> list[str]:
    """The phrases of a text, each with the space after it; together they are the text."""
    return [p for p in re.findall(r".+?(?:[,.;:!?]\s+|\s+(?=(?:and|or|but|that|which)\s)|$)", text, re.S) if p]
