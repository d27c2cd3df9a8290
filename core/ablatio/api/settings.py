"""Turn the arguments of an API call into overrides as on the command line."""

from collections.abc import Sequence
from pathlib import Path

from ablatio.config.hydra_habits import with_places
from ablatio.config.words import quoted
from ablatio.errors import UserError
from ablatio.registry.parts_file import KEY as PARTS_FILE

FOLDERS = {"train": "hydra.run.dir", "run_study": "hydra.sweep.dir"}  # Hydra's setting for the folder of each call


def words_of(
    call: str, overrides: Sequence[str], name: str | None = None, out: "str | Path | None" = None
) -> list[str]:
    """Return the overrides with `name=` and `out=` appended.

    call  name of the API function, for error messages

    Raises UserError for an override that is no text or is a flag.
    """
    for text in overrides:
        if not isinstance(text, str):
            raise UserError(
                f"{call} got {text!r}; settings are text, as on the command line\n"
                f'    try: ablatio.{call}("norm=rmsnorm", "seed=1")'
            )
        if text.lstrip("+~").startswith(f"{PARTS_FILE}="):
            path = text.partition("=")[2]
            raise UserError(
                f"{call} got {text}, and its settings may not name code\n    try: ablatio.load_parts({path!r}), before"
            )
        if text.startswith("-"):
            raise UserError(
                f"{call} got the flag {text}, but it takes settings only; for several runs use run_study\n"
                f'    try: ablatio.run_study("norm=layernorm,rmsnorm", "seed=1,2,3")'
            )
    overrides = with_places(overrides, FOLDERS.get(call, ""))
    places = [] if out is None else [f"out={quoted(str(out))}"]
    return [*overrides, *places, *([] if name is None else [f"name={name}"])]


def value(words: Sequence[str], key: str) -> str | None:
    """Return the value of the last override of `key`; None if there is none."""
    found = [text.partition("=")[2] for text in words if text.lstrip("+").partition("=")[0] == key and "=" in text]
    return found[-1] if found else None


def without(words: Sequence[str], key: str) -> list[str]:
    """Return the overrides except those of `key`."""
    return [text for text in words if text.lstrip("+").partition("=")[0] != key]
