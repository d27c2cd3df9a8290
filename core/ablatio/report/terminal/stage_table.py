"""Tables of a sweep of recipes: the plan before the first run, the scores after the last."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ablatio.report.terminal.plan_table import seeds_sentence
from ablatio.sweep.durations import duration
from ablatio.sweep.engine import Result
from ablatio.sweep.plan import Plan
from ablatio.sweep.score import cost_of, score_of
from ablatio.sweep.study import Job, is_done, label_of
from ablatio.sweep.time_probe import Times, times


def chain(job: Job, jobs: Mapping[str, Job]) -> list[Job]:
    """The job after all jobs that it depends on, each once."""
    found = {one.id: one for name in job.takes for one in chain(jobs[name], jobs)}
    return [*found.values(), job]


def show_recipes(plan: Plan, folder: Path | None = None) -> None:
    """Print the planned arms: ready or done, how many arms share each stage, estimated time."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, most = Console(), int(plan.settings["table"])
    known = Times()
    if most:
        with console.status("each stage is begun for a moment, to tell how long the runs take"):
            known = _times(plan, folder)
        table = Table(box=None, pad_edge=False)
        for column in ("arm", "state", *plan.study.stages, "all stages"):
            table.add_column(escape(column), overflow="fold")
        for label, cells in list(_rows(plan, folder, known).items())[:most]:
            table.add_row(escape(label), *map(escape, cells))
        for refused in plan.study.refused[:most]:
            table.add_row(escape(label_of(refused.arm)), escape(f"refused: {refused.why}"))
        console.print(table, highlight=False)
        if len(plan.cells) > most:
            console.print(f"... and more; table={len(plan.cells)} shows all", highlight=False)
    for sentence in (*sentences(plan, known, folder), *seeds_sentence(plan, folder)):
        console.print(sentence, highlight=False, markup=False)


def _times(plan: Plan, folder: Path | None) -> Times:
    """Estimated time of each run, from finished runs or a brief start of one arm; none for a joining process."""
    jobs = {job.id: job for job in plan.jobs}
    if plan.settings["join"] or all(is_done(folder, name) for name in jobs):
        return Times()
    # One arm from its first stage on: later stages start from what the earlier ones leave.
    line = next(chain(job, jobs) for job in plan.jobs if job.role == "run")
    return times(plan.jobs, line, folder)


def _rows(plan: Plan, folder: Path | None, known: Times) -> dict[str, list[str]]:
    """arm -> its state, how many arms share each stage, and the time of all stages with the first seed."""
    jobs = {job.id: job for job in plan.jobs}
    chains: dict[str, list[list[Job]]] = {}
    for job in plan.jobs:
        if job.role == "run":
            chains.setdefault(job.label, []).append(chain(job, jobs))
    users: dict[str, set[str]] = {}
    for label, lines in chains.items():
        for job in (job for line in lines for job in line):
            users.setdefault(job.id, set()).add(label)
    rows = {}
    for label, lines in chains.items():
        runs = {job.id for line in lines for job in line}
        done = sum(is_done(folder, name) for name in runs)
        whose = {job.stage: _whose(len(users[job.id]), len(chains)) for job in lines[0]}
        state = f"{done} of {len(runs)} done" if done else "ready"
        each = [known.seconds.get(job.id) for job in lines[0]]
        whole = "" if None in each else duration(sum(s for s in each if s))
        rows[label] = [state, *(whose.get(stage, "") for stage in plan.study.stages), whole]
    return rows


def _whose(arms: int, total: int) -> str:
    return "its own" if arms == 1 else f"all {total} arms'" if arms == total else f"{arms} arms'"


def show_results(results: Sequence[Result], stages: Sequence[str], folder: Path) -> None:
    """Print the runs stage by stage, the best score first, failed ones last."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = f"{len(results)} runs in {escape(str(folder))}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("stage", "arm", "seed", "score", "before", "after", "seconds"):
        right = column in ("seed", "before", "after", "seconds")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for result in sorted(results, key=lambda r: (stages.index(r.job.stage), cost_of(r.summary))):
        job, summary, score = result.job, result.summary, score_of(result.summary)
        arm = " ".join(f"{k.removeprefix(f'stages.{job.stage}.')}={v}" for k, v in job.arm.items())
        cells = [f"failed ({result.entry.kind})" if result.entry.state == "failed" else "", "", "", ""]
        if score:
            before = (summary.get("before") or {}).get(score.name.removeprefix("val/"))
            known = f"{before:.4f}" if isinstance(before, float | int) else ""
            cells = [score.name.removeprefix("val/"), known, f"{score.value:.4f}", f"{summary['seconds']:.0f}"]
        table.add_row(job.stage, escape(arm), str(job.seed), *map(escape, cells))
    Console().print(table)


def sentences(plan: Plan, known: Times, folder: Path | None = None) -> Iterator[str]:
    """Yield the plan in words."""
    arms, seeds, stages = len(plan.cells), len(plan.study.seeds), len(plan.study.stages)
    text = f"{_count(arms, 'arm')} of {_count(stages, 'stage')} with {_count(seeds, 'seed')}: {len(plan.jobs)} runs"
    apart = arms * seeds * stages
    if apart > len(plan.jobs):
        text += f"; {apart} if arms shared none"
    text += f"; {len(plan.study.refused)} arms refused" if plan.study.refused else ""
    left = [job for job in plan.jobs if not is_done(folder, job.id)]
    text += f"; {len(plan.jobs) - len(left)} of them done" if len(left) < len(plan.jobs) else ""
    if known.seconds and not known.untold:
        text += f"; about {duration(sum(known.seconds[job.id] for job in left))} of computing on one core"
    yield text + "."
    if known.untold:
        yield f"How long that takes is not told: {known.untold} came to no step in the time for which it was tried."


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
