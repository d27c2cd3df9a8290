"""Cache entries: built once, committed atomically, verified whenever they are opened.

An entry is a folder `<kind>/<key>/` of data files with a sealed `meta.json`: the key, the facts that the builder
returned, and the size and sha256 of each file. It is built in a sibling folder and renamed. A file lock, released when
its process ends, lets one process build while others wait.
"""

import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ablatio.errors import DamagedFile, EnvironmentFault
from ablatio.storage.atomic_write import digest, explained, make_folder, write_bytes
from ablatio.storage.manifest import read_sealed, readable, sealed, understood

FORMAT = 1
META = "meta.json"
Facts = dict[str, Any]

log = logging.getLogger("ablatio")


class MissingError(Exception):
    """The cache has no such entry."""


def key_of(*parts: str) -> str:
    """Return a key of 32 hexadecimal digits; hashing JSON keeps ("a", "bc") and ("ab", "c") apart."""
    return hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()[:32]


def get_or_build(folder: Path, build: Callable[[Path], Facts]) -> Facts:
    """Return the verified facts of the entry at `folder`, building it first if it is missing or damaged.

    `build(temp)` writes the files of the entry to an empty folder and returns its facts as plain JSON. Raises
    EnvironmentFault if the files cannot be read or written.
    """
    with suppress(MissingError, DamagedFile):
        return verify(folder)  # without the lock, so that a read-only cache can be used, too
    with _suggest_other_cache():
        make_folder(folder.parent)
        with _locked(folder.parent / f".{folder.name}.lock") as alone:
            try:
                return verify(folder)  # by now another process may have built it
            except MissingError:
                pass
            except DamagedFile as error:
                log.warning("%s: %s The entry is rebuilt.", folder, error)
            # Without locks another process may be building here now: its folder is not ours to remove.
            if alone:
                _remove_stray(folder)
            return _build(folder, build)


def verify(folder: Path) -> Facts:
    """Verify all files of an entry against its `meta.json` and return its facts. Raises MissingError or DamagedFile."""
    with explained("read", folder):
        if not folder.is_dir():
            raise MissingError(folder)
    meta, _ = read_sealed(folder / META)
    with understood(folder / META):
        # A folder that was copied or renamed holds what another key stands for, with correct digests.
        if (meta["format"], meta["key"]) != (FORMAT, folder.name):
            raise DamagedFile(f"{META} belongs to {meta['key']}, format {meta['format']}.")
        for name, record in meta["files"].items():
            path = folder / name
            with readable(path):
                size = path.stat().st_size
            if size != record["bytes"]:
                raise DamagedFile(f"{name} has {size} bytes, expected {record['bytes']}.")
            if digest(path) != record["sha256"]:
                raise DamagedFile(f"{name} does not match its digest.")
        facts: Facts = meta["facts"]
    return facts


def _build(folder: Path, build: Callable[[Path], Facts]) -> Facts:
    # In the same folder, because a rename is atomic within one filesystem only; hidden, so that no listing shows it.
    temp = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.tmp"
    try:
        make_folder(temp)
        facts = build(temp)
        with explained("read", temp):
            files = {p.name: {"bytes": p.stat().st_size, "sha256": digest(p)} for p in sorted(temp.iterdir())}
        meta = {"format": FORMAT, "key": folder.name, "files": files, "facts": facts}
        write_bytes(temp / META, sealed(json.dumps(meta).encode()))
        # `meta.json` is written last and the folder renamed after it: an entry that can be seen is complete.
        _commit(temp, folder)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    return verify(folder)


def _commit(temp: Path, folder: Path) -> None:
    """Rename `temp` to `folder`: a damaged entry there is removed, a valid one (another process's) is kept."""
    with explained("write", folder):
        try:
            verify(folder)
        except MissingError:
            pass
        except DamagedFile:
            old = temp.with_suffix(".old.tmp")  # renamed before it is removed: a reader never sees half an entry
            folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        else:  # another process built it meanwhile: possible only if the filesystem has no locks
            shutil.rmtree(temp, ignore_errors=True)
            return
        temp.rename(folder)
        handle = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):  # some filesystems cannot sync a folder
            os.fsync(handle)
        os.close(handle)


def _remove_stray(folder: Path) -> None:
    """Remove what killed builders left behind; safe, as the caller holds the lock: nobody is building this entry."""
    for stray in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(stray, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock file at `path`; yields False if the filesystem has no locks (the rename is atomic all the same)."""
    with explained("open the lock", path):
        # Not "w", and never removed: a process that waits must lock the same file as the one that builds.
        file = path.open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is building %s; waiting for it", path.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True


@contextmanager
def _suggest_other_cache() -> Iterator[None]:
    """Add to an EnvironmentFault how to choose another cache folder."""
    try:
        yield
    except EnvironmentFault as error:
        raise type(error)(f"{error}\n    or: choose another cache folder with ABLATIO_CACHE=FOLDER") from error
