"""Which values of a config came from the environment, through any number of references."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from ablatio.registry.registry import REGISTRIES
from ablatio.storage.secrets import hide

PLACES = (("out",), ("name",))  # folders are called by these values
_ENV = re.compile(r"\$\{\s*(?:oc\.)?env:")
_NOTHING = object()
Path = tuple[str | int, ...]


def from_environment(node: Any, raw: Any, resolved: Any) -> set[Path]:
    """Return the paths of the values that depend on the environment, and hide those from everything written.

    node      config of OmegaConf, with interpolations
    raw       its content, interpolations unresolved
    resolved  its content, resolved
    """
    if not any(_ENV.search(text) for _, text in _texts(raw)):
        return set()
    # No value of a config holds NUL, so that nothing can look like the mark by chance.
    mark = "\0".join(("", "environment", ""))
    marked = _resolved_with(node, lambda key, default=None: mark)
    # With the defaults alone: a value that the variable did not change is no secret.
    absent = _resolved_with(node, _default)
    found = set()
    # Direct references last: of two settings with one value, theirs is the expression that messages show.
    for path, text in sorted(_texts(raw), key=lambda item: bool(_ENV.search(item[1]))):
        value = _at(resolved, path)
        if "${" in text and _at(marked, path) != value:
            found.add(path)
            if _at(absent, path) != value and path not in PLACES and _is_free_text(path):
                for part in _strings(value):
                    hide(part, text)
    _hide_variables(raw, found)
    return found


def _hide_variables(raw: Any, found: set[Path]) -> None:
    """Hide the variables themselves, which are parts of values such as `${oc.env:HOME}/models`, if they look secret."""
    for path in found:
        if path in PLACES or not _is_free_text(path):
            continue
        for name in re.findall(r"\$\{\s*(?:oc\.)?env:\s*([A-Za-z_][A-Za-z0-9_]*)\s*[,}]", str(_at(raw, path))):
            # Paths stand in nearly every message, and are hidden where a setting is one.
            if (value := os.environ.get(name)) and "/" not in value:
                hide(value, f"${{oc.env:{name}}}")


def _is_free_text(path: Path) -> bool:
    """False for a setting that takes one of some words, such as `trainer.device`: its value is no secret."""
    from ablatio.config.schema import SECTIONS, section_knobs

    section, *rest = map(str, path)
    if section in SECTIONS:
        knobs = section_knobs(SECTIONS[section])
    elif section in REGISTRIES:
        knobs = tuple(knob for entry in REGISTRIES[section].entries.values() for knob in entry.knobs)
    else:
        return True
    choices = [knob.choices for knob in knobs if rest and knob.name == rest[-1]]
    return not (choices and all(choices))


def _default(key: str, default: Any = _NOTHING) -> Any:
    if default is _NOTHING:
        raise KeyError(key)
    return default


def _resolved_with(node: Any, env: Callable[..., Any]) -> Callable[[Path], Any]:
    """Function that resolves the value at a path with another `oc.env`; _NOTHING if that is not possible."""

    def at(path: Path) -> Any:
        with _resolver(env):
            try:
                found = node
                for key in path:
                    found = found[key]
                return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
            except (OmegaConfBaseException, KeyError, IndexError, TypeError, ValueError):
                return _NOTHING

    return at


@contextmanager
def _resolver(env: Callable[..., Any]) -> Iterator[None]:
    """Replace the resolver of environment variables."""
    OmegaConf.register_new_resolver("oc.env", env, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _at(tree: Any, path: Path) -> Any:
    """The value at a path of nested data, or of a function from paths to values."""
    if callable(tree):
        return tree(path)
    for key in path:
        tree = tree[key]
    return tree


def _texts(node: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """(path, text) of each text in nested data."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(value, (*path, key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _texts(value, (*path, number))
    elif isinstance(node, str):
        yield path, node


def _strings(node: Any) -> Iterator[str]:
    """The texts in nested data."""
    return (text for _, text in _texts(node))
