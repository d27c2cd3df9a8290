"""Records of simulated cells: shares with standard errors and promises, the commit, and the file of results."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any


@lru_cache
def commit() -> str:
    """The commit of the code that makes the results."""
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()


def share_of(hits: int, studies: int, low: float = 0.0, high: float = 1.0) -> dict[str, Any]:
    """Share of studies with its standard error, the limits that are promised, and whether the share keeps them."""
    share = hits / studies
    error = (share * (1 - share) / studies) ** 0.5
    return {
        "share": round(share, 5), "standard_error": round(error, 5), "low": low, "high": high,
        "kept": low <= share <= high,
    }  # fmt: skip


def write(path: Path, cells: Sequence[Mapping[str, Any]], **others: Any) -> None:
    """Write the results so far; each cell has the commit that made it."""
    written = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **others, "cells": cells}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> cell of a file of results; empty if there is none."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.exists() else []
    return {cell["name"]: cell for cell in cells}
