"""The pytest plugin: hands each contract test the parts of its kinds, as the registries have them."""

import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ablatio.errors import UserError
from ablatio.registry.discovery import failures, sources
from ablatio.registry.knobs import Knob
from ablatio.registry.registry import REGISTRIES, PartSpec, Registry
from ablatio.testing import installed, suite_packages
from ablatio.testing.oracle_records import Recorder, describe_marks

PART = re.compile(r"(?<=\[)[a-z0-9_]+=[\w-]+?(?=[]-]|\.)")  # `norm=mine` in `test_x[norm=mine.eps]`

pytest.register_assert_rewrite("ablatio.testing.suites")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("ablatio").addoption(
        "--ablatio-dist", metavar="DIST", help="contract suites only on the parts that this distribution brings"
    )
    parser.getgroup("ablatio").addoption(
        "--ablatio-record", metavar="FILE", help="write down which oracles parts agreed with, for `ablatio list`"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "oracle(part, against): what a part (norm=rmsnorm), or each of a kind, is held to"
    )
    path = config.getoption("--ablatio-record")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(path)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `part` (each part of the suite's KINDS), `knob` (each of its knobs), `conf` (YAML files), `dist`.

    KINDS of a suite: names of kinds, or a function of a registry that says whether its parts are meant; None: all.
    """
    home = sys.modules[metafunc.function.__module__]
    dist = metafunc.config.getoption("--ablatio-dist") or getattr(metafunc.module, "ABLATIO_DIST", None)
    if not _is_suite(home.__name__):
        return
    dist = dist and _working(dist)
    names = set(metafunc.fixturenames)
    parts = [e for e in _entries(getattr(home, "KINDS", None)) if dist in (None, e.distribution.name)]
    if {"part", "knob"} <= names:
        pairs = [(e, k) for e in parts for k in e.knobs]
        _parametrise(metafunc, "part, knob", pairs, [f"{_label(e)}.{k.name}" for e, k in pairs])
    elif "part" in names:
        _parametrise(metafunc, "part", parts, [_label(e) for e in parts])
    elif "conf" in names:
        files = list(_conf_files(dist))
        _parametrise(metafunc, "conf", files, [f"{p.parent.name}={p.stem}" for p in files])
    elif "dist" in names:
        dists = sorted({e.distribution.name for e in parts})
        _parametrise(metafunc, "dist", dists, dists)


def _parametrise(metafunc: pytest.Metafunc, names: str, values: Sequence[Any], ids: list[str]) -> None:
    metafunc.parametrize(names, values, ids=ids)


@functools.cache
def _working(dist: str) -> str:
    """The distribution's own spelling; a suite that finds nothing to try because nothing was loaded is no success."""
    try:
        name = installed(dist)
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    if broken := [str(f) for f in failures() if f.distribution.name == name]:
        raise pytest.UsageError("\n".join(broken))
    return name


@functools.cache
def _packages() -> tuple[str, ...]:
    return tuple(f"{package}." for package in suite_packages())


def _is_suite(module: str) -> bool:
    return module.startswith(_packages())


def _entries(kinds: Sequence[str] | Callable[[Registry[Any]], bool] | None) -> list[PartSpec]:
    """The parts of these kinds; of all kinds, a plugin's own too, when None is said."""
    next(iter(REGISTRIES.values())).names()  # fills the registries
    if callable(kinds):
        kinds = [kind for kind, registry in REGISTRIES.items() if kinds(registry)]
    return [e for kind in kinds or sorted(REGISTRIES) if kind in REGISTRIES for e in REGISTRIES[kind]]


def _conf_files(dist: str | None) -> Iterator[Path]:
    from ablatio.registry.catalogue import conf_files

    for source in sources():
        if source.conf is not None and dist in (None, source.distribution.name):
            yield from conf_files(source.conf)


def _label(entry: PartSpec) -> str:
    return f"{entry.kind}={entry.name}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Suites without a part to try are left out, not shown as skipped; oracle tests say what they are about."""
    describe_marks(items)
    empty = [item for item in items if _is_empty(item)]
    if empty:
        config.hook.pytest_deselected(items=empty)
        items[:] = [item for item in items if not _is_empty(item)]


def _is_empty(item: pytest.Item) -> bool:
    call = getattr(item, "callspec", None)
    home = getattr(item, "function", None)
    ours = home is not None and _is_suite(home.__module__)
    return ours and call is not None and any(isinstance(k, str) and not _is_value(v) for k, v in call.params.items())


def _is_value(value: object) -> bool:
    return isinstance(value, PartSpec | Knob | Path | str)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """With --ablatio-dist: one line per part, what passed and what failed."""
    dist = config.getoption("--ablatio-dist")
    if not dist:
        return
    terminalreporter.section(f"contracts of {dist}")
    tally: dict[str, dict[str, int]] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            found = PART.search(report.nodeid)
            label = found[0] if found else "the distribution"
            counts = tally.setdefault(label, {})
            counts[outcome] = counts.get(outcome, 0) + 1
    for label, counts in sorted(tally.items()):
        broken = counts.get("failed", 0) + counts.get("error", 0)
        count = sum(counts.values())
        verdict = f"BROKEN, {broken} of {count} checks failed" if broken else f"keeps its contract ({count} checks)"
        terminalreporter.write_line(f"{label}: {verdict}")
    if not tally:
        terminalreporter.write_line("no parts and no YAML options: nothing to check")
