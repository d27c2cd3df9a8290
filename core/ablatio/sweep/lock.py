"""Exclusive ownership of a study's folder: a lock that ends with its process, and who holds it."""

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ablatio.errors import UserError
from ablatio.storage.atomic_write import explained, make_folder
from ablatio.sweep.ledger import Entry, alive, this_process

LOCK = "sweeper.lock"


@contextmanager
def owned(folder: Path, join: bool) -> Iterator[bool]:
    """Own the folder; yield False if another sweep owns it and `join` is set.  Raises UserError if `join` is not."""
    make_folder(folder)
    path = folder / LOCK
    with ExitStack() as stack:
        with explained("lock", path):
            file = stack.enter_context(path.open("a+", encoding="utf-8"))
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by a forked server
                owner = True
            except (BlockingIOError, PermissionError):
                owner = False
            if owner:
                file.truncate(0)
                file.write(json.dumps(this_process()))
                file.flush()
        if not (owner or join):
            raise UserError(_owner(path, folder))
        yield owner


def _owner(path: Path, folder: Path) -> str:
    for _ in range(20):  # a new owner may not have written its name yet
        with suppress(OSError, ValueError):
            data = json.loads(path.read_text(encoding="utf-8"))
            if alive(Entry("", "claimed", **data)) is not False:
                who = f"process {data['pid']} on {data['host']} runs this sweep already"
                return f"{who}\n    try: the same command with join=true, or `ablatio report {folder}`"
        time.sleep(0.05)
    return f"another sweep is at work in {folder}\n    try: the same command with join=true"
