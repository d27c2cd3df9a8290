"""The plan of a sweep: arms, refused arms and why, and jobs, all known before the first run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablatio.config.grammar import MAX_JOBS, too_many
from ablatio.errors import AblatioError, ConfigError, Problem
from ablatio.registry.kinds import designs
from ablatio.sweep import request, size_matching
from ablatio.sweep.adaptive import Results, Search, TuningDriver
from ablatio.sweep.arms import Cell, Planner, by_problem, distinct, job_id
from ablatio.sweep.registration import register
from ablatio.sweep.request import SweepRequest
from ablatio.sweep.study import STUDY, Job, Refused, Study, jobs_of

Follow = Callable[[Results], list[Job]]


@dataclass(slots=True)
class Plan:
    """A planned study: its jobs, and what their execution needs.

    study     written before the first run, and again when `more` adds jobs: it records tuned settings
    jobs      in execution order: all arms of one seed, then the next
    cells     checked arms that can run; of a search, those asked for so far
    config    config of the first arm, for `out` and `name` of the folder
    settings  the sweep's own settings
    launcher  overrides of the launcher
    coming    lower bound on the number of runs that follow from the results of `jobs`
    """

    study: Study
    jobs: list[Job]
    cells: Sequence[Cell]
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    launcher: Sequence[str] = ()
    follow: Follow | None = None
    coming: int = 0
    _given: set[tuple[str, int | None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._given |= {(job.id, job.until) for job in self.jobs}

    @property
    def adaptive(self) -> bool:
        """True if further jobs depend on the results of these."""
        return self.follow is not None

    def more(self, results: Results) -> list[Job]:
        """Return the jobs that follow from the results: new ones, or known ones with a later `until`.

        results: job id -> summary of its run, None if it failed
        """
        jobs = [j for j in (self.follow(results) if self.follow else ()) if (j.id, j.until) not in self._given]
        self._given |= {(job.id, job.until) for job in jobs}
        return jobs


def plan_sweep(overrides: Sequence[str], folder: Path | None = None) -> Plan:
    """Plan `ablatio train -m OVERRIDES`.  Raises ConfigError with everything that is wrong.

    folder: of a study to continue; by default out/name, if a name was given
    """
    sweep = request.read(overrides)
    planner, design = planner_of(sweep), design_of(sweep)
    _count(sweep, design)
    if hasattr(design, "more"):
        return _search(sweep, planner, design, folder)
    cells = planner.cells(design.arms())
    if not cells:
        raise ConfigError(by_problem(planner.refused, len(planner.refused)))
    begun, place = _begun(sweep, cells[0].config, folder)
    matching = None
    if sweep.settings["match"] in size_matching.MEASURES:
        matching = size_matching.Matching(planner, begun.matched if begun else {})
        cells = matching.matched(cells)
    study = _study(sweep, planner, design)
    study.registered = register(sweep.settings.values, cells[0].config["task"]["name"])
    study.matched = matching.found if matching else {}
    plan = Plan(study, [], cells, cells[0].config, sweep.settings.values, sweep.launcher)
    if sweep.settings["tune"]:
        tuning = TuningDriver(planner, cells, begun.tuned if begun else {})
        _follow(plan, tuning.more, current(place) if begun else {})
        plan.coming = len(cells) * len(sweep.seeds) - sum(job.role == "run" for job in plan.jobs)
        study.tuned = tuning.tuned  # filled as tuning proceeds
    else:
        plan.jobs = distinct(job for seed in sweep.seeds for cell in cells for job in planner.jobs(cell, seed))
    study.stages = tuple(dict.fromkeys(job.stage for job in plan.jobs if job.stage))
    return plan


def planner_of(sweep: SweepRequest) -> Planner:
    """Return the planner for arms that are single runs, or recipes."""
    if not sweep.of_recipes:
        return Planner(sweep)
    from ablatio.sweep.recipe_arms import RecipePlanner

    return RecipePlanner(sweep)


def _search(sweep: SweepRequest, planner: Planner, design: Any, folder: Path | None) -> Plan:
    if sweep.of_recipes:
        what = f"design={sweep.settings.design['name']} searches over single runs, and an arm of this sweep is a recipe"
        raise ConfigError([Problem("design", what, f"design={designs.usual}")])
    if sweep.settings["tune"]:
        name = sweep.settings.design["name"]
        what = f"design={name} searches itself; make {sweep.settings['tune']} one of its axes"
        raise ConfigError([Problem("tune", what, "tune=null")])
    search = Search(planner, design)
    if not search.more({}):
        raise ConfigError(by_problem(planner.refused, len(planner.refused)))
    begun, place = _begun(sweep, search.cells[0].config, folder)
    if begun and begun.matched:
        planner = Planner(sweep)
        search = Search(planner, design, begun.matched)
        search.more({})
    study = _study(sweep, planner, design)
    study.registered = register(sweep.settings.values, search.cells[0].config["task"]["name"])
    plan = Plan(study, [], search.cells, search.cells[0].config, sweep.settings.values, sweep.launcher)
    known = current(place) if begun else {}
    search.remember(known.values())

    def follow(results: Results) -> list[Job]:
        jobs = search.more(results)
        study.matched = {**(begun.matched if begun else {}), **search.matched}
        study.refused = _refused(planner)
        return jobs

    _follow(plan, follow, known)
    plan.coming = max(0, design.count() - len(plan.jobs))
    return plan


def _follow(plan: Plan, follow: Follow, known: Mapping[str, Job]) -> None:
    """Let the plan continue with `follow`; jobs that a study of this name has begun are part of it."""
    plan.follow = follow
    first = {job.id: job for job in plan.more({})}
    plan.jobs = [*{**first, **known}.values()]
    plan._given |= {(job.id, job.until) for job in plan.jobs}


def _begun(sweep: SweepRequest, config: Mapping[str, Any], folder: Path | None) -> tuple[Study | None, Path]:
    """(study that the same command began or None, its folder)."""
    folder = folder or Path(config["out"]).expanduser() / (config["name"] or "")
    if not (folder / STUDY).exists():
        return None, folder
    begun = Study.read(folder)
    return (begun if request.lasting(begun.overrides) == request.lasting(sweep.overrides) else None), folder


def current(folder: Path) -> dict[str, Job]:
    """Return the jobs of a study that the present code would plan unchanged."""
    jobs = {job.id: job for job in jobs_of(folder)}
    stale = {job.id for job in jobs.values() if not _is_current(job)}
    while more := {job.id for job in jobs.values() if stale.intersection(job.takes)} - stale:
        stale |= more
    return {name: job for name, job in jobs.items() if name not in stale}


def _is_current(job: Job) -> bool:
    from ablatio.training.run_folder import resolved

    try:
        return job_id(resolved(job.config, job.id)) == job.id
    except AblatioError:  # it names a part or a setting that no longer exists
        return False


def design_of(sweep: SweepRequest) -> Any:
    """Build the design from the axes and its knobs."""
    chosen = dict(sweep.settings.design)
    return designs.build(chosen.pop("name"), chosen, axes=sweep.axes, baseline=sweep.first)


def _count(sweep: SweepRequest, design: Any) -> None:
    """Raise UserError if there are too many runs, by counting, before any is created."""
    name, seeds = sweep.settings.design["name"], len(sweep.seeds)
    trials = sweep.settings["trials"] if sweep.settings["tune"] else 0
    if (count := design.count() * (seeds + trials)) > MAX_JOBS:
        raise too_many(f"design={name} with {seeds} seed{'s' * (seeds > 1)}", count)
    intervals = [axis.key for axis in sweep.axes if axis.interval]
    if intervals and not designs[name].facts["intervals"]:
        able = [entry.name for entry in designs if entry.facts["intervals"]]
        what = f"design={name} needs single values, an interval came; {', '.join(able)} accept intervals"
        raise ConfigError([Problem(intervals[0], what, f"design={able[0]}")])


def _study(sweep: SweepRequest, planner: Planner, design: Any) -> Study:
    return Study(
        name=sweep.name,
        question=str(sweep.study.get("question", "")),
        expected=str(sweep.study.get("expected", "")),
        design=dict(sweep.settings.design),
        axes=sweep.axes,
        seeds=sweep.seeds,
        baseline=planner.applicable(sweep.baseline)[0] if sweep.baseline else None,
        refused=_refused(planner),
        settings=sweep.settings.changed,
        overrides=sweep.overrides,
        same=dict(planner.same),
        aliases=design.aliases() if hasattr(design, "aliases") else (),
    )


def _refused(planner: Planner) -> list[Refused]:
    return [Refused(arm, "; ".join(f"{p.where}: {p.what}" for p in found)) for arm, found in planner.refused]
