"""Pytest plugin: parametrizes each contract test with the registered parts of its kinds."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ablatio.errors import UserError
from ablatio.registry import parts_file
from ablatio.registry.discovery import failures, sources
from ablatio.registry.knobs import Knob
from ablatio.registry.part_spec import faulty_parts
from ablatio.registry.registry import REGISTRIES, PartSpec, Registry
from ablatio.testing import installed, suite_packages
from ablatio.testing.oracle_records import Recorder, describe_marks
from ablatio.testing.outcomes import DISTRIBUTION, PART, OutcomeWriter

pytest.register_assert_rewrite("ablatio.testing.suites")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options --ablatio-dist, --ablatio-parts, --ablatio-record and --ablatio-outcomes."""
    parser.getgroup("ablatio").addoption(
        "--ablatio-dist", metavar="DIST", help="run contract suites only on the parts of this distribution"
    )
    parser.getgroup("ablatio").addoption(
        "--ablatio-parts", metavar="FILE", help="execute this file, and run contract suites only on its parts"
    )
    parser.getgroup("ablatio").addoption(
        "--ablatio-record", metavar="FILE", help="record which oracles parts agreed with, for `ablatio list`"
    )
    parser.getgroup("ablatio").addoption(
        "--ablatio-outcomes", metavar="FILE", help="append the outcome of each contract test as a line of JSON"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker `oracle` and the recorders that are asked for; load the file of --ablatio-parts."""
    config.addinivalue_line("filterwarnings", "default::ablatio.testing.Advice")
    if file := config.getoption("--ablatio-parts"):
        try:
            parts_file.load(parts_file.PartsFile.read(file))
        except UserError as error:
            raise pytest.UsageError(str(error)) from None
    if outcomes := config.getoption("--ablatio-outcomes"):
        config.pluginmanager.register(OutcomeWriter(Path(outcomes)))
        stack = ExitStack()
        stack.enter_context(faulty_parts())  # suites of a plugin import its modules
        config.add_cleanup(stack.close)
    config.addinivalue_line(
        "markers", "oracle(part, against): the reference that a part (norm=rmsnorm), or a kind, is tested against"
    )
    path = config.getoption("--ablatio-record")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(path)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize `part` (each part of the suite's KINDS), `knob` (each of its knobs), `conf` (YAML files) and `dist`.

    KINDS of a suite: names of kinds, or a function of a registry that is True for the kinds meant; None means all.
    """
    home = sys.modules[metafunc.function.__module__]
    dist = metafunc.config.getoption("--ablatio-dist") or getattr(metafunc.module, "ABLATIO_DIST", None)
    if not _is_suite(home.__name__):
        return
    listed = bool(metafunc.config.getoption("--ablatio-outcomes"))
    dist = _of_file(metafunc.config) or (dist and _working(dist, listed))
    names = set(metafunc.fixturenames)
    parts = [e for e in _entries(getattr(home, "KINDS", None)) if dist in (None, e.distribution.name)]
    if {"part", "knob"} <= names:
        pairs = [(e, k) for e in parts for k in e.knobs]
        _parametrize(metafunc, "part, knob", pairs, [f"{_label(e)}.{k.name}" for e, k in pairs])
    elif "part" in names:
        _parametrize(metafunc, "part", parts, [_label(e) for e in parts])
    elif "conf" in names:
        files = list(_conf_files(dist))
        _parametrize(metafunc, "conf", files, [f"{p.parent.name}={p.stem}" for p in files])
    elif "dist" in names:
        dists = sorted({e.distribution.name for e in parts})
        _parametrize(metafunc, "dist", dists, dists)


def _of_file(config: pytest.Config) -> str:
    """Name under which the parts of --ablatio-parts are registered; empty without that option."""
    file = parts_file.current() if config.getoption("--ablatio-parts") else None
    return file.distribution.name if file else ""


def _parametrize(metafunc: pytest.Metafunc, names: str, values: Sequence[Any], ids: list[str]) -> None:
    metafunc.parametrize(names, values, ids=ids)


@functools.cache
def _working(dist: str, listed: bool) -> str:
    """The distribution's own spelling; usage error if something of it did not load, as its tests must not pass then.

    listed: what did not load is told elsewhere (`ablatio check`)
    """
    try:
        name = installed(dist)
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    broken = [str(f) for f in failures() if f.distribution.name == name]
    if broken and not listed:
        raise pytest.UsageError("\n".join(broken))
    return name


@functools.cache
def _packages() -> tuple[str, ...]:
    return tuple(f"{package}." for package in suite_packages())


def _is_suite(module: str) -> bool:
    return module.startswith(_packages())


def _entries(kinds: Sequence[str] | Callable[[Registry[Any]], bool] | None) -> list[PartSpec]:
    """Parts of these kinds; None means all kinds, including those of plugins."""
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
    """Deselect suites without a part to test, and describe the oracle tests in their reports."""
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
    """With --ablatio-dist or --ablatio-parts: print one line for each part with its passed and failed checks."""
    dist = _of_file(config) or config.getoption("--ablatio-dist")
    if not dist:
        return
    terminalreporter.section(f"contracts of {dist}")
    tally: dict[str, dict[str, int]] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            found = PART.search(report.nodeid)
            label = found[0] if found else DISTRIBUTION
            counts = tally.setdefault(label, {})
            counts[outcome] = counts.get(outcome, 0) + 1
    for label, counts in sorted(tally.items()):
        broken = counts.get("failed", 0) + counts.get("error", 0)
        count = sum(counts.values())
        verdict = f"BROKEN, {broken} of {count} checks failed" if broken else f"keeps its contract ({count} checks)"
        terminalreporter.write_line(f"{label}: {verdict}")
    if not tally:
        terminalreporter.write_line("no parts and no YAML options: nothing to check")
