"""Watch folders of runs, and analyze them again when a file in them that a report reads has changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ablatio.errors import AblatioError
from ablatio.report.escape import visible
from ablatio.report.read.stages import RECIPE
from ablatio.sweep.study import JOBS, LEDGER, RUNS, STUDY
from ablatio.training.evaluation.values_file import VALUES

if TYPE_CHECKING:
    from ablatio.report.analysis.findings import Findings

# Files that change a report.
WATCHED = (STUDY, LEDGER, "config.json", RECIPE, "metrics.csv", "summary.json", "error.txt", VALUES)
LEAST_SECONDS = 2.0  # between two analyses, or twice as long as the last one took


class WatchedReport:
    """Findings of folders, which `refresh` brings up to date.

    load     analyzes the folders; an error after the first time leaves the last findings standing
    seen     number that changes with the findings
    trouble  first line of the error of the last analysis; empty if there was none
    """

    def __init__(self, folders: Sequence[Path], load: Callable[[], Findings]) -> None:
        self.folders, self.load = [Path(f) for f in folders], load
        self.lock = threading.Lock()
        self.trouble = ""
        self._analyze(fingerprint(self.folders))

    def _analyze(self, now: int) -> None:
        start = time.monotonic()
        self.findings = self.load()
        self.seen, self.at = now, time.monotonic()
        # In proportion to the work, so that a large study does not keep a core busy with its own report.
        self.pause = LEAST_SECONDS * max(1.0, self.at - start)

    def refresh(self, *, wait: bool = True) -> bool:
        """Analyze the folders again if they have changed; return True if they had.

        wait  do nothing if the last analysis is just over
        """
        with self.lock:
            if wait and time.monotonic() - self.at < self.pause:
                return False
            if (now := fingerprint(self.folders)) == self.seen:
                self.at = time.monotonic()
                return False
            try:
                self._analyze(now)
                self.trouble = ""
            except AblatioError as error:
                self.trouble = visible(str(error).splitlines()[0])
                self.seen, self.at = now, time.monotonic()
            return True


def fingerprint(folders: Sequence[Path]) -> int:
    """A number that changes when a watched file in the folders changes."""
    found: list[tuple[str, int, int]] = []
    for folder in folders:
        places = [folder, *folder.glob("*"), *(folder / RUNS).glob("*")]
        for path in (p / name for p in places for name in WATCHED):
            with suppress(OSError):
                stat = path.stat()
                found.append((str(path), stat.st_mtime_ns, stat.st_size))
        with suppress(OSError):
            # A new job changes the time of its folder; thousands of job files need not be looked at.
            found.append((str(folder), (folder / JOBS).stat().st_mtime_ns, 0))
    # JavaScript keeps whole numbers up to 2^53 exactly.
    return abs(hash(tuple(found))) % (1 << 52)
