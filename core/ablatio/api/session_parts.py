"""Parts that no distribution provides: load those of a file, refuse those of the session in a study."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatio.errors import UserError
from ablatio.registry import parts_file
from ablatio.registry.registry import REGISTRIES
from ablatio.registry.session_parts import session_parts

if TYPE_CHECKING:
    from ablatio.sweep.plan import Plan


def load_parts(path: "str | Path") -> list[str]:
    """Execute a file and register its parts, like `parts=FILE` on the command line; studies may use them too.

        ablatio.load_parts("my_parts.py")
        ablatio.run_study("norm=rmsnorm,halved", "seed=1,2,3")

    Returns its parts as settings: ["norm=halved"].  The parts of another file that was loaded are forgotten.  Raises
    UserError if the file cannot be used.
    """
    file = parts_file.PartsFile.read(str(path))
    parts_file.load(file)
    return [f"{entry.kind}={entry.name}" for entry in file.parts]


def parts_file_of(plan: "Plan") -> dict[str, Any]:
    """Record of the file of parts that runs of the plan use; empty if they use none."""
    chosen = {tuple(part.split("=", 1)) for part in _chosen_parts(plan)}
    entries = (registry.entries.get(name) for kind, registry in REGISTRIES.items() for k, name in chosen if k == kind)
    return parts_file.record_for(entry for entry in entries if entry is not None)


def refuse_session_parts(plan: "Plan") -> None:
    """Raise UserError if a run of the plan needs a part that was defined in this session."""
    known = session_parts()
    wanted = next((part for part in _chosen_parts(plan) if part in known), None)
    if wanted is None:
        return
    kind = wanted.partition("=")[0]
    raise UserError(
        f"{wanted} was defined in this session, and the runs of a study are executed in other processes, which do not "
        f"know it; ablatio.train runs it here, a file of parts or a plugin brings it everywhere\n"
        f"    try: ablatio.load_parts('my_{kind}s.py'), with the part in that file; or ablatio new-plugin "
        f"my-{kind.replace('_', '-')}s"
    )


def _chosen_parts(plan: "Plan") -> Iterator[str]:
    """Yield the parts that the plan chooses, as `norm=rmsnorm`.

    Those of the axes too, since a search has no jobs before it starts.
    """
    from ablatio.config.schema import chosen

    for axis in plan.study.axes:
        for value in axis.values:
            yield from (f"{axis.key}={name.strip()}" for name in value.strip("[]").split(","))
    for config in (*(cell.config for cell in plan.cells), *(job.config for job in plan.jobs)):
        yield from (f"{entry.kind}={entry.name}" for entry, _ in chosen(config))
