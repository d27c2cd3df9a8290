"""Options defined by YAML files: sizes, presets, studies and experiments of ablatio, of plugins, and of the user."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from ablatio.config import local_files
from ablatio.config.yaml_file import File as File
from ablatio.config.yaml_file import read_yaml as read_yaml
from ablatio.errors import EnvironmentFault
from ablatio.registry import discovery
from ablatio.registry.catalogue import OURS
from ablatio.registry.registry import ContractError, Distribution
from ablatio.storage.paths import shipped

T = TypeVar("T")
_seen: ContextVar[dict[str, Any] | None] = ContextVar("seen", default=None)

SWEEP, PRESET, SIZE = local_files.SWEEP, "preset", "size"


@contextmanager
def read_once() -> Iterator[None]:
    """List each conf folder once within this context; a composition reads the list about 135 times, a plan more."""
    if _seen.get() is not None:
        yield
        return
    token = _seen.set({})
    try:
        yield
    finally:
        _seen.reset(token)


def once(key: str, make: Callable[[], T]) -> T:
    """Return what `make` returns; inside `read_once` it is called once for each key."""
    seen = _seen.get()
    if seen is None:
        return make()
    if key not in seen:
        seen[key] = make()
    found: T = seen[key]
    return found


@functools.cache
def _ours() -> Distribution:
    return Distribution(OURS, version(OURS))


def _folders() -> Iterator[tuple[Path, Distribution]]:
    yield shipped("conf"), _ours()
    for source in discovery.sources():
        if source.conf is not None:
            yield source.conf, source.distribution


def files() -> dict[str, dict[str, File]]:
    """All groups of YAML files and their options; if a name occurs twice, the first file found is used.

    The user's own files are among them: those in local folders, and those named by their path.
    """
    return once("files", _list_files)[0]


def take_in(overrides: Sequence[str]) -> None:
    """Make options of the YAML files that overrides name by their path; UserError if one cannot be used."""
    seen = _seen.get()
    if local_files.may_name(overrides) and local_files.take_in(overrides, files()) and seen:
        seen.clear()


def left_out() -> list[local_files.LeftOut]:
    """Files of local folders that cannot be used, and why."""
    return once("files", _list_files)[1]


def why_left_out(group: str, name: str) -> str:
    """`; ./conf/GROUP/NAME.yaml is left out: why` if there is such a file, for the error of an unknown option."""
    return next((f"; {file}" for file in left_out() if (file.group, file.name) == (group, name)), "")


def _list_files() -> tuple[dict[str, dict[str, File]], list[local_files.LeftOut]]:
    found: dict[str, dict[str, File]] = {
        SWEEP: {p.stem: File(SWEEP, p.stem, p, _ours()) for p in sorted(shipped("sweeps").glob("*.yaml"))}
    }
    for folder, distribution in _folders():
        for path in sorted(folder.rglob("*.yaml")):
            group = path.parent.relative_to(folder).as_posix()
            if group != ".":
                found.setdefault(group, {}).setdefault(path.stem, File(group, path.stem, path, distribution))
    refused = local_files.add_to(found)
    return found, refused


def options_of(group: str) -> dict[str, File]:
    """The YAML files of a group, by option name."""
    return files().get(group, {})


def broken() -> dict[str, str]:
    """Files that cannot be read: {group/name: why}."""
    found = {}
    for group, options in files().items():
        for name, file in options.items():
            try:
                file.read()
            except (OSError, EnvironmentFault, ContractError) as error:
                found[f"{group}/{name}"] = str(error).splitlines()[0]
    return found
