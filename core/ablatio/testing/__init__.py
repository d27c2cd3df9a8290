"""Contract suites: tests of each kind's contract, run on every registered part of ablatio and of plugins.

ablatio check my-norms                              # the parts of one distribution
pytest --pyargs ablatio.testing.suites              # every registered part
globals().update(ablatio.testing.contract_tests())  # in a test module: the same tests, among your own

A plugin that adds a kind provides its suite: modules `test_*.py` in the package `<plugin>.suites`, each with
`KINDS = ("its_kind",)` and tests that take `part`.  They also run on parts that other distributions add to the kind.
"""

import importlib
import re
from collections.abc import Callable
from pathlib import Path

from ablatio.errors import UserError, did_you_mean
from ablatio.registry import discovery
from ablatio.registry.catalogue import plugin_sources, suites_of

SUITES = "ablatio.testing.suites"


class Advice(UserWarning):
    """What a contract test advises an author to do; it breaks no contract."""


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
