"""architecture.md and errands.md: the files and functions that they name exist, and the walks really happen."""

import ast
import graphlib
import itertools
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from helpers.doc_pages import DOCS, ROOT, pages
from helpers.studies import Fake, write_study

from ablatio.cli.main import main

NAMED = re.compile(r"`((?:core|plugins)/[\w/]+\.py):([\w.]+)`")
PLACES = re.compile(r"`((?:core|plugins|conf|sweeps|tests|docs)/[\w./-]*)`")
INVENTED = re.compile(r"[A-Z]{3,}|my_norms")  # `core/ablatio/cli/NAME.py`: a file that the reader makes
WALK = re.compile(r"<!-- walk: (\w+) -->(.*?)<!-- end of walk -->", re.S)
TINY = [
    "tokenizer=bytes", "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_len=32",
    "train.steps=1", "train.batch_size=2", "data.val_tokens=128", "trainer.progress=false",
]  # fmt: skip


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def definitions(path: Path) -> set[str]:
    """Functions, classes and methods of a module: `train`, `Run`, `Run.title`."""

    def inside(node: ast.AST, prefix: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                yield f"{prefix}{child.name}"
                if isinstance(child, ast.ClassDef):
                    yield from inside(child, f"{prefix}{child.name}.")

    return set(inside(ast.parse(path.read_text(encoding="utf-8")), ""))


@pytest.mark.parametrize("page", pages())
def test_files_and_functions_that_a_page_names_exist(page: str) -> None:
    text = text_of(page)
    for file in PLACES.findall(text):
        assert INVENTED.search(file) or (ROOT / file).exists(), f"docs/{page} names {file}, which does not exist"
    for file, name in NAMED.findall(text):
        assert name in definitions(ROOT / file), f"docs/{page} names {file}:{name}, which does not exist"


def test_no_two_modules_of_the_core_import_each_other() -> None:
    """Neither inside functions nor for types alone, which the contracts of import-linter leave out."""
    root = ROOT / "core"
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
             for path in sorted((root / "ablatio").rglob("*.py"))}  # fmt: skip
    modules, imported = set(names.values()) - {"ablatio"}, dict[str, set[str]]()
    for path, name in names.items():
        found = set[str]()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        # `from ablatio.registry import kinds` imports the package kinds; registry itself is only its folder.
        packages = {n for n in found & modules if any(m.startswith(f"{n}.") for m in found & modules)}
        imported[name] = (found & modules) - packages - {name}
    assert imported["ablatio.training.loop"] > {"ablatio.training.after_step"}
    list(graphlib.TopologicalSorter(imported).static_order())  # raises CycleError, which names the modules


def test_the_layers_are_those_of_import_linter() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    drawn = re.findall(r'font-family="monospace" font-weight="600"[^>]*>(\w+)<', text_of("pictures/layers.svg"))
    packages = [name for name in layers if (ROOT / "core" / "ablatio" / name).is_dir() or name == "errors"]
    assert drawn == packages


def walk(name: str) -> list[tuple[str, str]]:
    """(file, function) of each step."""
    found = dict(WALK.findall(text_of("architecture.md")))
    return NAMED.findall(found[name])


def calls(steps: Sequence[tuple[str, str]], act: Callable[[], Any]) -> list[str]:
    """The calls of these functions while `act` runs, in their order."""
    wanted = {(str(ROOT / file), name): f"{file}:{name}" for file, name in steps}
    seen: list[str] = []

    def look(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and (key := wanted.get((frame.f_code.co_filename, frame.f_code.co_qualname))):
            seen.append(key)

    sys.setprofile(look)
    try:
        act()
    finally:
        sys.setprofile(None)
    return seen


def check(name: str, words: list[str]) -> None:
    """Run the command: each step follows the one before it, though a function may also be called at other times."""
    steps = [f"{file}:{function}" for file, function in walk(name)]
    assert len(steps) > 9
    codes: list[int] = []
    called = iter(calls(walk(name), lambda: codes.append(main(words))))
    assert codes == [0]
    reached = list(itertools.takewhile(lambda step: step in called, steps))
    assert reached == steps, f"after {reached[-1:]} no call of {steps[len(reached)]}"


def test_the_walk_of_a_report(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", Fake({"norm": ["rmsnorm", "layernorm"]}, effects={"norm=layernorm": 0.1}))
    check("report", ["report", str(folder)])


def test_the_walk_of_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check("setting", ["train", "norm.eps=1e-5", "name=walk", *TINY])


@pytest.mark.slow
def test_the_walk_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check("sweep", ["train", "-m", "norm=rmsnorm,layernorm", "seed=1,2", "name=walk", *TINY[:-1]])
