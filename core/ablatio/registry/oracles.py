"""Independent references (oracles) that each part was tested against, recorded in `oracles.json` of its package.

A test is marked `@pytest.mark.oracle("norm=rmsnorm", "torch.nn.functional.rms_norm")`, or for a kind whose part names
are among the test's parameters, `@pytest.mark.oracle("norm", "float64 loop")`.
`pytest --ablatio-record my_norms/oracles.json` records the tests that passed, with the digest of the part's source:
the class or function and everything that it uses of its own package.  A record for older source is ignored.  The file
is shipped in the wheel of `my_norms`, and `ablatio list` shows it; ablatio's own is made by `make oracles`.
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
    """Oracles of a part; empty if none is recorded or the part's source has changed since."""
    found = _records(entry.module.split(".")[0]).get(f"{entry.kind}={entry.name}", {})
    # A record of other source says nothing about this part: it was not what the test ran.
    return tuple(found.get("against", ())) if found.get("digest") == entry.digest else ()


@functools.cache
def _records(package: str) -> Mapping[str, Any]:
    """Content of oracles.json in a top-level package, which is found without importing it."""
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
    """Records of a file; a malformed file counts as empty, because it must not stop a command."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in said.items() if isinstance(v, dict)} if isinstance(said, dict) else {}
