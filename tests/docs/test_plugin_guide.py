"""The examples of the plugin guide: there is one for each kind, and it registers.

They are the examples from which `new-plugin` starts; tests/cli/test_author.py runs the contract suites on them.
"""

import importlib
import sys
from pathlib import Path

import pytest
from helpers.doc_pages import Block, blocks, pages

from ablatio.registry.registry import REGISTRIES, transaction

PACKAGE = "guide"


def examples() -> dict[str, Block]:
    """kind -> the file that shows it."""
    found = [b for page in pages() if page.startswith("plugins/") for b in blocks(page) if b.file.startswith(PACKAGE)]
    return {Path(block.file).stem: block for block in found}


class Undo(Exception):
    """Takes back what was registered."""


def test_each_kind_has_an_example() -> None:
    ours = {kind for kind, registry in REGISTRIES.items() if registry.distribution.name in ("this session", "ablatio")}
    assert examples().keys() == ours


@pytest.mark.parametrize("kind", examples())
def test_the_example_registers(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = examples()[kind]
    REGISTRIES[kind].names()  # loads the plugins before the transaction
    (tmp_path / f"guide_{kind}.py").write_text(block.body, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Undo), transaction():
        before = set(REGISTRIES[kind].entries)
        importlib.import_module(f"guide_{kind}")
        (name,) = set(REGISTRIES[kind].entries) - before
        entry = REGISTRIES[kind][name]
        assert f'.register("{name}"' in block.body and len(entry.summary.split()) >= 3
        raise Undo
    sys.modules.pop(f"guide_{kind}", None)
