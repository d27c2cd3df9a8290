"""Detects hung runs: neither their metrics nor their log grow."""

import time
from pathlib import Path

from ablatio.sweep.ledger import Claim
from ablatio.sweep.worker import LOG

WRITTEN = ("metrics.csv", LOG)
Signs = tuple[tuple[int, int], ...]


class HangDetector:
    """Remembers for how long the files of each run have not changed, by this machine's own clock.

    The clock of another machine may have written the file times, so they are only compared for equality.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.seen: dict[Claim, tuple[Signs, float]] = {}

    def gone(self, claim: Claim, run: Path) -> bool:
        """True if the attempt has written nothing into `run` for the allowed time."""
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
