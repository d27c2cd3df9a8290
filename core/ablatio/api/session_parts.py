"""A study refuses parts that only this session knows: its runs are executed in other processes."""

from collections.abc import Iterator

from ablatio.errors import UserError
from ablatio.registry.session_parts import session_parts
from ablatio.sweep.plan import Plan


def refuse_session_parts(plan: Plan) -> None:
    """UserError when a run of the plan would need a part that no plugin brings."""
    known = session_parts()
    wanted = next((part for part in _named(plan) if part in known), None)
    if wanted is None:
        return
    kind = wanted.partition("=")[0]
    raise UserError(
        f"{wanted} was defined in this session, and the runs of a study are executed in other processes, which do not "
        f"know it; ablatio.train runs it here, and a plugin brings it everywhere\n"
        f"    try: ablatio new-plugin my-{kind.replace('_', '-')}s"
    )


def _named(plan: Plan) -> Iterator[str]:
    """The parts that the plan's runs choose: `norm=rmsnorm`; a search has made no run yet, and its axes name them."""
    from ablatio.config.schema import chosen

    for axis in plan.study.axes:
        for value in axis.values:
            yield from (f"{axis.key}={name.strip()}" for name in value.strip("[]").split(","))
    for config in (*(cell.config for cell in plan.cells), *(job.config for job in plan.jobs)):
        yield from (f"{entry.kind}={entry.name}" for entry, _ in chosen(config))
