"""Conversion of a question to the messages and tokens of a chat run."""

from pathlib import Path

from ablatio.data.chat import Template
from ablatio.data.types import Message, Tokenizer
from ablatio.errors import UserError


def conversation(system: str, question: str) -> list[Message]:
    """Messages of a chat that starts with this question."""
    if not question.strip():
        raise UserError('--chat needs a question\n    try: ablatio generate RUN "How many?" --chat')
    return [*([Message("system", system)] if system else []), Message("user", question)]


def with_template_tokens(tokenizer: Tokenizer, form: Template, run: Path) -> Tokenizer:
    """The run's tokenizer; raises UserError if it lacks the special tokens of the template."""
    known = getattr(tokenizer, "specials", {})
    if missing := [sign for sign in form.signs if sign not in known]:
        raise UserError(
            f"{run} is not a chat run: it was trained without {missing[0]}, which its template uses\n"
            f"    try: ablatio generate {run} PROMPT, without --chat"
        )
    return tokenizer
