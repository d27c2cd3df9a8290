"""Which runs have fallen silent: neither their metrics nor their log grow any more."""

import time
from pathlib import Path

from ablatio.sweep.ledger import Claim
from ablatio.sweep.worker import LOG

WRITTEN = ("metrics.csv", LOG)
Signs = tuple[tuple[int, int], ...]


class HangDetector:
    """Looks at the files of a run, and remembers for how long they have not changed.

    It goes by this machine's own clock: the times of files may come from another one.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.seen: dict[Claim, tuple[Signs, float]] = {}

    def gone(self, claim: Claim, run: Path) -> bool:
        """Whether the attempt, in the folder `run`, has written nothing for so many seconds."""
        if self.seconds is None:
            return False
        signs, now = tuple(map(_sign, (run / name for name in WRITTEN))), time.monotonic()
        before, since = self.seen.get(claim, (None, now))
        if signs != before:
            self.seen[claim] = signs, now
            return False
        return now - since >= self.seconds


def _sign(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return found.st_size, found.st_mtime_ns
