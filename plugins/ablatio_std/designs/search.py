"""Searches: a trial has one seed that no comparison uses; the survivors run again with the seeds of the sweep.

A search is a function of what it was told: `more(told)` gives the next asks, the same ones in a resumed sweep.
"""

import itertools
import math
import random
from collections.abc import Sequence
from typing import Annotated, Any

from ablatio import NonNegative, Positive, Range, designs
from ablatio.errors import UserError
from ablatio.registry.kinds.search_space import Arm, Trial, TrialResult
from ablatio_std.designs.sampling import Random


def best(told: Sequence[TrialResult], count: int) -> list[Arm]:
    """The `count` different arms with the least loss."""
    ordered = sorted((t for t in told if math.isfinite(t.loss)), key=lambda t: t.loss)
    unique = {tuple(t.ask.arm.items()): t.ask.arm for t in ordered}
    return list(itertools.islice(unique.values(), count))


def finals(told: Sequence[TrialResult], trials: Sequence[TrialResult], survivors: int) -> list[Trial]:
    """The survivors, unless they were asked for already."""
    if any(t.ask.final for t in told):
        return []
    return [Trial(arm, final=True) for arm in best(trials, survivors)]


@designs.register("halving", paper="arXiv:1502.07943")
class Halving:
    """All arms to the share `first` of their schedules, the best 1 / eta of them eta times as far, and so on.

    n arms and rungs first * eta^i: after each rung ceil(n / eta^i) go on, from where they stand; those that reach the
    end are the survivors.  Losses are compared at equal shares of the arms' own schedules.
    """

    factors = False
    intervals = True

    def __init__(
        self,
        axes: Sequence[Any],
        *,
        runs: Annotated[int, Positive, "arms of the first rung; all combinations, or a sample of them"] = 27,
        eta: Annotated[int, Range(2), "one in eta goes on"] = 3,
        first: Annotated[float, Range(0, 1, open_low=True), "share of the schedule at the first rung"] = 1 / 9,
        survivors: Annotated[int, Positive, "that run again with all seeds, at most"] = 3,
        seed: Annotated[int, NonNegative, "of the sample"] = 0,
    ) -> None:
        self.sample = Random(axes, runs=runs, seed=seed)
        self.eta, self.first, self.survivors = eta, first, survivors

    def count(self) -> int:
        return self.sample.count() + self.survivors

    def more(self, told: Sequence[TrialResult]) -> list[Trial]:
        trials = [t for t in told if not t.ask.final]
        if not trials:
            return [Trial(arm, self.first) for arm in self.sample.arms()]
        share = max(t.ask.share for t in trials)
        rung = [t for t in trials if t.ask.share == share]
        if share == 1.0:
            return finals(told, rung, self.survivors)
        further = min(1.0, share * self.eta)
        return [Trial(arm, further) for arm in best(rung, math.ceil(len(rung) / self.eta))]


@designs.register("tpe", paper="arXiv:2304.11127")
class Tpe:
    """Tree-structured Parzen estimator: the next arm maximises l(x) / g(x), densities of good and of other trials.

    `batch` trials are asked at a time and run side by side; optuna does the sampling.
    """

    factors = False
    intervals = True

    def __init__(
        self,
        axes: Sequence[Any],
        *,
        trials: Annotated[int, Positive] = 40,
        batch: Annotated[int, Positive, "trials between two looks at the results"] = 4,
        startup: Annotated[int, Positive, "random trials at the start"] = 10,
        survivors: Annotated[int, Positive, "that run again with all seeds"] = 3,
        seed: Annotated[int, NonNegative] = 0,
    ) -> None:
        self.axes, self.trials, self.batch = axes, trials, batch
        self.startup, self.survivors, self.seed = startup, survivors, seed

    def count(self) -> int:
        return self.trials + self.survivors

    def more(self, told: Sequence[TrialResult]) -> list[Trial]:
        trials = [t for t in told if not t.ask.final]
        if len(trials) >= self.trials:
            return finals(told, trials, self.survivors)
        return [Trial(arm) for arm in self._asked(trials, min(self.batch, self.trials - len(trials)))]

    def _asked(self, trials: Sequence[TrialResult], count: int) -> list[Arm]:
        optuna = _optuna()
        sampler = optuna.samplers.TPESampler(
            seed=random.Random(f"{self.seed} {len(trials)}").randrange(2**31), n_startup_trials=self.startup
        )
        study = optuna.create_study(sampler=sampler, direction="minimize")
        space = {axis.key: _distribution(optuna, axis) for axis in self.axes}
        for t in trials:
            values = {axis.key: _read(axis, t.ask.arm[axis.key]) for axis in self.axes}
            worst = max((o.loss for o in trials if math.isfinite(o.loss)), default=0.0)
            loss = t.loss if math.isfinite(t.loss) else worst + 1.0  # failed: worse than all others
            study.add_trial(optuna.trial.create_trial(params=values, distributions=space, value=loss))
        asked = [study.ask(space).params for _ in range(count)]
        return [{axis.key: _write(axis, params[axis.key]) for axis in self.axes} for params in asked]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError("design=tpe samples with optuna\n    try: pip install 'ablatio[optuna]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(optuna: Any, axis: Any) -> Any:
    between = axis.interval
    if between is None:
        return optuna.distributions.CategoricalDistribution(axis.values)
    if between.whole:
        return optuna.distributions.IntDistribution(int(between.low), int(between.high), log=between.log)
    return optuna.distributions.FloatDistribution(between.low, between.high, log=between.log)


def _read(axis: Any, text: str) -> Any:
    between = axis.interval
    if between is None:
        return text
    return int(text) if between.whole else min(max(float(text), between.low), between.high)


def _write(axis: Any, value: Any) -> str:
    return f"{value:.6g}" if axis.interval and not axis.interval.whole else str(value)
