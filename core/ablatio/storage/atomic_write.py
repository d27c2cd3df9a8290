"""Atomic file writes, used for every file that ablatio keeps.

Each file is written beside its target, flushed to disk and renamed, so a reader sees either the old content or the
new. A failed write removes its temporary file and raises an error that says why.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ablatio.errors import EnvironmentFault, UserError
from ablatio.storage.secrets import redact, redact_tree

_PIECE = 1 << 20  # bytes hashed, then written, at a time: small enough to stay in the processor's cache between the two
_TEMP = ".ablatio-{}.tmp"
_CAUSES = {  # errno -> what it means, and a command that shows more
    errno.ENOSPC: ("the disk is full", "df -h {folder}"),
    errno.EDQUOT: ("your quota is used up", "quota -s"),
    errno.EFBIG: ("the file would be larger than is allowed here", "ulimit -f unlimited"),
    errno.EACCES: ("permission denied", "ls -ld {folder}"),
    errno.EPERM: ("permission denied", "ls -ld {folder}"),
    errno.EROFS: ("the filesystem is read-only", "findmnt -T {folder}"),
    errno.ENOENT: ("it or its folder does not exist", "ls -ld {folder}"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "ls -ld {folder}"),
    errno.EEXIST: ("a file of that name is in the way", "ls -ld {path}"),
}


@contextmanager
def explained(verb: str, path: Path) -> Iterator[None]:
    """Turn an OSError in the block into an EnvironmentFault: what failed, where, why, and a command that shows more."""
    try:
        yield
    except OSError as error:
        why, command = _CAUSES.get(error.errno or 0, (str(error.strerror or error), "ls -ld {folder}"))
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        hint = command.format(folder=shlex.quote(str(path.parent)), path=shlex.quote(str(path)))
        raise EnvironmentFault(f"Cannot {verb} {path}: {why} ({name}).\n    try: {hint}") from error


def make_folder(path: str | Path) -> Path:
    """Create `path` and its missing parents so that they survive a power cut. Raises EnvironmentFault."""
    path = _checked(path)
    with explained("make the folder", path):
        # A new folder lasts only once the folder that names it is flushed as well, from the outermost inwards.
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in reversed(missing):
            _sync_folder(folder.parent)
    return path


def write_bytes(path: str | Path, data: bytes) -> str:
    """Replace the file at `path` by `data`, atomically; return the sha256. Raises EnvironmentFault."""
    return str(write_pieces(_checked(path), [data])["sha256"])


def write_text(path: str | Path, text: str) -> str:
    r"""`write_bytes` of UTF-8 text, newlines unchanged; a lone surrogate, which UTF-8 lacks, is written as \uXXXX."""
    # Every text passes here, so a value of the environment can get into no file, whoever composed the text.
    return write_bytes(path, redact(text).encode(errors="backslashreplace"))


def write_json(path: str | Path, obj: Any) -> str:
    """`write_bytes` of indented JSON, key order unchanged. UserError for values that JSON lacks (NaN, other types)."""
    check_json(obj, Path(path).name)
    return write_text(path, json.dumps(redact_tree(obj), indent=2, ensure_ascii=False) + "\n")


def check_json(obj: Any, where: str, depth: int = 0) -> None:
    """Raise UserError, with the key, unless `obj` survives a round trip through JSON (tuples become lists)."""
    if depth > 100:
        raise UserError(f"{where[:200]}: contains itself or is nested deeper than 100 levels; flatten it.")
    if isinstance(obj, dict):
        for key, value in obj.items():
            if not isinstance(key, str):
                raise UserError(f"{where}: JSON keys are strings, not {key!r} ({type(key).__name__}); use str(key).")
            check_json(value, f"{where}.{key}", depth + 1)
    elif isinstance(obj, list | tuple):
        for index, value in enumerate(obj):
            check_json(value, f"{where}.{index}", depth + 1)
    elif isinstance(obj, float) and not math.isfinite(obj):
        raise UserError(f"{where}: JSON has no {obj!r}; write it as the string {str(obj)!r} or as None.")
    elif not isinstance(obj, str | int | float | None):
        raise UserError(
            f"{where}: JSON cannot hold {type(obj).__name__}; use dict, list, str, int, float, bool or None."
        )


def digest(path: str | Path) -> str:
    """Return the sha256 of the file at `path`, in hexadecimal. Raises EnvironmentFault."""
    path = _checked(path)
    with explained("read", path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_stray(folder: str | Path) -> int:
    """Remove the temporary files in `folder` whose writer has died; return how many."""
    count = 0
    for path in _checked(folder).glob(_TEMP.format("*")):
        with suppress(OSError), path.open("r+b") as file:  # OSError: a live writer holds the lock, or the file is gone
            # The kernel drops the lock when the writer dies, even by `kill -9`: neither age nor pid has to tell.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            count += 1
    return count


def _checked(path: str | Path) -> Path:
    if "\0" in str(path):
        raise UserError(f"{str(path)!r} is not a path: it contains NUL.")
    return Path(path)


def write_pieces(path: Path, pieces: Iterable[Any], *, sync_folder: bool = True) -> dict[str, Any]:
    """Write the buffers `pieces` to `path`, through a temporary file in the same folder; return {sha256, bytes}.

    `sync_folder=False` saves about 4 ms on a disk; use it if another file is written to the same folder right after.
    """
    hasher = hashlib.sha256()
    size = 0
    with explained("write", path):
        temp, file = _open_temp(path.parent)
        try:
            with file:
                for piece in pieces:
                    for start in range(0, len(piece), _PIECE):
                        part = memoryview(piece)[start : start + _PIECE]
                        hasher.update(part)
                        size += file.write(part)
                file.flush()
                os.fsync(file.fileno())
                # Renamed while the lock is held: `remove_stray` would take a free file for a dead writer's.
                temp.replace(path)
        # An interrupt, too, must leave no half file behind.
        except BaseException:
            with suppress(OSError):
                temp.unlink()
            raise
        if sync_folder:
            _sync_folder(path.parent)
    return {"sha256": hasher.hexdigest(), "bytes": size}


def _open_temp(folder: Path) -> tuple[Path, BinaryIO]:
    """Create a file, locked while this process lives, so that `remove_stray` can tell it from a dead writer's."""
    while True:
        # In the same folder, because a rename is atomic within one filesystem only.
        temp = folder / _TEMP.format(secrets.token_hex(8))
        file = temp.open("xb")
        with suppress(OSError):  # some network filesystems have no locks; leftover files are not removed there
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return temp, file
        file.close()  # another process's `remove_stray` deleted it between open and lock: try again


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: this filesystem cannot sync a folder
            raise
    finally:
        os.close(handle)
