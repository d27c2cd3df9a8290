"""`pytest --results FILE`: a run of a part of the tests replaces its own results, and keeps those of the others."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.results import ResultsFile


def report(nodeid: str, outcome: str = "passed") -> pytest.TestReport:
    made: Any = {"location": ("", 0, ""), "keywords": {}, "longrepr": None, "when": "call", "duration": 0.5}
    return pytest.TestReport(nodeid, outcome=outcome, **made)


def written(folder: Path, *reports: pytest.TestReport) -> dict[str, Any]:
    results = ResultsFile(folder / "found.json", folder)
    for each in reports:
        results.pytest_runtest_logreport(each)
    results.pytest_sessionfinish()
    return dict(json.loads((folder / "found.json").read_text()))


def test_parts_of_the_tests_may_run_one_after_another(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("def test_one(): ...\ndef test_two(): ...\n")
    (tmp_path / "test_b.py").write_text("class TestB:\n    def test_three(self): ...\n")
    first = report("test_a.py::test_one[x]", "failed")
    found = written(tmp_path, first, report("test_a.py::test_one[y]"), report("test_a.py::test_two"))
    assert found["counts"] == {"failed": 1, "passed": 2} and found["failed"] == ["test_a.py::test_one[x] (call)"]
    found = written(tmp_path, report("test_b.py::TestB::test_three"))
    assert found["counts"] == {"failed": 1, "passed": 3} and found["seconds"] == 2
    assert found["failed"] == ["test_a.py::test_one[x] (call)"]
    found = written(tmp_path, report("test_a.py::test_one[x]"), report("test_a.py::test_one[y]"))
    assert found["counts"] == {"passed": 4} and found["failed"] == []


def test_a_file_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("def test_one(): ...\n")
    written(tmp_path, report("test_a.py::test_one"), report("test_c.py::test_old"))
    found = written(tmp_path, report("test_a.py::test_one"))
    assert list(found["tests"]) == ["test_a.py::test_one"] and found["counts"] == {"passed": 1}
