"""The manifest of a checkpoint: one JSON file that says what belongs to the step, and proves it."""

import errno
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ablatio.errors import DamagedFile, UserError
from ablatio.storage.atomic_write import explained

FORMAT = 1


def seal(text: bytes) -> str:
    """What identifies a manifest: sha256 of its content."""
    return hashlib.sha256(text).hexdigest()


def sealed(text: bytes) -> bytes:
    """The manifest file: JSON whose first value is the digest of the second, and no byte that is not fixed by it."""
    return b'{"sha256": "' + seal(text).encode() + b'",\n"content": ' + text + b"}\n"


def read_manifest(path: Path, step: int) -> tuple[dict[str, Any], str]:
    """The manifest, whole and in its place, and its seal. Raises DamagedFile; UserError if it is of a newer format."""
    with readable(path):
        raw = path.read_bytes()
    text = raw[len(sealed(b"")) - 2 : -2]
    if raw != sealed(text):
        raise DamagedFile(f"{path.name} does not match its own digest: it changed after it was written.")
    with understood(path):
        manifest = json.loads(text)
        came = manifest["format"]
        if came != FORMAT:
            raise UserError(
                f"{path} has format {came!r}, this ablatio reads {FORMAT}.\n    try: pip install -U ablatio"
            )
        if manifest["step"] != step or manifest["revision"] not in (0, 1):
            raise DamagedFile(f"{path.name} belongs to step {manifest['step']}: it was copied or renamed.")
    return manifest, seal(text)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What the disk cannot give back is damage; what it will not give (permission) is an EnvironmentFault."""
    with explained("read", path):
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EIO):
                raise
            raise DamagedFile(f"{path.name} cannot be read ({error.strerror}).") from error


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """A manifest with a right digest may still be anybody's JSON: what does not fit is damage, not a traceback."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        came = f"{type(error).__name__}: {error}"
        raise DamagedFile(f"{path.name} is not a manifest that ablatio has written ({came}).") from error
