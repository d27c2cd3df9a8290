"""What a question to a run of a chat task becomes."""

from pathlib import Path

from ablatio.data.chat import Template
from ablatio.data.types import Message, Tokenizer
from ablatio.errors import UserError


def conversation(system: str, question: str) -> list[Message]:
    """What a chat begins with."""
    if not question.strip():
        raise UserError('--chat answers a question, and none came\n    try: ablatio generate RUN "How many?" --chat')
    return [*([Message("system", system)] if system else []), Message("user", question)]


def with_template_tokens(tokenizer: Tokenizer, form: Template, run: Path) -> Tokenizer:
    """The run's tokenizer; UserError when its model has never seen what the template writes."""
    known = getattr(tokenizer, "specials", {})
    if missing := [sign for sign in form.signs if sign not in known]:
        raise UserError(
            f"{run} was trained without {missing[0]}, which its template writes: it is no chat run\n"
            f"    try: ablatio generate {run} PROMPT, without --chat"
        )
    return tokenizer
