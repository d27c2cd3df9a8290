"""The source of a registered part as a file of its own: its class or function with the imports that it needs."""

import ast
import inspect
import sys
from collections.abc import Iterator
from importlib.util import resolve_name

from ablatio.registry.registry import REGISTRIES, PartSpec


def part_source(entry: PartSpec) -> str:
    """A module with this part alone, which imports everything else; "" if Python does not have its source."""
    target = REGISTRIES[entry.kind].target(entry.name)
    module = sys.modules[target.__module__]
    try:
        text = inspect.getsource(module)
    except (OSError, TypeError):
        return ""
    tree = ast.parse(text)
    node = next((n for n in tree.body if _defines(n) == target.__name__), None)
    if not isinstance(node, ast.ClassDef | ast.FunctionDef):
        return ""
    needed = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    imports = list(_imports(tree, needed, module.__package__ or ""))
    if own := sorted(needed & set(_defined_in(tree)) - {target.__name__}):
        imports.append(f"from {module.__name__} import {', '.join(own)}")
    # In Python's tree a definition begins at `class` or `def`, below its decorators.
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    body = "\n".join(text.splitlines()[first - 1 : node.end_lineno])
    return f"{chr(10).join(imports)}\n\n\n{body}\n"


def _defines(node: ast.stmt) -> str:
    return node.name if isinstance(node, ast.ClassDef | ast.FunctionDef) else ""


def _imports(tree: ast.Module, needed: set[str], package: str) -> Iterator[str]:
    """The import statements of a module, with the needed names alone and without relative names."""
    for node in tree.body:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        kept = [a for a in node.names if future or (a.asname or a.name.split(".")[0]) in needed]
        if not kept:
            continue
        if isinstance(node, ast.Import):
            yield ast.unparse(ast.Import(kept))
        else:
            name = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            yield ast.unparse(ast.ImportFrom(name, kept, 0))


def _defined_in(tree: ast.Module) -> Iterator[str]:
    """Names that a module itself defines."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from (t.id for t in targets if isinstance(t, ast.Name))
        if name := _defines(node):
            yield name
