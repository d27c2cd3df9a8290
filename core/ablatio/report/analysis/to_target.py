"""Which arms reach the study's target, from which step on, and how the arms compare at their stopping steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from ablatio.report.analysis.arms import Arm
from ablatio.report.read.curves import Curve, read_curves
from ablatio.report.read.run import Run
from ablatio.report.statistics import Difference, holm, paired
from ablatio.report.statistics.target import TargetTest, against_target, stopping_step

MOST = 8  # arms; with more their pairs are not compared
LOSS, BPB = "val/loss", "val/bpb"


@dataclass(frozen=True, slots=True)
class Stop:
    """An arm at its stopping step: the earliest evaluation from which on the target is reached (`stopping_step`).

    values  block -> score of each seed there
    cost    tokens, bytes (of text, from nats per token and bits per byte) and seconds up to there, means over the
            seeds; without those that the runs do not record
    """

    step: int
    values: Mapping[int, float]
    cost: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AtStops:
    """Two arms compared at their own stopping steps, over the seeds that both have; p after Holm."""

    a: str
    b: str
    difference: Difference
    p: float


@dataclass(frozen=True, slots=True)
class ToTarget:
    """tests and stops by arm name; stops: only of arms that reach the target and have learning curves.

    pairs  arms that stop at different steps.  Their steps depend on the same runs: p is no proof of a difference
    """

    target: float
    better: str
    tests: Mapping[str, TargetTest]
    stops: Mapping[str, Stop]
    pairs: Sequence[AtStops]

    @property
    def reached(self) -> list[str]:
        """Names of the arms that reach the target."""
        return [name for name, test in self.tests.items() if test.reached]

    def distance(self, name: str) -> float:
        """How far the mean of an arm is from the target; below 0 where it is beyond it."""
        apart = self.tests[name].mean - self.target
        return apart if self.better == "low" else -apart


def to_target(arms: Sequence[Arm], metric: str, target: float, *, better: str, alpha: float) -> ToTarget:
    """Test every arm that has a score against the target."""
    scored = [arm for arm in arms if arm.values]
    tests = against_target({a.name: list(a.values.values()) for a in scored}, target, better=better, alpha=alpha)
    stops: dict[str, Stop] = {}
    for arm in scored:
        if tests[arm.name].reached and (stop := _stop(arm, metric, target, better, alpha, len(scored))):
            stops[arm.name] = stop
    base = next((a.name for a in scored if a.baseline and a.name in stops), None)
    pairs = [(a, base) for a in stops if a != base] if base else list(combinations(stops, 2))
    pairs = [(a, b) for a, b in pairs if stops[a].step != stops[b].step]
    return ToTarget(target, better, tests, stops, _compared(stops, pairs if len(stops) <= MOST or base else []))


def _stop(arm: Arm, metric: str, target: float, better: str, alpha: float, arms: int) -> Stop | None:
    curves = {block: _curves(run) for block, run in arm.counted.items() if run.done}
    own = {seed: dict(zip(*found[metric], strict=True)) for seed, found in curves.items() if metric in found}
    # A stopping step is one for all seeds: a run without its curve leaves nothing to be said.
    if len(own) < 2 or own.keys() != arm.values.keys():
        return None
    steps = sorted(set.intersection(*(set(curve) for curve in own.values())))
    values = [[curve[s] for s in steps] for curve in own.values()]
    step = stopping_step(steps, values, target, better=better, alpha=alpha, arms=arms)
    if step is None:
        return None
    return Stop(step, {seed: curve[step] for seed, curve in own.items()}, _cost(list(curves.values()), step))


def _curves(run: Run) -> Mapping[str, Curve]:
    """Each logged value of the run; the thinned curves of the report where the file is gone."""
    # The curves of the report are thinned, and may lack the step at which the target is first reached.
    whole, _ = read_curves(run.folder / "metrics.csv", thin=False, also=("tokens",))
    return whole or run.curves


def _cost(curves: Sequence[Mapping[str, Curve]], step: int) -> dict[str, float]:
    """Mean over the seeds of what was spent up to a step, of what all of them record."""
    found = {
        name: float(np.mean([np.interp(step, *c[name]) for c in curves]))
        for name in ("tokens", "seconds")
        if all(name in c for c in curves)
    }
    if "tokens" in found and all(LOSS in c and BPB in c for c in curves):
        # (nats per token) / ln 2 = bits per token; over the bits per byte these are bytes per token.
        per_token = [c[LOSS][1][-1] / (math.log(2) * c[BPB][1][-1]) for c in curves if c[BPB][1][-1] > 0]
        found |= {"bytes": found["tokens"] * float(np.mean(per_token))} if per_token else {}
    return found


def _compared(stops: Mapping[str, Stop], pairs: Sequence[tuple[str, str]]) -> list[AtStops]:
    found = []
    for a, b in pairs:
        common = sorted(stops[a].values.keys() & stops[b].values.keys())
        found.append(paired([stops[a].values[s] for s in common], [stops[b].values[s] for s in common]))
    corrected = holm([d.p for d in found]) if found else []
    return [AtStops(a, b, d, float(p)) for (a, b), d, p in zip(pairs, found, corrected, strict=True)]
