"""Studies refuse parts that only this session knows, because their runs are executed in other processes."""

from collections.abc import Iterator

from ablatio.errors import UserError
from ablatio.registry.session_parts import session_parts
from ablatio.sweep.plan import Plan


def refuse_session_parts(plan: Plan) -> None:
    """Raise UserError if a run of the plan needs a part that no plugin provides."""
    known = session_parts()
    wanted = next((part for part in _named(plan) if part in known), None)
    if wanted is None:
        return
    kind = wanted.partition("=")[0]
    raise UserError(
        f"{wanted} was defined in this session, and the runs of a study are executed in other processes, which do not "
        f"know it; use ablatio.train in this session, or make it a plugin\n"
        f"    try: ablatio new-plugin my-{kind.replace('_', '-')}s"
    )


def _named(plan: Plan) -> Iterator[str]:
    """Parts that the plan's runs choose (`norm=rmsnorm`); of a search, which has no runs yet, those of its axes."""
    from ablatio.config.schema import chosen

    for axis in plan.study.axes:
        for value in axis.values:
            yield from (f"{axis.key}={name.strip()}" for name in value.strip("[]").split(","))
    for config in (*(cell.config for cell in plan.cells), *(job.config for job in plan.jobs)):
        yield from (f"{entry.kind}={entry.name}" for entry, _ in chosen(config))
