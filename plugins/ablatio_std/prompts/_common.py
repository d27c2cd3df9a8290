"""What prompt programs share: the knobs, one completion, probabilities of choices, shots with reasoning."""

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from ablatio import NonNegative, Positive
from ablatio.errors import UserError
from ablatio.model.prompting.types import Example, Form, Question, Reply, TextModel

Parse = Callable[[str], str]
Shots = Annotated[int, NonNegative, "number of solved examples that are shown"]
Samples = Annotated[int, Positive, "number of answers that are drawn"]
SampleTemperature = Annotated[float, Positive, "sampling temperature"]
STEPS = "Let's think step by step."
CONCLUSION = "The answer is"


def probabilities(llm: TextModel, text: str, choices: Sequence[str]) -> NDArray[np.float64]:
    """p(choice | text), normalized over the choices: (C,)."""
    found: NDArray[np.float64] = np.exp(log_probabilities(llm, text, choices))
    return found


def log_probabilities(llm: TextModel, text: str, choices: Sequence[str]) -> NDArray[np.float64]:
    """log p(choice | text) in nats, normalized over the choices: (C,)."""
    # A choice follows "A:" after a space, as answers do in the shots: another spelling would be other tokens.
    return log_normalized(llm.score([text] * len(choices), [f" {choice}" for choice in choices]))


def log_normalized(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """scores - log sum exp scores: (C,) -> (C,).  Finite where exp of a long choice's score (-800, say) is 0."""
    found: NDArray[np.float64] = scores - np.logaddexp.reduce(scores)
    return found


def chosen(choices: Sequence[str], chances: NDArray[np.float64]) -> Reply:
    """The most probable choice."""
    best = choices[int(chances.argmax())]
    return Reply(best, best, choice_probabilities=tuple(map(float, chances)))


def one_answer(llm: TextModel, text: str, question: Question, form: Form, parse: Parse) -> Reply:
    """The most probable choice if the question has choices, else what continues the text."""
    if question.choices:
        return chosen(question.choices, probabilities(llm, text, question.choices))
    ((found,),) = llm.complete([text], stop=form.stop)
    return Reply(parse(found.text), found.text)


def labels_of(question: Question, examples: Sequence[Example]) -> tuple[str, ...]:
    """The choices of a question, or all different answers of the examples, in their order."""
    return question.choices or tuple(dict.fromkeys(e.answer for e in examples))


def entropy(chances: NDArray[np.float64]) -> float:
    """-sum p log p in nats."""
    # 0 log 0 counts as 0.
    kept = chances[chances > 0]
    return float(-(kept * np.log(kept)).sum())


def reasoned(form: Form, example: Example) -> str:
    """A solved example with its steps: "Q: ... A: STEPS The answer is ANSWER."."""
    steps = example.rationale.strip()
    return f"{form.question}{example.question}{form.answer} {steps} {CONCLUSION} {example.answer}.{form.end}"


def with_rationale(examples: Sequence[Example], shots: int, name: str) -> list[Example]:
    """The examples that have a rationale; UserError if shots are to be shown and none has one."""
    found = [e for e in examples if e.rationale.strip()]
    if shots and not found:
        raise UserError(
            f"prompt={name} shows the steps of solved examples, and none of the {len(examples)} examples has a "
            "rationale\n    try: prompt.shots=0, or examples with a field `rationale`"
        )
    return found


def reasoning_prompt(llm: TextModel, form: Form, examples: Sequence[Example], question: str, shots: int) -> str:
    """The question after `shots` random examples with their steps; without shots, after the words "step by step"."""
    if not shots:
        return f"{form.ask(question)} {STEPS}"
    # The stream starts anew at each call, so all questions see the same shots.
    picked = llm.random("shots").sample(list(examples), min(shots, len(examples)))
    return "".join(reasoned(form, e) for e in picked) + form.ask(question)
