"""Conversation that a prompt to a chat model becomes."""

from pathlib import Path

from ablatio.data.chat import Template
from ablatio.data.types import Message, Tokenizer
from ablatio.errors import UserError


def conversation(system: str, question: str) -> list[Message]:
    """Return the system message, if any, and the question as messages; UserError for an empty question."""
    if not question.strip():
        raise UserError('--chat needs a question, but none came\n    try: ablatio generate RUN "How many?" --chat')
    return [*([Message("system", system)] if system else []), Message("user", question)]


def with_template_tokens(tokenizer: Tokenizer, form: Template, run: Path) -> Tokenizer:
    """Return the run's tokenizer; UserError if its model was trained without the template's special tokens."""
    known = getattr(tokenizer, "specials", {})
    if missing := [token for token in form.signs if token not in known]:
        raise UserError(
            f"{run} was trained without the special token {missing[0]} of its template: it is no chat run\n"
            f"    try: ablatio generate {run} PROMPT, without --chat"
        )
    return tokenizer
