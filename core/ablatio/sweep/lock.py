"""Exclusive ownership of a study's folder by one sweep."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ablatio.errors import UserError
from ablatio.storage.atomic_write import make_folder
from ablatio.storage.folder_lock import own
from ablatio.storage.paths import shell_word

LOCK = "sweeper.lock"


@contextmanager
def owned(folder: Path, join: bool) -> Iterator[bool]:
    """Own the folder; yield False if another sweep owns it and `join` is set.  Raises UserError if `join` is not."""
    make_folder(folder)
    with own(folder / LOCK) as other:
        if other and not join:
            raise UserError(
                f"{other} runs this sweep already\n"
                f"    try: the same command with join=true, or `ablatio report {shell_word(folder)}`"
            )
        yield other is None
