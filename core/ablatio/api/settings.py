"""What a call of the API is given, as the words of the command line."""

from collections.abc import Sequence
from pathlib import Path

from ablatio.config.inherit import quoted
from ablatio.errors import UserError


def words_of(
    call: str, overrides: Sequence[str], name: str | None = None, out: "str | Path | None" = None
) -> list[str]:
    """The overrides with `name=` and `out=`; UserError for what is no setting at all."""
    for text in overrides:
        if not isinstance(text, str):
            raise UserError(
                f"{call} got {text!r}; settings are text, as on the command line\n"
                f'    try: ablatio.{call}("norm=rmsnorm", "seed=1")'
            )
        if text.startswith("-"):
            raise UserError(
                f"{call} got the flag {text}; it takes settings alone, and several runs are a study\n"
                f'    try: ablatio.run_study("norm=layernorm,rmsnorm", "seed=1,2,3")'
            )
    places = [] if out is None else [f"out={quoted(str(out))}"]
    return [*overrides, *places, *([] if name is None else [f"name={name}"])]


def value(words: Sequence[str], key: str) -> str | None:
    """What the last of the words says of a key; None where none does."""
    found = [text.partition("=")[2] for text in words if text.lstrip("+").partition("=")[0] == key and "=" in text]
    return found[-1] if found else None


def without(words: Sequence[str], key: str) -> list[str]:
    """The words that say nothing of a key."""
    return [text for text in words if text.lstrip("+").partition("=")[0] != key]
