"""Find the files that the runs of a study read, before the first of them starts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablatio.model.builder import PartChoice
from ablatio.registry.kinds import sources
from ablatio.sweep.study import Job


def check_sources(jobs: Sequence[Job], config: Mapping[str, Any]) -> None:
    """Raise the UserError of a source whose `path` does not exist; each source is looked at once.

    A stage that takes the result of another is left out: its files may be written by then.  A path from the environment
    is known to the run alone.

    config  of an arm, for a study that plans its jobs later
    """
    configs = [job.config for job in jobs if not job.takes] if jobs else [config]
    nodes = [found["source"] for found in configs if found.get("source")]
    for node in {repr(node): node for node in nodes}.values():
        if _is_missing(node):
            choice = PartChoice.of(node)
            # The path may be a pattern or several paths: the source says what there is, and what is near.
            next(iter(sources.build(choice.name, choice.knobs).documents()), None)


def _is_missing(node: Mapping[str, Any]) -> bool:
    path, entry = node.get("path"), sources.entries.get(str(node.get("name")))
    named = entry is not None and entry.knob("path") is not None and not entry.wiring
    return named and isinstance(path, str) and "${" not in path and not _exists(path)


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # a name that is too long, a NUL byte, an unknown home
        return False
