"""Locations of shipped files and of the cache on this machine."""

import contextlib
import os
import shlex
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def shell_word(path: str | Path) -> str:
    """The path as one word of a shell command that a message shows; quoted only if necessary."""
    return shlex.quote(str(path))


def shipped(folder: str) -> Path:
    """Return the path of `conf` or `sweeps`: inside the installed package, or beside `core/` in a checkout."""
    return next((p for p in (HERE / folder, HERE.parents[1] / folder) if p.is_dir()), HERE / folder)


def cache_root() -> Path:
    """Return the cache folder: the first usable of these.

    $ABLATIO_CACHE, $XDG_CACHE_HOME/ablatio, ~/.cache/ablatio (if the home is writable), a folder of this user in the
    temporary directory.
    """
    if folder := os.environ.get("ABLATIO_CACHE"):
        return Path(folder).expanduser()
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "ablatio"
    home = os.environ.get("HOME")
    if home and os.access(home, os.W_OK):
        return Path(home) / ".cache" / "ablatio"
    shared = Path(tempfile.gettempdir()) / f"ablatio-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        shared.mkdir(mode=0o700)
    # Another user may have created it first, to feed us their files: then use a fresh private folder.
    return shared if shared.lstat().st_uid == os.getuid() else Path(tempfile.mkdtemp(prefix="ablatio-"))
