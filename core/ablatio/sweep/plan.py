"""The plan of a sweep: arms, refused arms and why, and jobs, all known before the first run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ablatio.config import yaml_files
from ablatio.config.grammar import MAX_JOBS, too_many
from ablatio.errors import AblatioError, ConfigError, Problem, UserError
from ablatio.registry.kinds import designs
from ablatio.sweep import request, size_matching
from ablatio.sweep.adaptive import Results, Search, TuningDriver, trial_seed
from ablatio.sweep.arms import Cell, Planner, by_problem, distinct, job_id
from ablatio.sweep.registration import register
from ablatio.sweep.request import SweepRequest
from ablatio.sweep.sequential_study import JobsOf, SequentialDriver, plan_looks
from ablatio.sweep.settings import seed_limits
from ablatio.sweep.study import SEEDS_ADDED, STUDY, Job, Refused, Study, is_done, jobs_of

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
    with yaml_files.read_once():
        return _plan(overrides, folder)


def _plan(overrides: Sequence[str], folder: Path | None) -> Plan:
    sweep = request.read(overrides)
    planner, design = planner_of(sweep), design_of(sweep)
    _count(sweep, design)
    if hasattr(design, "more"):
        return _search(sweep, planner, design, folder)
    cells = planner.cells(design.arms())
    if not cells:
        raise ConfigError(by_problem(planner.refused, len(planner.refused)))
    past = History.of(sweep, cells[0].config, folder)
    matching = None
    if sweep.settings["match"] in size_matching.MEASURES:
        matching = size_matching.Matching(planner, past.study.matched if past.study else {})
        cells = matching.matched(cells)
    study = _study(sweep, planner, design, past)
    study.registered = register(sweep.settings.values, [cell.config for cell in cells])
    study.matched = matching.found if matching else {}
    plan = Plan(study, [], cells, cells[0].config, sweep.settings.values, sweep.launcher)
    if sweep.settings["until"]:
        _add_looks(plan, sweep, planner, past)
    elif sweep.settings["tune"]:
        tuning = TuningDriver(planner, cells, past.study.tuned if past.study else {}, past.trial_seed)
        study.trial_seed = tuning.trial_seed
        past.refuse_trial_seed(sweep.seeds)
        _follow(plan, tuning.more, past.jobs)
        plan.coming = len(cells) * len(sweep.seeds) - sum(job.role == "run" for job in plan.jobs)
        study.tuned = tuning.tuned  # filled as tuning proceeds
    else:
        plan.jobs = distinct(job for seed in sweep.seeds for cell in cells for job in planner.jobs(cell, seed))
    study.stages = tuple(dict.fromkeys(job.stage for job in plan.jobs if job.stage))
    return plan


def _add_looks(plan: Plan, sweep: SweepRequest, planner: Planner, past: History) -> None:
    """Make the plan that of a sequential study: the jobs of its first look, and the rest as looks decide."""
    if designs[sweep.settings.design["name"]].facts["screens"]:
        what = f"design={sweep.settings.design['name']} estimates effects from all arms; no arm of it can stop early"
        raise ConfigError([Problem("until", what, "until=null")])
    study = plan.study
    study.sequential = past.study.sequential if past.study else plan_looks(sweep, planner, plan.cells, study.registered)
    study.seeds = study.sequential["seeds"]
    study.baseline = next(cell.arm for cell in plan.cells if cell.label == study.sequential["baseline"])

    def untuned(cell: Cell, seeds: Sequence[int], results: Results) -> tuple[list[Job], list[Job]]:
        return [], [job for seed in seeds for job in planner.jobs(cell, seed)]

    jobs_of: JobsOf = untuned
    if sweep.settings["tune"]:
        seed = past.trial_seed if past.study else trial_seed(study.seeds)
        tuning = TuningDriver(planner, plan.cells, past.study.tuned if past.study else {}, seed)
        study.trial_seed, study.tuned, jobs_of = tuning.trial_seed, tuning.tuned, tuning.jobs_of
    _follow(plan, SequentialDriver(plan.cells, study.sequential, jobs_of).more, past.jobs)


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
    if sweep.settings["until"]:
        name = sweep.settings.design["name"]
        what = f"design={name} compares its survivors over the seeds of seed=; a second study can add seeds to them"
        raise ConfigError([Problem("until", what, "until=null")])
    planner.refuse_unused_of_search()
    search = Search(planner, design)
    if not search.more({}):
        raise ConfigError(by_problem(planner.refused, len(planner.refused)))
    past = History.of(sweep, search.cells[0].config, folder)
    begun = past.study
    if begun:
        planner = Planner(sweep)
        search = Search(planner, design, begun.matched, past.trial_seed)
        search.more({})
    past.refuse_trial_seed(sweep.seeds)
    study = _study(sweep, planner, design, past)
    study.registered = register(sweep.settings.values, [cell.config for cell in search.cells])
    study.trial_seed = search.trial_seed
    plan = Plan(study, [], search.cells, search.cells[0].config, sweep.settings.values, sweep.launcher)
    known = past.jobs
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


@dataclass(frozen=True)
class History:
    """Contents of the folder in which a study is planned.

    study   the study that the same command began, or the same one with fewer seeds; None: there is none
    place   its folder
    added   seeds that this command adds
    """

    study: Study | None
    place: Path
    added: tuple[int, ...] = ()

    @classmethod
    def of(cls, sweep: SweepRequest, config: Mapping[str, Any], folder: Path | None) -> History:
        """Read the folder; UserError if it holds a sequential study, or another one that is to become one."""
        place = folder or Path(config["out"]).expanduser() / (config["name"] or "")
        if not (place / STUDY).exists():
            return cls(None, place)
        old = Study.read(place)
        if request.lasting(old.overrides) == request.lasting(sweep.overrides):
            return cls(old, place)
        if old.sequential or sweep.settings["until"]:
            raise UserError(_planned_looks(place, bool(old.sequential)))
        added = tuple(seed for seed in sweep.seeds if seed not in old.seeds)
        same = request.lasting_but_seeds(old.overrides) == request.lasting_but_seeds(sweep.overrides)
        if same and added and set(old.seeds) <= set(sweep.seeds):
            return cls(old, place, added)
        return cls(None, place)

    @cached_property
    def jobs(self) -> Mapping[str, Job]:
        """Its jobs that the present code would plan unchanged."""
        return current(self.place) if self.study else {}

    @property
    def trial_seed(self) -> int | None:
        """Seed of the trials that were run; None without trials."""
        if self.study is None or self.study.trial_seed is not None:
            return self.study.trial_seed if self.study else None
        return next((job.seed for job in self.jobs.values() if job.role in ("trial", "rung")), None)

    def refuse_trial_seed(self, seeds: Sequence[int]) -> None:
        """Raise ConfigError if the arms were chosen by runs with one of these seeds: they would look too good."""
        taken = self.trial_seed
        if taken in seeds:
            free = [seed for seed in seeds if seed != taken]
            fresh = max(seeds) + 1
            what = f"{taken} is the seed of this study's trials, which chose its settings: it cannot compare arms too"
            raise ConfigError([Problem("seed", what, f"seed={','.join(map(str, [*free, fresh]))}")])

    @property
    def deviations(self) -> list[Mapping[str, Any]]:
        """Deviations of the study so far, and the seeds that are added now that results are there.

        Every finished run counts as seen: its score is printed when it ends, and reports leave no trace.
        """
        if self.study is None:
            return []
        known = list(self.study.deviations)
        done = self.added and sum(job.role == "run" and is_done(self.place, job.id) for job in jobs_of(self.place))
        if not done:
            return known
        return [*known, {"kind": SEEDS_ADDED, "seeds": list(self.study.seeds), "added": list(self.added), "done": done}]


def _planned_looks(place: Path, old: bool) -> str:
    why = (
        "holds a sequential study, whose looks, seeds and budget were fixed before its first run"
        if old
        else "holds results, and until=resolved plans its looks before the first one"
    )
    go_on = f", or `ablatio resume {place}`" if old else ""
    return f"{place} {why}\n    try: the same command with name={place.name}-2{go_on}"


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
    if limits := seed_limits(sweep.settings["seeds"] or ""):
        seeds = max(seeds, limits[1])
    trials = sweep.settings["trials"] if sweep.settings["tune"] else 0
    if (count := design.count() * (seeds + trials)) > MAX_JOBS:
        raise too_many(f"design={name} with {seeds} seed{'s' * (seeds > 1)}", count)
    intervals = [axis.key for axis in sweep.axes if axis.interval]
    if intervals and not designs[name].facts["intervals"]:
        able = [entry.name for entry in designs if entry.facts["intervals"]]
        what = f"design={name} needs single values, an interval came; {', '.join(able)} accept intervals"
        raise ConfigError([Problem(intervals[0], what, f"design={able[0]}")])


def _study(sweep: SweepRequest, planner: Planner, design: Any, past: History) -> Study:
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
        deviations=past.deviations,
    )


def _refused(planner: Planner) -> list[Refused]:
    return [Refused(arm, "; ".join(f"{p.where}: {p.what}" for p in found)) for arm, found in planner.refused]
