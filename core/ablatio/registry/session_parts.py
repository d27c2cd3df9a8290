"""Parts that a session registers by itself: in a cell of a notebook, or in a script that no plugin brings.

They work in a single run of that session.  Nothing else can make them again, so the source goes into the run's manifest
where it can be found, and a run folder that names one says so when it is opened elsewhere.
"""

import ast
import inspect
import linecache
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any

from ablatio.registry.registry import REGISTRIES, SESSION, PartSpec


def is_of_session(entry: PartSpec) -> bool:
    """True if no installed distribution brings the part."""
    return entry.distribution == SESSION


def session_parts() -> list[str]:
    """The parts of this session, as the command line calls them: `norm=mine`."""
    entries = (entry for registry in REGISTRIES.values() for entry in registry.entries.values())
    return [f"{entry.kind}={entry.name}" for entry in entries if is_of_session(entry)]


def source_of(entry: PartSpec) -> str | None:
    """The text of a part's class or function, with its decorators; None where Python does not keep it.

    Python keeps the source of files and of notebook cells; what `python -` or `python -c` read is gone.
    """
    target = REGISTRIES[entry.kind].target(entry.name)
    try:
        return inspect.getsource(target)
    except (OSError, TypeError):  # a class of a notebook has no module file: its methods know their cell
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
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                return "\n".join(text.splitlines()[first - 1 : node.end_lineno]) + "\n"
    return None


def unregistered(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(kind, name) of each part that a config names and that is not registered here."""
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
    """Where a part that is not registered here came from, and what brings it back.

    distribution: of the run's manifest; "" where nothing says it.  kept: where the part's source is
    """
    lost = f"{kind}={name} is not registered here"
    if distribution == str(SESSION):
        return (
            f"{lost}: it was defined in the session that trained the run{kept}\n"
            f"    try: run the cell or script that registers it, then open the run in the same session; a part that "
            "every session has: ablatio new-plugin"
        )
    if distribution:
        return f"{lost}: it came from {distribution}\n    try: pip install '{distribution.replace(' ', '==')}'"
    return f"{lost}, and nothing says where it came from\n    try: ablatio list {kind}"
