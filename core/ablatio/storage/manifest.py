"""Manifest of a checkpoint: a JSON file with the digests of the step's files and of itself."""

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
    """Return the seal of a manifest: the sha256 of its content, in hexadecimal."""
    return hashlib.sha256(text).hexdigest()


def sealed(text: bytes) -> bytes:
    """Return the bytes of a sealed file: JSON whose first value is the sha256 of the second.

    Given the content, every byte of the file is determined, so any change is detected.
    """
    return b'{"sha256": "' + seal(text).encode() + b'",\n"content": ' + text + b"}\n"


def read_manifest(path: Path, step: int) -> tuple[dict[str, Any], str]:
    """Read and verify the manifest of `step`; return it and its seal.

    Raises DamagedFile if it was changed or belongs to another step, UserError if it has a newer format.
    """
    manifest, known = read_sealed(path)
    with understood(path):
        came = manifest["format"]
        if came != FORMAT:
            raise UserError(
                f"{path} has format {came!r}, this ablatio reads {FORMAT}.\n    try: pip install -U ablatio"
            )
        # The digest holds for a renamed file as well, so that the number in the name is compared with the content.
        if manifest["step"] != step or manifest["revision"] not in (0, 1):
            raise DamagedFile(f"{path.name} belongs to step {manifest['step']}: it was copied or renamed.")
    return manifest, known


def read_sealed(path: Path) -> tuple[Any, str]:
    """Read a sealed file; return its content and its seal.  Raises DamagedFile if it was changed."""
    with readable(path):
        raw = path.read_bytes()
    text = raw[len(sealed(b"")) - 2 : -2]  # what `sealed` wraps; any other byte is checked by the comparison
    if raw != sealed(text):
        raise DamagedFile(f"{path.name} does not match its own digest: it changed after it was written.")
    with understood(path):
        return json.loads(text), seal(text)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Report a file that is missing or unreadable (I/O error) as DamagedFile, other OSErrors as EnvironmentFault."""
    with explained("read", path):
        try:
            yield
        except OSError as error:
            # missing, unreadable on the disk, or something other than a file
            if error.errno not in (errno.ENOENT, errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ELOOP):
                raise
            raise DamagedFile(f"{path.name} cannot be read ({error.strerror}).") from error


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Report unexpected content as DamagedFile: JSON with a correct digest need not have been written by ablatio."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        came = f"{type(error).__name__}: {error}"
        raise DamagedFile(f"{path.name} is not a manifest that ablatio has written ({came}).") from error
