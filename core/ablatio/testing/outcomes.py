"""Outcomes of contract tests as JSON lines, written by the process that runs them and read by `ablatio check`."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ablatio.testing import Advice

if TYPE_CHECKING:
    import pytest

PART = re.compile(r"(?<=\[)[a-z0-9_]+=[\w-]+?(?=[]-]|\.)")  # `norm=mine` in `test_x[norm=mine.eps]`
DISTRIBUTION = "the distribution"
State = Literal["passed", "failed", "warned", "skipped"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one contract test for one part.

    test    pytest's id of the test
    suite   module of the suite: test_common
    check   name of the test without `test_`
    reason  first line of why it failed, warned or was skipped
    detail  all that pytest says of a failure
    """

    test: str
    part: str
    suite: str
    check: str
    state: State
    reason: str = ""
    detail: str = ""

    @property
    def promise(self) -> str:
        """The test's name as a sentence: `keeps shape and dtype`."""
        return self.check.replace("_", " ")


class OutcomeWriter:
    """Pytest plugin that appends each outcome to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Write that a suite cannot be imported: a failure of the distribution."""
        if report.failed:
            text = str(report.longrepr)
            lines = [line for line in text.splitlines() if line.strip()] or [""]
            self._write(report.nodeid, "failed", lines[-1], text)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the outcome of a test: of its call, and of its set-up or clean-up if that fails or skips it."""
        if report.when == "call" or not report.passed:
            self._write(report.nodeid, *self._said(report))

    def pytest_warning_recorded(self, warning_message: Any, nodeid: str) -> None:
        """Write the advice that a test gave; pytest calls this after the test."""
        if issubclass(warning_message.category, Advice):
            self._write(nodeid, "warned", str(warning_message.message))

    def _said(self, report: pytest.TestReport) -> tuple[State, str, str]:
        if report.skipped:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            return "skipped", why.removeprefix("Skipped: "), ""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            text = crash.message if crash else report.longreprtext
            return "failed", _first(text), report.longreprtext
        return "passed", "", ""

    def _write(self, test: str, state: State, reason: str, detail: str = "") -> None:
        place, _, name = test.partition("::")
        found = PART.search(name)
        check = name.partition("[")[0].removeprefix("test_") or "import of the suite"
        outcome = Outcome(test, found[0] if found else DISTRIBUTION, Path(place).stem, check, state, reason, detail)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")


def _first(text: str) -> str:
    """The message of an assertion, without Python's name for it and without what pytest adds about values."""
    plain = re.sub(r"^(AssertionError|Failed): ", "", text.strip())
    return plain.split("\nassert ", 1)[0].strip()


def read(path: Path) -> list[Outcome]:
    """Outcomes in a file, one for each test: a failure counts, else the last."""
    found: dict[str, Outcome] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        outcome = Outcome(**json.loads(line))
        if outcome.test not in found or found[outcome.test].state != "failed":
            found[outcome.test] = outcome
    return [*found.values()]
