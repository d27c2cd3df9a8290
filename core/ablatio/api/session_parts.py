"""Refuse session-defined parts in a study, because its runs are executed in other processes."""

from collections.abc import Iterator

from ablatio.errors import UserError
from ablatio.registry.session_parts import session_parts
from ablatio.sweep.plan import Plan


def refuse_session_parts(plan: Plan) -> None:
    """Raise UserError if a run of the plan needs a part that was defined in this session."""
    known = session_parts()
    wanted = next((part for part in _chosen_parts(plan) if part in known), None)
    if wanted is None:
        return
    kind = wanted.partition("=")[0]
    raise UserError(
        f"{wanted} was defined in this session, and the runs of a study are executed in other processes, which do not "
        f"know it; ablatio.train runs it here, and a plugin brings it everywhere\n"
        f"    try: ablatio new-plugin my-{kind.replace('_', '-')}s"
    )


def _chosen_parts(plan: Plan) -> Iterator[str]:
    """Yield the parts that the plan chooses, as `norm=rmsnorm`.

    Those of the axes too, since a search has no jobs before it starts.
    """
    from ablatio.config.schema import chosen

    for axis in plan.study.axes:
        for value in axis.values:
            yield from (f"{axis.key}={name.strip()}" for name in value.strip("[]").split(","))
    for config in (*(cell.config for cell in plan.cells), *(job.config for job in plan.jobs)):
        yield from (f"{entry.kind}={entry.name}" for entry, _ in chosen(config))
