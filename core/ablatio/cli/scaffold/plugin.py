"""`ablatio new-plugin NAME`: creates a distribution with one part, one experiment and their tests to start from."""

import importlib.util
import keyword
import re
import sys
from dataclasses import asdict
from pathlib import Path
from string import Template

from ablatio.cli.scaffold.templates import STARTS
from ablatio.errors import EnvironmentFault, UserError, did_you_mean
from ablatio.registry.registry import REGISTRIES

DISTRIBUTION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")

PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "$dist"
version = "0.1.0"
description = "Parts for ablatio."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["ablatio>=0.1"]

[project.optional-dependencies]
test = ["ablatio[test]"]

[project.entry-points."ablatio.plugins"]
$package = "$package"

[tool.hatch.build.targets.wheel]
packages = ["$package"]

[tool.pytest.ini_options]
addopts = "--import-mode=importlib -q"
testpaths = ["tests"]
filterwarnings = ["error"]
"""

README = """\
# $dist

Parts for ablatio.

    pip install -e .
    ablatio check $dist                         # contract tests of these parts
    ablatio show $kind=$package
    ablatio train -m $tries seed=1,2,3
    ablatio train experiment=$package

Each module in `$package/` is imported. Each registered class or function becomes an option, and each parameter right of
its bare `*` a knob (`ablatio show $kind=$package`); parameters left of it are passed by the framework. YAML files in
`$package/conf/experiment/` become `experiment=NAME`.
"""

INIT = '''\
"""Parts for ablatio.  Every module of this package is imported, so that a new part only needs a new file."""
'''

EXPERIMENT = """\
# @package _global_
# ablatio train experiment=$package
defaults:
${defaults}
model: {d_model: 64, n_layers: 2}
train: {steps: 200}
"""

TESTS = '''\
"""Contract tests of the kinds on the parts of this distribution; then tests of each part's own properties."""

$imports
from ablatio.testing import contract_tests

ABLATIO_DIST = "$dist"
globals().update(contract_tests())


$test'''

FILES = {
    "pyproject.toml": PYPROJECT,
    "README.md": README,
    "$package/__init__.py": INIT,
    "$package/$module.py": "$part",
    "$package/conf/experiment/$package.yaml": EXPERIMENT,
    "tests/test_$package.py": TESTS,
}


def new_plugin(name: str, folder: Path, kind: str = "norm") -> Path:
    """Write the distribution `name` with one part of `kind` into `folder`/`name`, and return that path.

    Raises UserError if the name is invalid or taken, or the path exists; EnvironmentFault if it cannot be written.
    """
    if kind not in STARTS:
        near, known = did_you_mean(kind, list(STARTS)), ", ".join(STARTS)
        raise UserError(
            f"there is no template for --kind {kind}{near or ';'} there are {known}; write other kinds like them\n"
            f"    try: ablatio new-plugin {name} --kind norm"
        )
    package = import_name(name, kind)
    place = folder.expanduser() / name
    if place.exists():
        raise UserError(f"{place} already exists and is not overwritten\n    try: ablatio new-plugin {name}-2")
    own = asdict(STARTS[kind])
    inner = {key: Template(text).substitute(package=package) for key, text in own.items()}
    words = {"dist": name, "package": package, "kind": kind, **inner}
    try:
        for path, text in FILES.items():
            target = place / Template(path).substitute(words)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(Template(text).substitute(words), encoding="utf-8")
    except OSError as error:
        raise EnvironmentFault(f"{place} cannot be written: {error.strerror}") from None
    return place


def import_name(name: str, kind: str = "norm") -> str:
    """Import name of a distribution `name`; UserError if either name is invalid or taken."""
    if not DISTRIBUTION.fullmatch(name):
        raise UserError(
            f"{name[:80]!r} is not a valid distribution name; expected up to 64 letters, digits, `-`, `_` and `.`, "
            f"with a letter or digit at both ends\n    try: ablatio new-plugin {_repaired(name)}"
        )
    package = re.sub(r"[-_.]+", "_", name).lower()
    if not package.isidentifier() or keyword.iskeyword(package):
        raise UserError(
            f"{name!r} would be imported as `{package}`, which is not a valid name in Python\n"
            f"    try: ablatio new-plugin {_repaired(name)}"
        )
    if package in sys.stdlib_module_names or importlib.util.find_spec(package) is not None:
        raise UserError(
            f"{name!r} would be imported as `{package}`, and a package of that name is already installed\n"
            f"    try: ablatio new-plugin {_repaired(name)}"
        )
    if package in (known := REGISTRIES[kind]).names():
        raise UserError(
            f"{name!r} would register {kind}={package}, which {known[package].distribution} already registers\n"
            f"    try: ablatio new-plugin {_repaired(name)}"
        )
    return package


def _repaired(name: str) -> str:
    """A valid distribution name similar to `name`."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:50].strip("-")
    return f"my-{plain}" if plain else "my-norms"
