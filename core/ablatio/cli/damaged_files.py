"""Errors of damaged files name a command that works without the file: no command can repair it."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from ablatio.errors import DamagedFile
from ablatio.storage.paths import shell_word

HINT = "\n    try: "
OWNERS = ("config.json", "study.json", "recipe.json")  # files by which the folder of a run, study or recipe is known


def with_hint(error: DamagedFile, words: Sequence[str]) -> str:
    """Return the error's message, and a command to go on with unless the message has one.

    For a damaged run: `ablatio runs` of its folder.  For another file that the command `words` names: the command
    without it.  For a file that it does not name, which belongs to the installation: `ablatio doctor`.
    """
    said = error.for_command(words)
    return said if HINT in said else f"{said}{HINT}{_way_on(words)}"


def _way_on(words: Sequence[str]) -> str:
    for word, path in _paths(words):
        if (owner := _owner(path)) is not None:
            return f"ablatio runs {shell_word(owner.parent)}"
        if len(words) > 1 and "=" in word:
            return shlex.join(["ablatio", *(other for other in words if other != word)])
        return f"ls {shell_word(path.parent)}"
    return "ablatio doctor"


def _paths(words: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """(word, path) of each word of a command that names a file or folder, as resume=runs/a or runs/a."""
    for word in words[1:]:
        for text in (word, word.partition("=")[2]):
            try:
                if text and Path(text).exists():
                    yield word, Path(text)
            except (OSError, ValueError):  # a long word or one with a NUL is no path
                continue


def _owner(path: Path) -> Path | None:
    """The run, study or recipe that a path belongs to."""
    inside = (path, *path.absolute().parents)
    return next((at for at in inside if any((at / name).exists() for name in OWNERS)), None)
