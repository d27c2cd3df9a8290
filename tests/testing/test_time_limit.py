"""A test that hangs fails with its name, and the tests after it run: the settings of pytest in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILE = """
import time

def test_before(): pass

def test_that_hangs(): time.sleep(600)

def test_after(): pass
"""


@pytest.mark.slow
def test_a_hanging_test_fails_with_its_name(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    assert 0 < float(pytestconfig.getini("faulthandler_timeout")) <= 3600
    (tmp_path / "pyproject.toml").symlink_to(pytestconfig.rootpath / "pyproject.toml")
    (tmp_path / "test_some.py").write_text(FILE, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=1"]
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run([*command, "test_some.py"], cwd=tmp_path, env=outer, capture_output=True, text=True)
    assert done.returncode == 1
    assert "crashed while running 'test_some.py::test_that_hangs'" in done.stdout
    assert "1 failed, 2 passed" in done.stdout
    assert "in test_that_hangs" in done.stderr
