"""`pytest --select`: nothing is lost from `all`, and the samples are the same everywhere."""

import json
from pathlib import Path

import pytest
from helpers import warm_python

TESTS = Path(__file__).parents[1]
FILE = """
import pytest

@pytest.mark.matrix
@pytest.mark.parametrize("n", range(20))
def test_matrix(n): pass

@pytest.mark.parametrize("n", range(5))
def test_plain(n): pass

@pytest.mark.slow
def test_slow(): pass

@pytest.mark.matrix
def test_one(): pass

@pytest.mark.long
def test_long(): pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the conftest, the helpers and the settings of these tests, and one file of tests."""
    (tmp_path / "tests").mkdir()
    for name in ("conftest.py", "helpers"):
        (tmp_path / "tests" / name).symlink_to(TESTS / name)
    (tmp_path / "pyproject.toml").symlink_to(TESTS.parent / "pyproject.toml")
    (tmp_path / "tests/test_some.py").write_text(FILE, encoding="utf-8")
    return tmp_path


def run(folder: Path, select: str, cache: Path) -> dict[str, int]:
    """Passed tests by function.  cache: pytest's, with the catalogue of parts"""
    words = ["--select", select, "--results", "found.json", "tests/test_some.py"]
    imported = "ignore::pytest.PytestAssertRewriteWarning"  # by the warm process, so pytest cannot rewrite them
    words += ["-o", f"cache_dir={cache}", "-W", imported]
    done = warm_python.run(["-m", "pytest", *words], cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    assert found["failed"] == []
    return {name.split("::")[1]: counts["passed"] for name, counts in found["tests"].items()}


@pytest.mark.parametrize(
    "select, expected",
    [
        ("all", {"test_matrix": 20, "test_plain": 5, "test_slow": 1, "test_one": 1, "test_long": 1}),
        ("usual", {"test_matrix": 1, "test_plain": 5, "test_slow": 1, "test_one": 1}),
        ("fast", {"test_plain": 2}),
    ],
)
def test_each_selection_runs_what_it_says(
    folder: Path, select: str, expected: dict[str, int], pytestconfig: pytest.Config
) -> None:
    cache = pytestconfig.rootpath / pytestconfig.getini("cache_dir")
    assert run(folder, select, cache) == expected
