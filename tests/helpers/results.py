"""JSON file with the results of a test run: date, commit, versions, counts and seconds per test function."""

import json
import platform
import subprocess
import time
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


class ResultsFile:
    """Pytest plugin of the controlling process (not of xdist workers) that writes `path` when the session ends."""

    def __init__(self, path: Path) -> None:
        self.path, self.start = path, time.monotonic()
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: list[str] = []
        self.recorded: dict[str, dict[str, Any]] = defaultdict(dict)  # what tests have recorded, by parameters

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.split("[")[0]
        self.seconds[name] += report.duration
        if report.when == "call" or report.outcome != "passed":  # a passed setup or teardown is not an outcome
            self.outcomes[name][report.outcome] += 1
        if report.when == "call" and report.user_properties:
            self.recorded[name][report.nodeid.removeprefix(name).strip("[]")] = dict(report.user_properties)
        if report.outcome == "failed":
            self.failed.append(f"{report.nodeid} ({report.when})")

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        counts = sum(self.outcomes.values(), Counter[str]())
        found = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": _git("rev-parse", "HEAD"),
            "changed_files": len(_git("status", "--porcelain").splitlines()),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "exit_status": int(exitstatus),
            "wall_seconds": round(time.monotonic() - self.start, 1),
            "counts": dict(sorted(counts.items())),
            "failed": sorted(self.failed),
            "tests": {name: self._of(name) for name in sorted(self.outcomes)},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    def _of(self, name: str) -> dict[str, Any]:
        counts = dict(sorted(self.outcomes[name].items())) | {"seconds": round(self.seconds[name], 2)}
        return counts | ({"recorded": self.recorded[name]} if name in self.recorded else {})


def _git(*words: str) -> str:
    """Output of a git command; empty outside a repository."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
