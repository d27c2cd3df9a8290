"""Contract suites: the promises of each kind, tried on every registered part, ours and a plugin's alike.

ablatio check my-norms                              # the parts of one distribution
pytest --pyargs ablatio.testing.suites              # every part that is registered
globals().update(ablatio.testing.contract_tests())  # in a test module: the same, among your own tests

A plugin that adds a kind brings its suite: modules `test_*.py` in the package `<plugin>.suites`, each with
`KINDS = ("its_kind",)` and tests that take `part`.  They run on the parts that other distributions add to it, too.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ablatio.errors import UserError, did_you_mean
from ablatio.registry import discovery
from ablatio.registry.catalogue import plugin_sources, suites_of

SUITES = "ablatio.testing.suites"
FAILED = 2


def contract_tests() -> dict[str, Callable[..., None]]:
    """All tests of all suites by name; a module that puts them in its namespace runs them.

    `ABLATIO_DIST = "my-norms"` in that module keeps them to the parts of one distribution.
    """
    found: dict[str, Callable[..., None]] = {}
    for package in suite_packages():
        folder = Path(str(importlib.import_module(package).__file__)).parent
        for path in sorted(folder.glob("test_*.py")):
            module = importlib.import_module(f"{package}.{path.stem}")
            tests = {k: v for k, v in vars(module).items() if k.startswith("test_")}
            found |= {f"{path.stem}_{k.removeprefix('test_')}": v for k, v in tests.items()}
    return found


def suite_packages() -> list[str]:
    """The packages of suites: ours, and those that plugins bring for kinds of their own (`<package>.suites`)."""
    return [SUITES, *suites_of(discovery.sources())]


def check(dist: str) -> int:
    """Run the suites on the parts of one distribution, in a process of its own; 0 when all pass, else 2."""
    dist = installed(dist)
    if importlib.util.find_spec("pytest") is None:
        raise UserError("the suites run under pytest, which is not installed\n    try: pip install 'ablatio[test]'")
    failures = [f for f in discovery.failures() if f.distribution.name == dist]
    for failure in failures:
        print(failure, flush=True)
    if failures:
        return FAILED
    options = ["--ablatio-dist", dist, "-q", "--no-header", "--tb=short", "-W", "error", "-p", "no:cacheprovider"]
    # Nothing of the caller's pytest settings or other plugins has a say in the verdict.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
        command = [sys.executable, "-m", "pytest", "-p", "ablatio", "-c", "pytest.ini", "--pyargs", *options]
        run = subprocess.run([*command, *suite_packages()], cwd=folder, env=environment, check=False)
    return FAILED if run.returncode else 0


def installed(dist: str) -> str:
    """The distribution's own spelling of its name; UserError when it brings no plugin."""
    names = sorted({s.distribution.name for s in plugin_sources()})
    for name in names:
        if canonical(name) == canonical(dist):
            return name
    raise UserError(
        f"no installed distribution `{dist}` brings parts{did_you_mean(dist, names)}\n"
        f"    with parts: {', '.join(names) or 'none'}\n    try: ablatio check {names[0] if names else 'ablatio'}"
    )


def canonical(name: str) -> str:
    """A distribution's name as the index compares it: lower case, one dash."""
    return re.sub(r"[-_.]+", "-", name).lower()
