"""What each part was checked against, as its distribution's tests recorded it in `oracles.json` beside its modules.

A test says `@pytest.mark.oracle("norm=rmsnorm", "torch.nn.functional.rms_norm")`, or of a kind whose names are among
its parameters `@pytest.mark.oracle("norm", "float64 loop")`.  `pytest --ablatio-record my_norms/oracles.json` writes
down those that passed, with the digest of the part's source: a record of older source counts no more.  The digest
covers the class or function and what it uses of its own package.  The file is shipped in the wheel of `my_norms`, and
`ablatio list` shows it; ours is made by `make oracles`.
"""

import functools
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablatio.registry.registry import PartSpec

FILE = "oracles.json"


def checked_against(entry: PartSpec) -> tuple[str, ...]:
    """The oracles of a part; none when nothing was recorded or its source has changed since."""
    found = _records(entry.module.split(".")[0]).get(f"{entry.kind}={entry.name}", {})
    return tuple(found.get("against", ())) if found.get("digest") == entry.digest else ()


@functools.cache
def _records(package: str) -> Mapping[str, Any]:
    """The file of one top-level package, which is not imported for it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return {}
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / FILE
        if path.is_file():
            return _read(path)
    return {}


def _read(path: Path) -> Mapping[str, Any]:
    """Only objects of objects: a file that says anything else says nothing, and stops no command."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in said.items() if isinstance(v, dict)} if isinstance(said, dict) else {}
