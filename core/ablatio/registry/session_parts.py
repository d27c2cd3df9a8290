"""Parts registered in the running session: in a notebook cell, or in a script that belongs to no plugin.

They work in single runs of that session.  No other process can build them again, so their source is saved in the run's
manifest where Python keeps it, and opening the run folder elsewhere raises an error that names the missing part.
"""

import ast
import inspect
import linecache
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any

from ablatio.registry.registry import REGISTRIES, SESSION, PartSpec


def is_of_session(entry: PartSpec) -> bool:
    """True if no installed distribution provides the part."""
    return entry.distribution == SESSION


def session_parts() -> list[str]:
    """Parts of this session, as on the command line: `norm=mine`."""
    entries = (entry for registry in REGISTRIES.values() for entry in registry.entries.values())
    return [f"{entry.kind}={entry.name}" for entry in entries if is_of_session(entry)]


def source_of(entry: PartSpec) -> str | None:
    """Source text of a part's class or function, with its decorators; None if Python does not have it.

    Python keeps the source of files and of notebook cells, but not of code read by `python -` or `python -c`.
    """
    target = REGISTRIES[entry.kind].target(entry.name)
    try:
        return inspect.getsource(target)
    except (OSError, TypeError):  # a class from a notebook has no module file, but its methods know their cell
        return _from_cell(target)


def _from_cell(target: Callable[..., Any]) -> str | None:
    functions = [f for f in (target, *vars(target).values()) if isinstance(f, FunctionType)]
    for place in dict.fromkeys(f.__code__.co_filename for f in functions):
        text = "".join(linecache.getlines(place))
        try:
            statements = ast.parse(text).body
        except SyntaxError:
            continue
        for node in statements:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == target.__name__:
                # `lineno` is that of `class`; the decorator above registers the part.
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                return "\n".join(text.splitlines()[first - 1 : node.end_lineno]) + "\n"
    return None


def unregistered(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(kind, name) of each part in a config that is not registered in this session."""
    return [(kind, name) for kind, name in _named(config) if name not in REGISTRIES[kind].entries]


def _named(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for kind, registry in REGISTRIES.items():
        node = config.get(kind)
        if not isinstance(node, Mapping):
            continue
        if registry.multiple:
            yield from ((kind, str(name)) for name in node)
        elif isinstance(node.get("name"), str):
            yield kind, node["name"]


def how_to_register(kind: str, name: str, distribution: str = "", kept: str = "") -> str:
    """Error text: where a part that is not registered came from, and how to register it.

    distribution: its distribution according to the run's manifest; "" if unknown
    kept: where the source of the part is saved
    """
    lost = f"{kind}={name} is not registered here"
    if distribution == str(SESSION):
        return (
            f"{lost}: it was defined in the session that trained the run{kept}\n"
            f"    try: run the cell or script that registers it, then open the run in the same session; to make it "
            "available in every session: ablatio new-plugin"
        )
    if (file := distribution.rpartition(" ")[0]).endswith(".py"):
        return f"{lost}: it came from the file of parts {file}\n    try: the same command with parts={file}"
    if distribution:
        return f"{lost}: it came from {distribution}\n    try: pip install '{distribution.replace(' ', '==')}'"
    return (
        f"{lost}, and nothing says where it came from\n    try: ablatio list {kind}; parts=FILE names a file of yours "
        "(in Python: ablatio.load_parts)"
    )
