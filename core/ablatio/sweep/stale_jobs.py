"""Jobs planned with older code: which parts have changed since."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ablatio.errors import EnvironmentFault
from ablatio.registry.registry import REGISTRIES
from ablatio.storage.json_files import read_object
from ablatio.sweep.study import is_done, run_folder


def in_words(folder: Path, jobs: Sequence[str]) -> str:
    """Describe the stale jobs before their replacements run."""
    done = sum(is_done(folder, job) for job in jobs)
    parts = changed_parts(folder, jobs)
    why = f"of {', '.join(parts)}" if parts else "of a part of them, or of a default,"
    what = "1 job was" if len(jobs) == 1 else f"{len(jobs)} jobs were"
    return (
        f"{what} planned before the source {why} changed ({done} of them done): they are replaced by new jobs, and "
        "reports leave them out"
    )


def changed_parts(folder: Path, jobs: Iterable[str]) -> list[str]:
    """Parts whose source differs from when these runs started: `norm/rmsnorm`."""
    found: dict[str, None] = {}
    for job in jobs:
        for name, told in _parts(run_folder(folder, job)).items():
            kind, _, part = name.partition("/")
            entry = REGISTRIES[kind].entries.get(part) if kind in REGISTRIES else None
            if isinstance(told, Mapping) and (entry is None or entry.digest != told.get("sha256")):
                found[name] = None
    return list(found)


def _parts(run: Path) -> Mapping[str, Any]:
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, EnvironmentFault):
        return dict(read_object(run / "manifest.json")["code"]["parts"])
    return {}
