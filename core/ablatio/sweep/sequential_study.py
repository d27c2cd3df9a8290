"""Sequential studies (until=resolved): seeds are added in planned looks until every comparison is decided.

Looks, boundaries and the baseline stand in study.json before the first run, under `sequential`; each look adds what it
saw and decided:

    {"baseline": "norm=layernorm", "comparisons": 2, "alpha": 0.05, "metric": "val/loss", "margin": null,
     "seeds": [1, 2, ...], "boundaries": {"sizes": [3, 4, ...], "levels": ..., "nominal": ...},
     "budget": 7200.0, "run_seconds": 40.0,
     "looks": [{"seeds": 3, "runs": 9, "comparisons": {"norm=rmsnorm": {"n": 3, "mean": -0.02, "sd": 0.004,
                "p": 0.01, "sequential_p": 0.08, "state": "open"}}}, ...], "end": ""}

A look is a function of the results and of the looks before, so a sweep that was killed and is repeated decides the
same; looks that are recorded are never made again.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ablatio.errors import ConfigError, Problem
from ablatio.sweep import request, settings
from ablatio.sweep.arms import Cell, Planner, distinct
from ablatio.sweep.durations import duration
from ablatio.sweep.request import SweepRequest
from ablatio.sweep.study import Job, label_of

Results = Mapping[str, Mapping[str, Any] | None]
# (waiting, ready): jobs of a cell with these seeds; waiting ones, such as trials, come before those of the seeds
JobsOf = Callable[[Cell, Sequence[int], Results], tuple[list[Job], list[Job]]]
MOST_WITHOUT_TIME = 20  # seeds of the command that a refusal proposes


def plan_looks(
    sweep: SweepRequest, planner: Planner, cells: Sequence[Cell], registered: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the record of a new sequential study; ConfigError if it has no limit, or its limit is too low.

    registered  score and margin of the study (`sweep.registration`)

    Seconds are those of the computation, on one core for each run; runs at the same time need less by the clock.
    """
    from ablatio.sweep.group_sequential import Boundaries, look_sizes
    from ablatio.sweep.run_cost import seconds_per_seed

    baseline = _baseline(sweep, planner, cells)
    limits = settings.seed_limits(sweep.settings["seeds"] or "")
    budget = settings.seconds_of(sweep.settings["budget"] or "")
    timed = not sweep.of_recipes and (budget is not None or limits is None)
    seconds = seconds_per_seed([cell.config for cell in cells]) if timed else 0.0
    first = len(sweep.seeds)
    if limits is None and budget is None:
        raise ConfigError([_no_limit(first, len(cells), seconds)])
    most = limits[1] if limits else math.inf
    if budget is not None:
        most = min(most, _affordable(sweep, budget, seconds, first, len(cells)))
    if most < first:
        what = f"seeds={sweep.settings['seeds']} came with {first} values of seed=: the first look needs them all"
        raise ConfigError([Problem("seeds", what, f"seeds={first}..{first + 10}")])
    sizes = look_sizes(first, int(most))
    return {
        "baseline": baseline,
        "comparisons": len(cells) - 1,
        "alpha": sweep.settings["alpha"],
        "metric": registered["metric"],
        "margin": registered.get("margin"),
        "seeds": list(request.first_seeds(sweep.seeds, sizes[-1])),
        "boundaries": Boundaries.of(sizes).as_dict(),
        "budget": budget,
        "run_seconds": seconds / len(cells),
        "looks": [],
        "end": "",
    }


def _baseline(sweep: SweepRequest, planner: Planner, cells: Sequence[Cell]) -> str:
    """Label of the arm that the others are compared with: the baseline, else the first value of each axis."""
    if len(cells) < 2:
        raise ConfigError([Problem("until", "there is one arm, and nothing to compare it with", "until=null")])
    label = label_of(planner.applicable(sweep.first)[0])
    label = planner.same.get(label, label)
    if label not in {cell.label for cell in cells}:
        what = f"until=resolved compares with a baseline, and {label} is none of the arms that run"
        raise ConfigError([Problem("baseline", what, f"baseline={','.join(cells[0].label.split())}")])
    return label


def _no_limit(first: int, arms: int, seconds: float) -> Problem:
    most = max(MOST_WITHOUT_TIME, 2 * first)
    cost = f"{arms} arms with {most} seeds are {arms * most} runs"
    cost += f", about {duration(most * seconds, 2)} of computing" if seconds else ""
    what = f"until=resolved needs a limit, budget= or seeds=: {cost}"
    return Problem("until", what, f"seeds={first}..{most}")


def _affordable(sweep: SweepRequest, budget: float, seconds: float, first: int, arms: int) -> int:
    """Most seeds that the budget pays for."""
    if not seconds:
        what = "the time of a run cannot be estimated here, so a budget does not tell the number of seeds"
        raise ConfigError([Problem("budget", what, f"seeds={first}..{max(MOST_WITHOUT_TIME, 2 * first)} budget=null")])
    trials = sweep.settings["trials"] if sweep.settings["tune"] else 0
    most = math.floor(budget / seconds + 1e-9) - trials
    if most < first:
        need = (first + trials) * seconds
        tuning = f" after {trials} trials of each arm" if trials else ""
        what = (
            f"{sweep.settings['budget']} is too little: {first} seeds of {arms} arms{tuning} take about "
            f"{duration(need, 2)} of computing, and that is the first look"
        )
        raise ConfigError([Problem("budget", what, f"budget={math.ceil(4 * need / 60)}min")])
    return min(most, request.MOST_SEEDS)


class SequentialDriver:
    """Adds seeds look by look.  record: as `plan_looks` made it; looks are appended."""

    def __init__(self, cells: Sequence[Cell], record: dict[str, Any], jobs_of: JobsOf) -> None:
        from ablatio.sweep.group_sequential import Boundaries
        from ablatio.sweep.stopping_rule import StoppingRule

        self.record, self.jobs_of = record, jobs_of
        self.baseline = next(cell for cell in cells if cell.label == record["baseline"])
        self.others = [cell for cell in cells if cell is not self.baseline]
        boundaries = Boundaries.read(record["boundaries"])
        self.rule = StoppingRule(boundaries, record["comparisons"], record["alpha"], record["margin"])

    def more(self, results: Results) -> list[Job]:
        """Return the jobs of the next look; empty when the study has ended."""
        while not self.record["end"]:
            size = self.rule.sizes[len(self.record["looks"])]
            seeds = self.record["seeds"][:size]
            waiting, ready = list[Job](), dict[str, list[Job]]()
            for cell in self._running():
                before, jobs = self.jobs_of(cell, seeds, results)
                waiting += before
                ready[cell.label] = jobs
            jobs = distinct(sorted((j for of in ready.values() for j in of), key=lambda j: seeds.index(j.seed)))
            if waiting or not all(_ended(job, results) for job in jobs):
                return [*distinct(waiting), *jobs]
            self._look(seeds, ready, results)
        return []

    def _running(self) -> list[Cell]:
        """Cells that get seeds: the baseline and the arms whose comparison is open."""
        last = self.record["looks"][-1]["comparisons"] if self.record["looks"] else {}
        return [self.baseline, *(c for c in self.others if last.get(c.label, {}).get("state", "open") == "open")]

    def _look(self, seeds: Sequence[int], ready: Mapping[str, Sequence[Job]], results: Results) -> None:
        """Make the next look and record it."""
        import numpy as np

        from ablatio.sweep.stopping_rule import NAMES, OPEN, UNTESTED, moments, t_test_p

        look = len(self.record["looks"])
        earlier = self.record["looks"][-1]["comparisons"] if look else {}
        states = np.array([NAMES.index(earlier.get(c.label, {}).get("state", "open")) for c in self.others])
        before = np.array([_number(earlier.get(c.label, {}).get("sequential_p", 1.0)) for c in self.others])
        scores = {label: _scores(jobs, results, self.record["metric"]) for label, jobs in ready.items()}
        base = scores[self.baseline.label]
        found = []
        for i, cell in enumerate(self.others):
            if cell.label not in ready:
                known = earlier[cell.label]
                found.append((_number(known["mean"]), _number(known["sd"]), known["n"]))
                continue
            mine = scores[cell.label]
            common = [s for s in seeds if s in mine and s in base]
            if not all(math.isfinite(x) for of in (mine, base) for x in of.values()):
                states[i] = UNTESTED
            pairs = [(mine[s], base[s]) for s in common if math.isfinite(mine[s]) and math.isfinite(base[s])]
            found.append(moments(*map(list, zip(*pairs, strict=True))) if pairs else (math.nan, math.nan, 0))
        mean, sd, n = (np.array(column, dtype=np.float64) for column in zip(*found, strict=True))
        p, states = self.rule.decide(look, mean, sd, n, before, states)
        raw = t_test_p(mean, sd, n)
        comparisons = {
            cell.label: {
                "n": int(n[i]), "mean": _plain(mean[i]), "sd": _plain(sd[i]), "p": _plain(raw[i]),
                "sequential_p": _plain(p[i]), "state": NAMES[int(states[i])],
            }
            for i, cell in enumerate(self.others)
        }  # fmt: skip
        self.record["looks"].append({"seeds": len(seeds), "runs": len(results), "comparisons": comparisons})
        if not (states == OPEN).any():
            self.record["end"] = "decided"
        elif len(self.record["looks"]) == len(self.rule.sizes):
            self.record["end"] = "last look"
        elif self._too_expensive(int((states == OPEN).sum()) + 1, results):
            self.record["end"] = "budget"

    def _too_expensive(self, arms: int, results: Results) -> bool:
        """True if the runs until the next look would exceed the budget, at the mean time of those so far."""
        if self.record["budget"] is None:
            return False
        times = [float(summary.get("seconds") or 0.0) for summary in results.values() if summary]
        sizes, look = self.rule.sizes, len(self.record["looks"])
        runs = arms * (sizes[look] - sizes[look - 1])
        return sum(times) + runs * (sum(times) / len(times)) > float(self.record["budget"]) if times else False


def _ended(job: Job, results: Results) -> bool:
    """True if a run has ended, or cannot start because a run that it depends on has failed."""
    return job.id in results or any(_failed(results[name]) for name in job.takes if name in results)


def _failed(summary: Mapping[str, Any] | None) -> bool:
    return summary is None or summary.get("status") in ("failed", "diverged")


def _scores(jobs: Sequence[Job], results: Results, metric: str) -> dict[int, float]:
    """Score by seed; nan for a diverged run, no entry for one that failed."""
    found: dict[int, float] = {}
    for job in jobs:
        summary = results.get(job.id)
        if job.role != "run" or summary is None:
            continue
        value = summary.get(metric)
        sound = summary.get("status") != "diverged" and isinstance(value, int | float) and math.isfinite(value)
        found[job.seed] = float(value) if sound else math.nan  # type: ignore[arg-type]
    return found


def _plain(x: float) -> float | None:
    return None if math.isnan(x) else float(x)


def _number(x: float | None) -> float:
    return math.nan if x is None else x
