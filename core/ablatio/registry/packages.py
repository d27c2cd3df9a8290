"""Packages that a part needs beyond those of its distribution, known without importing the part.

    packages = ("wandb=ablatio[wandb]",)   # class attribute of a part: the module, and what pip installs

Parts of every kind may declare them.  They are looked for before a run has a folder.
"""

import importlib.util
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ablatio.errors import Problem
from ablatio.registry.part_spec import ContractError, PartSpec

FACT = "packages"
_FORM = re.compile(r"(?P<module>[A-Za-z_][\w.]*)=(?P<requirement>[A-Za-z0-9][\w.-]*(\[[\w,-]+\])?)")


def declared(value: Any) -> list[str]:
    """Check a part's `packages`.  Raises ContractError if an item is not `module=requirement`."""
    items = [value] if isinstance(value, str) else list(value or ())
    for item in items:
        if not isinstance(item, str) or not _FORM.fullmatch(item):
            raise ContractError(f"packages has {item!r}; 'module=what pip installs' is expected: 'ray=ray'")
    return items


def missing(parts: Iterable[PartSpec]) -> Iterator[Problem]:
    """Yield a problem for each part whose packages are not all installed."""
    for part in parts:
        for item in part.facts.get(FACT, ()):
            module, _, requirement = str(item).partition("=")
            if not _is_installed(module):
                name = module.partition(".")[0]
                yield Problem(part.kind, f"{part.name} needs the package {name}, which is not installed",
                              f"pip install {_quoted(requirement)}")  # fmt: skip


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package is missing, or the module was imported without a spec
        return False


def _quoted(requirement: str) -> str:
    return f"'{requirement}'" if "[" in requirement else requirement
