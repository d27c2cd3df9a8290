"""Answers of a prompt program to many questions."""

from collections.abc import Sequence
from typing import Any

from ablatio.errors import UserError
from ablatio.model.prompting.gather import run_together
from ablatio.model.prompting.types import Example, Question, Reply, TextModel

TOGETHER = 32  # questions that are answered at the same time


def answer_all(program: Any, llm: TextModel, examples: Sequence[Example], questions: Sequence[Question]) -> list[Reply]:
    """Prepare a prompt program on the examples and return its reply to each question.

    Raises UserError if the program needs examples, or rationales, that are not there.
    """
    check_examples(program, examples)
    if hasattr(program, "fit"):
        program.fit(llm, examples)
    return answers(program, llm, examples, questions)


def answers(program: Any, llm: TextModel, examples: Sequence[Example], questions: Sequence[Question]) -> list[Reply]:
    """Return the reply of a prepared program to each question; the calls of several questions are batched."""
    found: list[Reply] = []
    for start in range(0, len(questions), TOGETHER):
        part = questions[start : start + TOGETHER]
        found += run_together(llm, lambda model, question: program.answer(model, examples, question), part)
    return found


def refuse_unused(name: str, program: Any, examples: Sequence[Example], choices: Sequence[str]) -> None:
    """Raise UserError for examples or choices that do not change the answers of the program called `name`."""
    if examples and not getattr(program, "uses_examples", True):
        raise UserError(
            f"examples=... has no effect: prompt={name} with these settings shows no solved examples\n"
            f"    try: prompt={name} without examples=..., or prompt=few_shot prompt.shots=4"
        )
    if choices and not getattr(program, "uses_choices", True):
        raise UserError(
            f"--choices has no effect: prompt={name} reads its answer from the text that the model writes\n"
            f"    try: prompt={name} without --choices, or prompt=zero_shot"
        )


def check_examples(program: Any, examples: Sequence[Example]) -> None:
    """Raise UserError if the program needs examples, or their rationales, and there are none."""
    name = type(program).__name__
    if getattr(program, "examples", False) and not examples:
        raise UserError(f"{name} shows solved examples, and none were given\n    try: prompt=zero_shot")
    if getattr(program, "rationale", False) and not any(e.rationale for e in examples):
        raise UserError(
            f"{name} shows the steps to an answer, and no example has a rationale\n    try: prompt=few_shot"
        )
