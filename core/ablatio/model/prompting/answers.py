"""Answers of a prompt program to many questions."""

from collections.abc import Sequence
from typing import Any

from ablatio.errors import UserError
from ablatio.model.prompting.types import Example, Question, Reply, TextModel


def answer_all(program: Any, llm: TextModel, examples: Sequence[Example], questions: Sequence[Question]) -> list[Reply]:
    """Prepare a prompt program on the examples and return its reply to each question.

    Raises UserError if the program needs examples, or rationales, that are not there.
    """
    check_examples(program, examples)
    if hasattr(program, "fit"):
        program.fit(llm, examples)
    return [program.answer(llm, examples, question) for question in questions]


def check_examples(program: Any, examples: Sequence[Example]) -> None:
    """Raise UserError if the program needs examples, or their rationales, and there are none."""
    name = type(program).__name__
    if getattr(program, "examples", False) and not examples:
        raise UserError(
            f"the prompt program {name} shows solved examples, and none were given\n    try: prompt=zero_shot"
        )
    if getattr(program, "rationale", False) and not any(e.rationale for e in examples):
        raise UserError(
            f"the prompt program {name} shows the steps to an answer, and no example has a rationale\n"
            "    try: prompt=few_shot"
        )
