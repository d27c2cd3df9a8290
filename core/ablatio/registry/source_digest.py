"""Digest of a part's source: its own definition and everything it uses of its own package, followed name by name.

Only the syntax is read, so nothing is imported.  The digest changes with a helper function in another module of the
package and with a constant above the class, but not with unrelated code in the same file.
"""

import ast
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class _Module:
    """Top level of a file: the definition of each name, and the names imported from the same package.

    definitions: name -> the statements that define it
    imports: name -> (module, the name in it, or "" for the module itself)
    uses: name -> its text and the names it needs, filled on demand
    """

    text: str
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    uses: dict[str, "_Use"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Use:
    """Text of a definition, and what it needs: (module, name)."""

    text: str
    needs: tuple[tuple[str, str], ...]


def source_digest(module: str, qualname: str) -> str:
    """sha256 of the part and of everything it uses in its own top-level package; "" if there is no source file."""
    pieces = dict[tuple[str, str], str]()
    _follow(module, qualname.split(".")[0], pieces, functools.cache(_read))  # the cache checks each file once
    if not pieces:
        return ""
    total = hashlib.sha256()
    for (_, name), text in sorted(pieces.items()):
        total.update(f"{name}\0{text}\0".encode())
    return total.hexdigest()


def _follow(module: str, name: str, pieces: dict[tuple[str, str], str], read: Callable[[str], _Module | None]) -> None:
    here = read(module)
    # Definitions may use one another in a circle.
    if here is None or (module, name) in pieces:
        return
    if name in here.imports and name not in here.definitions:
        _follow(*here.imports[name], pieces, read)
        return
    if name not in here.definitions:
        return
    if name not in here.uses:
        here.uses[name] = _use(module, name, here)
    pieces[module, name] = here.uses[name].text
    for needed in here.uses[name].needs:
        _follow(*needed, pieces, read)


def _use(module: str, name: str, here: _Module) -> _Use:
    needs = dict[tuple[str, str], None]()
    for used, attribute in (found for statement in here.definitions[name] for found in _names(statement)):
        origin, inner = here.imports.get(used, ("", ""))
        is_module = origin and not inner  # then the attribute is the name that is used of it
        needs[(origin, attribute) if is_module else (module, used)] = None
    text = "\n".join(_text(here.text, statement) for statement in here.definitions[name])
    return _Use(text, tuple(n for n in needs if n[0] != module or n[1] in here.definitions or n[1] in here.imports))


def _text(text: str, statement: ast.stmt) -> str:
    """Source text of a statement, with its decorators."""
    first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", ()))])
    return "\n".join(text.splitlines()[first - 1 : statement.end_lineno])


def _names(statement: ast.stmt) -> Iterator[tuple[str, str]]:
    """Each name that a statement reads, with the attribute accessed on it, or ""."""
    accessed = dict[int, str]()
    for node in ast.walk(statement):  # an attribute comes before the expression that it is accessed on
        if isinstance(node, ast.Attribute):
            accessed[id(node.value)] = node.attr
        elif isinstance(node, ast.Name):
            yield node.id, accessed.get(id(node), "")


def _read(module: str) -> _Module | None:
    held = getattr(getattr(sys.modules.get(module), "__loader__", None), "held", None)
    if isinstance(held, str):  # a file of parts: what is executed is this text, whatever the file holds by now
        return _parse(module, held)
    path = _path(module)
    try:
        return _parsed(module, path, path.stat().st_mtime_ns) if path else None
    except (OSError, SyntaxError, ValueError):
        return None


@functools.lru_cache(maxsize=512)
def _parsed(module: str, path: Path, stamp: int) -> _Module:
    return _parse(module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py")


def _parse(module: str, text: str, *, is_package: bool = False) -> _Module:
    tree, read = ast.parse(text), _Module(text)
    parent = module if is_package else module.rpartition(".")[0]
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom | ast.Import):
            read.imports.update(_imports(statement, parent, module.split(".")[0]))
        for name in _defined(statement):
            read.definitions.setdefault(name, []).append(statement)
    return read


def _defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [n.id for target in targets if target is not None for n in ast.walk(target) if isinstance(n, ast.Name)]


def _imports(statement: ast.ImportFrom | ast.Import, parent: str, top: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """(local name, (module, name)) for everything the statement imports from the top-level package `top`."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            if alias.asname and alias.name.split(".")[0] == top:
                yield alias.asname, (alias.name, "")
        return
    levels = parent.split(".")[: len(parent.split(".")) - statement.level + 1] if statement.level else []
    origin = ".".join([*levels, *([statement.module] if statement.module else [])])
    if origin.split(".")[0] != top:
        return
    for alias in statement.names:
        submodule = _path(f"{origin}.{alias.name}") is not None
        yield alias.asname or alias.name, (f"{origin}.{alias.name}", "") if submodule else (origin, alias.name)


def _path(module: str) -> Path | None:
    """File of a module, found without importing its parent packages."""
    top, *rest = module.split(".")
    # `find_spec` costs a search of sys.path; the package is nearly always imported already.
    known = getattr(sys.modules.get(top), "__file__", None)
    try:
        spec = None if known else importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    origin = known or (spec.origin if spec else None)
    if not origin:
        return None
    path = Path(origin)
    for name in rest:
        folder = path.parent if path.name == "__init__.py" else None
        if folder is None:
            return None
        path = folder / f"{name}.py"
        if not path.is_file():
            path = folder / name / "__init__.py"
    return path if path.is_file() else None
