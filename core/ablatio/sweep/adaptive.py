"""Jobs that depend on results: trials of a search, and runs that wait for a tuned setting.

Both are pure functions of the results, so a resumed sweep plans what the interrupted one would have planned.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ablatio.errors import ConfigError, Problem
from ablatio.registry.kinds.search_space import Arm, Trial, TrialResult
from ablatio.sweep import size_matching
from ablatio.sweep.arms import Cell, Planner
from ablatio.sweep.score import score_of
from ablatio.sweep.study import Job

Results = Mapping[str, Mapping[str, Any] | None]  # job id -> summary of its run; None if it failed


def outcome(job: Job, results: Results) -> float | None:
    """Cost of the job's final score; infinite if it failed, None if it has not finished."""
    if job.id not in results:
        return None
    summary = results[job.id] or {"status": "failed"}
    if summary.get("status") in ("failed", "diverged"):
        return math.inf
    if summary.get("steps") != (
        job.until or job.config["train"]["steps"]
    ):  # interrupted, or stopped at an earlier rung
        return None
    score = score_of(summary)
    return score.cost if score else math.inf


def trial_seed(seeds: Sequence[int]) -> int:
    """Seed of trials: a seed that is never used to compare arms."""
    return max(seeds) + 1


class Search:
    """Search by trials: the design proposes trials and then its survivors, which run with all seeds.

    A named baseline is a survivor too, whatever its trials gave: without it the others are compared with nothing.
    seed: of the trials, if the study has begun; by default one that no comparison uses.
    """

    def __init__(
        self,
        planner: Planner,
        design: Any,
        matched: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        seed: int | None = None,
    ) -> None:
        self.planner, self.design = planner, design
        self.seeds = planner.sweep.seeds
        self.trial_seed = trial_seed(self.seeds) if seed is None else seed
        self.cells: list[Cell] = []
        self._cells: dict[tuple[tuple[str, str], ...], Cell | None] = {}
        self._losses: dict[tuple[str, int | None], float] = {}
        self._matching = (
            size_matching.Matching(planner, matched)
            if planner.sweep.settings["match"] in size_matching.MEASURES
            else None
        )

    @property
    def matched(self) -> Mapping[str, Mapping[str, Any]]:
        """Settings that `match=` chose, by arm."""
        return self._matching.found if self._matching else {}

    def remember(self, jobs: Iterable[Job]) -> None:
        """Restore the losses at earlier rungs of jobs that have gone on since."""
        self._losses |= {(job.id, int(step)): loss for job in jobs for step, loss in job.rungs.items()}

    def more(self, results: Results) -> list[Job]:
        """Return the jobs that the design waits for; empty when the search is over."""
        told: list[TrialResult] = []
        while asks := self._with_baseline(self.design.more(told)):
            outcomes = [self._outcome(ask, results) for ask in asks]
            if waiting := [job for jobs, loss in outcomes if loss is None for job in jobs]:
                return waiting
            told += [TrialResult(ask, loss or 0.0) for ask, (_, loss) in zip(asks, outcomes, strict=True)]
        return []

    def _with_baseline(self, asks: Sequence[Trial]) -> list[Trial]:
        """Add the baseline to the final trials."""
        baseline = self.planner.sweep.baseline
        if baseline is None or not any(ask.final for ask in asks):
            return list(asks)
        cell = self._cell(baseline)
        if cell is None or any(self._cell(ask.arm) is cell for ask in asks):
            return list(asks)
        return [*asks, Trial(baseline, final=True)]

    def _outcome(self, ask: Trial, results: Results) -> tuple[list[Job], float | None]:
        """(jobs of a trial, its loss once known); the loss of an arm that cannot run is infinite."""
        cell = self._cell(ask.arm)
        if cell is None:
            return [], math.inf
        if ask.final:
            jobs = [self.planner.job(cell, seed) for seed in self.seeds]
            known = [loss for job in jobs if (loss := outcome(job, results)) is not None]
            return jobs, sum(known) / len(known) if len(known) == len(jobs) else None
        job = self._trial(cell, ask.share)
        loss = self._losses.get((job.id, job.until), outcome(job, results))
        if loss is not None:
            self._losses[job.id, job.until] = loss
        return [job], loss

    def _trial(self, cell: Cell, share: float) -> Job:
        steps = int(cell.config["train"]["steps"])
        until = max(1, math.ceil(share * steps - 1e-9))
        ends = until >= steps
        job = self.planner.job(cell, self.trial_seed, role="trial" if ends else "rung", until=None if ends else until)
        earlier = {str(u): x for (i, u), x in self._losses.items() if i == job.id and u and (ends or u < until)}
        return job.with_rungs(earlier)

    def _cell(self, arm: Arm) -> Cell | None:
        """The cell of an arm; equal arms share one."""
        wish = self.planner.applicable(arm)[0]
        key = tuple(sorted(wish.items()))
        if key not in self._cells:
            cell = self.planner.cell(arm)
            if cell is not None and self._matching:
                cell = self._matching.one(cell)
            self._cells[key] = cell
            self.cells += [cell] if cell else []
        return self._cells[key]


class TuningDriver:
    """Gives each arm its own best value of one setting, from equally many trials on a logarithmic grid.

    seed: of the trials, if the study has begun: more seeds reuse the trials, and so the values that they chose.
    """

    def __init__(
        self,
        planner: Planner,
        cells: Sequence[Cell],
        tuned: Mapping[str, Mapping[str, str]] | None = None,
        seed: int | None = None,
    ) -> None:
        self.planner, self.cells = planner, cells
        self.key, self.trials = planner.sweep.settings["tune"], planner.sweep.settings["trials"]
        self.tuned = dict(tuned or {})
        self.trial_seed = trial_seed(planner.sweep.seeds) if seed is None else seed
        if any(axis.key == self.key for axis in planner.sweep.axes):
            what = f"{self.key} is an axis: each of its values is an arm of its own"
            raise ConfigError([Problem("tune", what, "tune=null")])
        if not any(self._default(cell) for cell in cells):
            what = f"no arm has a number {self.key} above 0"
            raise ConfigError([Problem("tune", what, "tune=optimizer.lr")])

    def more(self, results: Results) -> list[Job]:
        """Return open trials, and the runs of arms whose trials are finished."""
        waiting, ready, seeds = list[Job](), list[Job](), list(self.planner.sweep.seeds)
        for cell in self.cells:
            trials, runs = self.jobs_of(cell, seeds, results)
            waiting += trials
            ready += runs
        return waiting + sorted(ready, key=lambda job: seeds.index(job.seed))

    def jobs_of(self, cell: Cell, seeds: Sequence[int], results: Results) -> tuple[list[Job], list[Job]]:
        """(the trials of an arm, if some are open; else its runs with the best value)."""
        trials = {value: self._trial(cell, value) for value in self.values(cell)}
        losses = {value: outcome(job, results) for value, job in trials.items()}
        if None in losses.values():
            return list(trials.values()), []
        chosen: dict[str, str] = {}
        if trials:
            chosen = {self.key: min(trials, key=lambda value: losses[value] or 0.0)}
            self.tuned[cell.label] = chosen
        return [], [self.planner.job(cell, seed, more=chosen) for seed in seeds]

    def values(self, cell: Cell) -> list[str]:
        """The default value times powers of 2; empty if the arm has no such setting."""
        default = self._default(cell)
        return [f"{default * 2.0 ** (i - self.trials // 2):.6g}" for i in range(self.trials)] if default else []

    def _default(self, cell: Cell) -> float | None:
        value: Any = cell.config
        for step in self.key.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None

    def _trial(self, cell: Cell, value: str) -> Job:
        return self.planner.job(cell, self.trial_seed, more={self.key: value}, role="trial")
