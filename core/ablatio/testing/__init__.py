"""Contract suites: tests of each kind's contract, run on every registered part of ablatio and of plugins.

ablatio check my-norms                              # the parts of one distribution
pytest --pyargs ablatio.testing.suites              # every registered part
globals().update(ablatio.testing.contract_tests())  # in a test module: the same tests, among your own

A plugin that adds a kind provides its suite: modules `test_*.py` in the package `<plugin>.suites`, each with
`KINDS = ("its_kind",)` and tests that take `part`.  They also run on parts that other distributions add to the kind.
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
from ablatio.registry.parts_file import PartsFile

SUITES = "ablatio.testing.suites"
FAILED = 2


def contract_tests() -> dict[str, Callable[..., None]]:
    """All tests of all suites by name; a module that adds them to its namespace runs them.

    `ABLATIO_DIST = "my-norms"` in that module restricts them to the parts of one distribution.
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
    """Packages of suites: ablatio's, and those that plugins provide for their own kinds (`<package>.suites`).

    Not called `suites`: importing the subpackage of that name would replace the function.
    """
    return [SUITES, *suites_of(discovery.sources())]


def check(dist: str) -> int:
    """Run the suites on the parts of one distribution in a separate process; returns 0 if all pass, else 2."""
    dist = installed(dist)
    _refuse_without_pytest()
    failures = [f for f in discovery.failures() if f.distribution.name == dist]
    for failure in failures:
        print(failure, flush=True)
    return FAILED if failures else _run_suites("--ablatio-dist", dist)


def check_file(file: PartsFile) -> int:
    """Run the suites on the parts of a file of parts in a separate process; returns 0 if all pass, else 2."""
    _refuse_without_pytest()
    return _run_suites("--ablatio-parts", str(Path(file.path).absolute()))


def _refuse_without_pytest() -> None:
    if importlib.util.find_spec("pytest") is None:
        raise UserError("the suites run under pytest, which is not installed\n    try: pip install 'ablatio[test]'")


def _run_suites(*which: str) -> int:
    options = [*which, "-q", "--no-header", "--tb=short", "-W", "error", "-p", "no:cacheprovider"]
    # The caller's pytest settings and other plugins must not influence the result.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
        command = [sys.executable, "-m", "pytest", "-p", "ablatio", "-c", "pytest.ini", "--pyargs", *options]
        run = subprocess.run([*command, *suite_packages()], cwd=folder, env=environment, check=False)
    return FAILED if run.returncode else 0


def installed(dist: str) -> str:
    """Name of an installed distribution in its own spelling; raises UserError if it provides no plugin."""
    names = sorted({s.distribution.name for s in plugin_sources()})
    for name in names:
        if canonical(name) == canonical(dist):
            return name
    raise UserError(
        f"no installed distribution `{dist}` provides parts{did_you_mean(dist, names)}\n"
        f"    with parts: {', '.join(names) or 'none'}\n    try: ablatio check {names[0] if names else 'ablatio'}"
    )


def canonical(name: str) -> str:
    """Normalized name of a distribution, as package indexes compare it: lower case, single dashes."""
    return re.sub(r"[-_.]+", "-", name).lower()
