"""JSON file with the results of test runs: date, commit, counts and seconds of each test function.

`make test-all` takes hours, so it may be run in parts: `pytest --select all tests/parts --results FILE` replaces the
results of the functions that it has run, and leaves those of the others in the file, each with its own date and commit.
"""

import json
import platform
import subprocess
import time
from collections import Counter, defaultdict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

OUTCOMES = ("passed", "failed", "skipped")


class ResultsFile:
    """Pytest plugin of the controlling process (not of xdist workers) that writes `path` when the session ends."""

    def __init__(self, path: Path, root: Path) -> None:
        """root: the folder that the ids of tests start from"""
        self.path, self.root, self.start = path, root, time.monotonic()
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: dict[str, list[str]] = defaultdict(list)
        self.recorded: dict[str, dict[str, Any]] = defaultdict(dict)  # what tests have recorded, by parameters

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.split("[")[0]
        self.seconds[name] += report.duration
        if report.when == "call" or report.outcome != "passed":  # a passed setup or teardown is not an outcome
            self.outcomes[name][report.outcome] += 1
        if report.when == "call" and report.user_properties:
            self.recorded[name][report.nodeid.removeprefix(name).strip("[]")] = dict(report.user_properties)
        if report.outcome == "failed":
            self.failed[name].append(f"{report.nodeid} ({report.when})")

    def pytest_sessionfinish(self) -> None:
        tests = {**self._of_earlier_runs(), **{name: self._of(name) for name in self.outcomes}}
        counts = Counter[str]()
        for entry in tests.values():
            counts.update({outcome: entry[outcome] for outcome in OUTCOMES if outcome in entry})
        found = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "counts": dict(sorted(counts.items())),
            "seconds": round(sum(entry["seconds"] for entry in tests.values()), 1),
            "failed": sorted(case for entry in tests.values() for case in entry.get("failures", ())),
            "last_run": {**self.when, "wall_seconds": round(time.monotonic() - self.start, 1)},
            "tests": {name: tests[name] for name in sorted(tests)},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    def _of_earlier_runs(self) -> dict[str, Any]:
        """The entries of the file, but those of test files that are gone; none if there is no results file yet."""
        if not self.path.exists():
            return {}
        tests: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))["tests"]
        return {name: entry for name, entry in tests.items() if (self.root / name.split("::")[0]).exists()}

    def _of(self, name: str) -> dict[str, Any]:
        found = dict(sorted(self.outcomes[name].items())) | {"seconds": round(self.seconds[name], 2)} | self.when
        if name in self.failed:
            found["failures"] = self.failed[name]
        return found | ({"recorded": self.recorded[name]} if name in self.recorded else {})

    @cached_property
    def when(self) -> dict[str, Any]:
        """Date and commit; `changed_files` counts files that differ from the commit."""
        date = datetime.now(UTC).isoformat(timespec="seconds")
        found = {"date": date, "commit": self._git("rev-parse", "HEAD")}
        changed = len(self._git("status", "--porcelain", "--untracked-files=no").splitlines())
        return found | ({"changed_files": changed} if changed else {})

    def _git(self, *words: str) -> str:
        """Output of a git command; empty outside a repository."""
        done = subprocess.run(["git", *words], cwd=self.root, capture_output=True, text=True, check=False)
        return done.stdout.strip()
