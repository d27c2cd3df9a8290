"""The contract suites themselves: a test that checks nothing for a part says so with a skip and its reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from ablatio import testing

FILES = sorted((Path(testing.__file__).parent / "suites").glob("test_*.py"))


def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """The nodes of a function without those of the functions and lambdas inside it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def silent_passes(source: str) -> list[str]:
    """The tests that can end without a check and still read "passed", as name:line."""
    found = []
    for function in functions(ast.parse(source)):
        found += [f"{function.name}:{n.lineno}" for n in own_nodes(function) if isinstance(n, ast.Return)]
        last = function.body[-1]
        if len(function.body) <= 2 and isinstance(last, ast.If) and not last.orelse:
            found.append(f"{function.name}:{last.lineno}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_suite_passes_in_silence(file: Path) -> None:
    silent = silent_passes(file.read_text(encoding="utf-8"))
    assert not silent, f"{file.name}: {silent} end before a check; use pytest.skip(reason)"


def test_every_suite_is_read() -> None:
    counted = [len(functions(ast.parse(file.read_text(encoding="utf-8")))) for file in FILES]
    assert len(FILES) >= 25 and all(counted)


@pytest.mark.parametrize(
    "body, lines",
    [
        ("    if not part.facts['x']:\n        return\n    assert part", ["test_a:3"]),
        ("    for x in part:\n        if x:\n            return None\n    assert part", ["test_a:4"]),
        ("    '''Docstring.'''\n    if part:\n        assert part.name", ["test_a:3"]),
        ("    def inner():\n        return 1\n    assert part == inner()", []),
        ("    if not part:\n        pytest.skip('none')\n    assert part.name", []),
    ],
)
def test_the_search_finds_what_it_is_for(body: str, lines: list[str]) -> None:
    assert silent_passes(f"def test_a(part):\n{body}\n") == lines
