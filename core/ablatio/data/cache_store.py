"""Cache entries that are built once, committed whole and verified whenever they are opened.

An entry is a folder `<kind>/<key>/` of data files with a sealed `meta.json`: the key, what the builder has to say,
and size and sha256 of each file. It is built in a folder beside it and renamed; a lock, which dies with its process,
lets one process build while the others wait.
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
from ablatio.storage.manifest import readable, sealed, understood

FORMAT = 1
META = "meta.json"
Facts = dict[str, Any]

log = logging.getLogger("ablatio")


class MissingError(Exception):
    """There is no such entry."""


def key_of(*parts: str) -> str:
    """32 hexadecimal digits; JSON keeps ("a", "bc") and ("ab", "c") apart."""
    return hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()[:32]


def get_or_build(folder: Path, build: Callable[[Path], Facts]) -> Facts:
    """The facts of the entry at `folder`, verified; if it is missing or damaged, `build(temp)` writes its files first.

    `build` gets an empty folder and returns plain JSON. Raises EnvironmentFault if the machine refuses.
    """
    with suppress(MissingError, DamagedFile):
        return verify(folder)  # needs no lock, so a cache that is read-only serves as well
    with _advice():
        make_folder(folder.parent)
        with _locked(folder.parent / f".{folder.name}.lock") as alone:
            try:
                return verify(folder)  # by now another process may have built it
            except MissingError:
                pass
            except DamagedFile as error:
                log.warning("%s: %s It is built again.", folder, error)
            if alone:
                _remove_stray(folder)
            return _build(folder, build)


def verify(folder: Path) -> Facts:
    """The facts of an entry whose files are what they were when it was written. Raises MissingError or DamagedFile."""
    with explained("read", folder):
        if not folder.is_dir():
            raise MissingError(folder)
    meta = _read_meta(folder / META)
    with understood(folder / META):
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


def _read_meta(path: Path) -> Facts:
    with readable(path):
        raw = path.read_bytes()
    text = raw[len(sealed(b"")) - 2 : -2]
    if raw != sealed(text):
        raise DamagedFile(f"{path.name} does not match its own digest.")
    with understood(path):
        meta: Facts = json.loads(text)
    return meta


def _build(folder: Path, build: Callable[[Path], Facts]) -> Facts:
    temp = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.tmp"
    try:
        make_folder(temp)
        facts = build(temp)
        with explained("read", temp):
            files = {p.name: {"bytes": p.stat().st_size, "sha256": digest(p)} for p in sorted(temp.iterdir())}
        meta = {"format": FORMAT, "key": folder.name, "files": files, "facts": facts}
        write_bytes(temp / META, sealed(json.dumps(meta).encode()))
        _commit(temp, folder)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    return verify(folder)


def _commit(temp: Path, folder: Path) -> None:
    """Rename `temp` to `folder`; what stands there is damaged and goes first, or is a rival's entry and stays."""
    with explained("write", folder):
        try:
            verify(folder)
        except MissingError:
            pass
        except DamagedFile:
            old = temp.with_suffix(".old.tmp")
            folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        else:  # only where the filesystem has no locks
            shutil.rmtree(temp, ignore_errors=True)
            return
        temp.rename(folder)
        handle = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):  # some filesystems cannot sync a folder
            os.fsync(handle)
        os.close(handle)


def _remove_stray(folder: Path) -> None:
    """What a killed builder has left; the caller holds the lock, so nobody is building this entry."""
    for stray in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(stray, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock file at `path`; gives False on a filesystem that has no locks, where the rename alone protects."""
    with explained("open the lock", path):
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
def _advice() -> Iterator[None]:
    try:
        yield
    except EnvironmentFault as error:
        raise type(error)(f"{error}\n    or: choose another cache folder with ABLATIO_CACHE=FOLDER") from error
