"""Exclusive ownership of a folder: a lock file that the kernel releases when its process ends, however it ends.

The lock is a POSIX record lock: it works between the machines of a network filesystem, and a forked child does not
inherit it.  The file names the owner for messages.  It is never removed, because a process that has just opened it
would then lock a file that nobody else sees.  Where the filesystem has no locks, the name in the file decides.
"""

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ablatio.storage.atomic_write import explained
from ablatio.storage.process import is_alive, this_process

# What filesystems without locks answer: NFS without a lock daemon, and some FUSE and cluster filesystems.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_held: dict[tuple[int, int], int] = {}  # (device, inode) of the lock files of this process -> its pid


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that owns a folder; pid 0 if it is not known."""

    pid: int = 0
    host: str = ""
    start: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else "another process"

    @property
    def stop(self) -> str:
        """Command that asks the owner to stop."""
        if is_alive(self.pid, self.host, self.start) is None and self.host:
            return f"ssh {self.host} kill {self.pid}"
        return f"kill {self.pid}" if self.pid else "stop that process"


@contextmanager
def own(path: Path) -> Iterator[Owner | None]:
    """Own the lock file `path` until the context ends; yield its owner if that is another process or an outer context.

    A lock whose owner has died is taken over.
    """
    file = None
    with explained("lock", path):
        other = _own_owner(path)
        if other is None:
            # Not "w": that would empty the file, and with it the owner's name, before the lock is ours.
            file = path.open("a+", encoding="utf-8")
    if file is None:
        yield other
        return
    with file:
        with explained("lock", path):
            other = None if _lock(file, fcntl.LOCK_EX, path) else _named(path)
            if other is None:
                _write_name(file)
        if other is not None:
            yield other
            return
        key = _key(path)
        # POSIX locks never conflict within one process, so that a second owner in this one has to be noticed here.
        _held[key] = os.getpid()
        try:
            yield None
        finally:
            if _held.get(key) == os.getpid():  # not in a forked child
                del _held[key]
                with suppress(OSError):
                    file.truncate(0)


def owner_of(path: Path) -> Owner | None:
    """The living owner of the lock file `path`; None if it has none, or there is no such file."""
    with explained("read", path):
        try:
            # Closing any handle of the file would release a lock of this process, so it is asked first.
            if (owner := _own_owner(path)) is not None:
                return owner
            file = path.open(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        with file:
            # An exclusive lock needs a file that is open for writing, which a reader may not be permitted.
            return None if _lock(file, fcntl.LOCK_SH, path) else _named(path)


def _lock(file: TextIO, kind: int, path: Path) -> bool:
    """True if this process may own the file: it has the lock or, where there are no locks, no living owner is named."""
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        owner = _name_in(path)
        # `is False`: of a process on another machine nothing is known, so the folder counts as owned.
        return owner is None or is_alive(owner.pid, owner.host, owner.start) is False
    return True


def _own_owner(path: Path) -> Owner | None:
    """This process, if it holds the lock already."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if _held.get(_key(path)) == os.getpid():
            return Owner(**this_process())
    return None


def _key(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _write_name(file: TextIO) -> None:
    file.truncate(0)
    file.write(json.dumps(this_process()))
    file.flush()
    os.fsync(file.fileno())  # other machines read it while the file stays open here


def _named(path: Path) -> Owner:
    """The owner named in the file; a new owner may not have written its name yet."""
    for _ in range(20):
        owner = _name_in(path)
        if owner and is_alive(owner.pid, owner.host, owner.start) is not False:
            return owner
        time.sleep(0.05)
    return Owner()


def _name_in(path: Path) -> Owner | None:
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        data = json.loads(path.read_text(encoding="utf-8"))
        return Owner(int(data["pid"]), str(data["host"]), int(data["start"]))
    return None
