"""Settings given to a call of the API, as command-line overrides."""

from collections.abc import Sequence
from pathlib import Path

from ablatio.config.inherit import quoted
from ablatio.errors import UserError


def words_of(
    call: str, overrides: Sequence[str], name: str | None = None, out: "str | Path | None" = None
) -> list[str]:
    """The overrides with `name=` and `out=`; raises UserError for arguments that are not settings."""
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
    """Value of a key, from the last override that sets it; None if none does."""
    found = [text.partition("=")[2] for text in words if text.lstrip("+").partition("=")[0] == key and "=" in text]
    return found[-1] if found else None


def without(words: Sequence[str], key: str) -> list[str]:
    """The overrides that do not set a key."""
    return [text for text in words if text.lstrip("+").partition("=")[0] != key]
