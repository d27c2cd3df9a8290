"""The digest of a part changes with what the part uses of its own package, and with nothing else."""

from pathlib import Path

import pytest

from ablatio.registry.registry import REGISTRIES
from ablatio.registry.source_digest import source_digest

FILES = {
    "__init__.py": "from . import deep\n",
    "parts.py": """
import math
from typing import Annotated
from pkg_digest import _common
from pkg_digest._common import other as renamed
from .deep import inner

Width = Annotated[int, 3]
SCALE = 2.0
UNUSED = 1.0

def helper(x):
    return x * SCALE

def neighbour(x):
    return x

@str
class Base:
    def go(self):
        return _common.used(1)

class Part(Base):
    def __init__(self, width: Width = 1):
        self.values = helper(1), renamed(2), inner.lowest(3), math.pi
""",
    "_common.py": "def used(x):\n    return _deeper(x)\ndef _deeper(x):\n    return x\ndef other(x):\n    return x\n"
    "def apart(x):\n    return x\n",
    "deep/__init__.py": "",
    "deep/inner.py": "from .. import parts\ndef lowest(x):\n    return parts.neighbour\n",
}
# What is changed, and whether the digest of Part may stay.
CHANGES = {
    ("parts.py", "self.values =", "self.worth ="): False,
    ("parts.py", "return x * SCALE", "return SCALE * x"): False,
    ("parts.py", "SCALE = 2.0", "SCALE = 3.0"): False,
    ("parts.py", "Annotated[int, 3]", "Annotated[int, 4]"): False,
    ("parts.py", "@str\n", "@int\n"): False,
    ("_common.py", "def _deeper(x):\n    return x", "def _deeper(x):\n    return 2"): False,
    ("_common.py", "def other(x):\n    return x", "def other(x):\n    return 2"): False,
    ("deep/inner.py", "return parts.neighbour", "return parts.helper"): False,
    ("parts.py", "def neighbour(x):\n    return x", "def neighbour(x):\n    return 2"): False,  # through deep/inner.py
    ("parts.py", "UNUSED = 1.0", "UNUSED = 2.0"): True,
    ("_common.py", "def apart(x):\n    return x", "def apart(x):\n    return 2"): True,
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that is never imported: only its text is read."""
    folder = tmp_path / "pkg_digest"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change[0]}: {change[2]}")
def test_the_digest_covers_what_the_part_uses(package: Path, change: tuple[str, str, str]) -> None:
    before = source_digest("pkg_digest.parts", "Part")
    assert len(before) == 64
    name, old, new = change
    path = package / name
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new) + "\n")
    assert (source_digest("pkg_digest.parts", "Part") == before) == CHANGES[change]


def test_what_has_no_file_has_no_digest() -> None:
    assert source_digest("no_such_package.parts", "Part") == source_digest("builtins", "str") == ""


def test_each_part_of_ours_has_one_of_its_own() -> None:
    entries = [e for kind in REGISTRIES for e in REGISTRIES[kind] if e.distribution.name == "ablatio"]
    assert all(len(e.digest) == 64 for e in entries) and len({e.digest for e in entries}) == len(entries)
