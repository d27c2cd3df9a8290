"""Recorder of the pytest plugin: which parts agreed with which oracles."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ablatio.registry.registry import REGISTRIES, PartSpec

MARK = "oracle"


def describe_marks(items: list[pytest.Item]) -> None:
    """Add part and oracle to the report of each oracle test; reports also travel between processes."""
    for item in items:
        for mark in item.iter_markers(MARK):
            part, against = mark.args
            for entry in _parts(part, item):
                item.user_properties.append((MARK, [f"{entry.kind}={entry.name}", against]))


def _parts(said: str, item: pytest.Item) -> Iterator[PartSpec]:
    """The named part; for a kind, the parts named by the test's parameter `name` or, without it, by any parameter."""
    kind, _, name = said.partition("=")
    options = {e.name: e for e in REGISTRIES[kind]} if kind in REGISTRIES else {}  # loads the plugins
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    names = [name] if name else _strings(parameters.get("name", parameters))
    found = [options[n] for n in dict.fromkeys(names) if n in options]
    if name and not found:
        raise pytest.UsageError(f"{item.nodeid}: its oracle mark names {said}, which is not registered")
    yield from found


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [s for v in value.values() for s in _strings(v)]
    return [s for v in value for s in _strings(v)] if isinstance(value, list | tuple) else []


class Recorder:
    """Collects the oracles of passing tests and writes them to a file, except for parts with a failing one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.passed: dict[str, set[str]] = {}
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the result of an oracle test."""
        for key, value in report.user_properties:
            if key == MARK and report.failed:
                self.failed.add(value[0])  # type: ignore[index]
            elif key == MARK and report.when == "call" and report.passed:
                self.passed.setdefault(value[0], set()).add(value[1])  # type: ignore[index]

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Write the records unless the session was interrupted."""
        if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            return  # the records of an interrupted session would be incomplete
        records = {}
        for label in sorted(self.passed.keys() - self.failed):
            kind, _, name = label.partition("=")
            entry = REGISTRIES[kind][name]  # loads the plugins, where other processes ran the tests
            records[label] = {"against": sorted(self.passed[label]), "digest": entry.digest}
        self.path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
