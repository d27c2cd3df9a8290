"""`ablatio new-plugin NAME`: creates a distribution with parts, their tests and experiments to start from."""

import importlib.util
import keyword
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

from ablatio.cli.scaffold.templates import example, option_of, renamed, test_of, tried
from ablatio.errors import EnvironmentFault, UserError
from ablatio.registry.registry import REGISTRIES
from ablatio.registry.signatures import article

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
$usage

Each module in `$package/` is imported. Each registered class or function becomes an option, and each parameter right of
its bare `*` a knob (`ablatio show $kind=$package`); parameters left of it are passed by the framework.
`ablatio show $kind --author` prints what a part of the kind may take and must define. YAML files in
`$package/conf/experiment/` become `experiment=NAME`.
"""

INIT = '''\
"""Parts for ablatio.  Every module of this package is imported, so that a new part only needs a new file."""
'''

EXPERIMENT = """\
# @package _global_
# ablatio train experiment=$experiment
defaults:
${defaults}model: {d_model: 64, n_layers: 2}
train: {steps: 200}
${settings}"""

CONTRACTS = '''\
"""Contract tests of the kinds on the parts of this distribution."""

from ablatio.testing import contract_tests

ABLATIO_DIST = "$dist"
globals().update(contract_tests())
'''

PART = '"""$what to start from: replace its name, formula and source by yours."""\n\n$text'
TEST = '"""A test of the formula of $kind=$package."""\n\n$text'


def new_plugin(name: str, folder: Path, kinds: Sequence[str] = ("norm",)) -> Path:
    """Write the distribution `name` with one part of each kind into `folder`/`name`, and return that path.

    Raises UserError if a name or kind is invalid or a name is taken, or the path exists; EnvironmentFault if it cannot
    be written.
    """
    kinds = list(dict.fromkeys(kinds))
    for kind in kinds:
        # Raises for an unknown kind before any file is written.
        example(kind)
    package = import_name(name, kinds)
    place = folder.expanduser() / name
    if place.exists():
        raise UserError(f"{place} already exists and is not overwritten\n    try: ablatio new-plugin {name}-2")
    files = dict(_files(name, package, kinds))
    try:
        for path, text in files.items():
            target = place / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EnvironmentFault(
            f"{place} cannot be written: {error.strerror}\n    try: ablatio new-plugin {name} --in ."
        ) from None
    return place


def _files(name: str, package: str, kinds: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(path, content) of each file of the distribution."""
    words = {"dist": name, "package": package, "kind": kinds[0]}
    usage = "\n".join(line for kind in kinds for line in _usage(package, kind, kinds))
    yield "pyproject.toml", Template(PYPROJECT).substitute(words)
    yield "README.md", Template(README).substitute(words, usage=usage)
    yield f"{package}/__init__.py", INIT
    yield f"tests/test_{package}.py", Template(CONTRACTS).substitute(words)
    for kind in kinds:
        text, test = example(kind), test_of(kind)
        old = option_of(text)
        what = f"{article(kind).title()} {kind}"
        yield f"{package}/{kind}s.py", Template(PART).substitute(what=what, text=renamed(text, old, package))
        if test:
            own = renamed(test, old, package)
            yield f"tests/test_{kind}.py", Template(TEST).substitute(words, kind=kind, text=own)
        if tried(kind).run:
            experiment = _experiment_name(package, kind, kinds)
            yield f"{package}/conf/experiment/{experiment}.yaml", _experiment(experiment, package, kind)


def _experiment_name(package: str, kind: str, kinds: Sequence[str]) -> str:
    """Name of the experiment of a kind: the package's, if it is the only one."""
    return package if len(kinds) == 1 else f"{package}_{kind}"


def _experiment(name: str, package: str, kind: str) -> str:
    options = [o for o in tried(kind).beside if "." not in o.partition("=")[0]]
    settings = [o for o in tried(kind).beside if o not in options]
    usual = REGISTRIES[kind].usual
    chosen = f"[{', '.join([*usual, package])}]" if REGISTRIES[kind].multiple else package
    listed = "override " if REGISTRIES[kind].listed else ""
    lines = [f"  - override /{o.replace('=', ': ')}\n" for o in options] + [f"  - {listed}/{kind}: {chosen}\n"]
    nested = [f"{o.partition('.')[0]}: {{{o.partition('.')[2].replace('=', ': ')}}}\n" for o in settings]
    return Template(EXPERIMENT).substitute(experiment=name, defaults="".join(lines), settings="".join(nested))


def _usage(package: str, kind: str, kinds: Sequence[str]) -> Iterator[str]:
    """Lines of the README that try the part of a kind."""
    yield f"    ablatio show {kind}={package}"
    command = tried(kind).command or f"train -m {tried(kind).sweep} seed=1,2,3"
    yield f"    ablatio {command.replace('$name', package)}"
    if tried(kind).run:
        yield f"    ablatio train experiment={_experiment_name(package, kind, kinds)}"


def import_name(name: str, kinds: Sequence[str] = ("norm",)) -> str:
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
    for kind in kinds:
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
