"""Where things lie on this machine."""

import contextlib
import os
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def shipped(folder: str) -> Path:
    """`conf` or `sweeps`: inside the installed package, or beside `core/` in a checkout."""
    return next((p for p in (HERE / folder, HERE.parents[1] / folder) if p.is_dir()), HERE / folder)


def cache_root() -> Path:
    """$ABLATIO_CACHE, else $XDG_CACHE_HOME/ablatio, else ~/.cache/ablatio, else one of this user's in the temp dir."""
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
    # Somebody else may have made it first, to put files of theirs before us.
    return shared if shared.lstat().st_uid == os.getuid() else Path(tempfile.mkdtemp(prefix="ablatio-"))
