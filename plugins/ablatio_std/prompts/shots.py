"""Prompts that are one text: a question alone, or after solved examples."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from ablatio import Positive, prompts
from ablatio.model.prompting.types import Example, Form, Question, Reply, TextModel
from ablatio_std.prompts._common import Parse, Shots, chosen, labels_of, log_normalized, log_probabilities, one_answer
from ablatio_std.prompts._selection import Choice, Order, Selection

CONTENT_FREE = ("N/A", "", "[MASK]")


@prompts.register("zero_shot", paper="arXiv:2005.14165")
class ZeroShot:
    """The question alone, after an instruction: instruction "Q: ..." "A:" -> continuation."""

    uses_examples = False

    def __init__(
        self, form: Form, parse: Parse, *, instruction: Annotated[str, "text before the question"] = ""
    ) -> None:
        self.form, self.parse, self.instruction = form, parse, instruction

    def write(self, llm: TextModel, examples: Sequence[Example], question: Question) -> str:
        lead = f"{self.instruction}{self.form.end}" if self.instruction else ""
        return f"{lead}{self.form.ask(question.text)}"

    def answer(self, llm: TextModel, examples: Sequence[Example], question: Question) -> Reply:
        return one_answer(llm, self.write(llm, examples, question), question, self.form, self.parse)


@prompts.register("few_shot", paper="arXiv:2005.14165")
class FewShot:
    """The question after solved examples; with `calibrate`, argmax_y p(y | question) / p(y | no content).

    choice: random (the same for all questions) | knn, the most similar by the model's mean hidden state
    (arXiv:2101.06804) | diverse, far from one another | both (arXiv:2211.13892) | gain, those of whose answer the model
    is surest (arXiv:2310.08923).
    order: random | similar, the most similar last (arXiv:2101.06804) | entropy, the order with the most evenly
    predicted answers (arXiv:2104.08786).
    calibrate divides the probabilities of the answers by their mean for the inputs "N/A", "" and "[MASK]"
    (arXiv:2102.09690).  The answers to choose from are the question's choices, else the answers of the examples.
    """

    examples = True

    def __init__(
        self,
        form: Form,
        parse: Parse,
        *,
        shots: Shots = 4,
        choice: Annotated[Choice, "which examples are shown"] = "random",
        order: Annotated[Order, "in which order"] = "random",
        orders: Annotated[int, Positive, "largest number of orders that order=entropy compares"] = 24,
        calibrate: Annotated[bool, "correct for what the prompt prefers without a question"] = False,
    ) -> None:
        self.form, self.parse, self.shots, self.orders, self.calibrate = form, parse, shots, orders, calibrate
        self.choice, self.order, self.uses_examples = choice, order, shots > 0 or calibrate
        self.selection: Selection | None = None

    def fit(self, llm: TextModel, examples: Sequence[Example]) -> None:
        self.selection = Selection(llm, self.form, examples, self.choice, self.order)

    def write(self, llm: TextModel, examples: Sequence[Example], question: Question) -> str:
        # Fitted again only for other examples: embeddings or gains of all of them are the costly part.
        if self.selection is None or self.selection.examples != list(examples):
            self.fit(llm, examples)
        assert self.selection is not None
        shown = self.selection.shots(llm, question, self.shots, self.orders)
        return "".join(self.form.shot(e) for e in shown) + self.form.ask(question.text)

    def answer(self, llm: TextModel, examples: Sequence[Example], question: Question) -> Reply:
        text = self.write(llm, examples, question)
        if not self.calibrate:
            return one_answer(llm, text, question, self.form, self.parse)
        labels = labels_of(question, examples)
        # Behind the same shots, whose bias is what is measured.
        lead = text.removesuffix(self.form.ask(question.text))
        empty = np.array([log_probabilities(llm, lead + self.blank(content), labels) for content in CONTENT_FREE])
        return chosen(labels, calibrated(log_probabilities(llm, text, labels), empty))

    def blank(self, content: str) -> str:
        """A question without content."""
        return f"{self.form.question}{content}{self.form.answer}"


def calibrated(logs: NDArray[np.float64], empty: NDArray[np.float64]) -> NDArray[np.float64]:
    """softmax(W p) of the paper has the argmax of W p, W = diag(p_empty)^-1; here W p is normalized: (C,) -> (C,).

    logs   log p of the choices in nats
    empty  the same for each input without content: (N, C); p_empty is their mean
    """
    # In logs, since p / p_empty is 0 / 0 where a choice is 745 nats or more behind the best one in both.
    mean = np.logaddexp.reduce(empty) - np.log(len(empty))
    found: NDArray[np.float64] = np.exp(log_normalized(logs - mean))
    return found
