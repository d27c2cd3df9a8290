"""Searches: trials with one seed that no comparison uses; the survivors run again with all seeds of the sweep.

A search is a pure function of the results so far: `more(told)` returns the next trials, the same in a resumed sweep.
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
    """Return the `count` different arms with the lowest finite losses."""
    ordered = sorted((t for t in told if math.isfinite(t.loss)), key=lambda t: t.loss)
    # A sampler may propose an arm twice; each survives once.
    unique = {tuple(t.ask.arm.items()): t.ask.arm for t in ordered}
    return list(itertools.islice(unique.values(), count))


def finals(told: Sequence[TrialResult], trials: Sequence[TrialResult], survivors: int) -> list[Trial]:
    """Return the final trials of the `survivors` best arms; none if `told` has final trials already."""
    # Finals were asked for already: a resumed sweep must not ask again.
    if any(t.ask.final for t in told):
        return []
    return [Trial(arm, final=True) for arm in best(trials, survivors)]


@designs.register("halving", paper="arXiv:1502.07943")
class Halving:
    """Successive halving: train all arms to the share `first`, the best 1 / eta of them eta times as far, and so on.

    Rung i ends at the share first * eta^i of an arm's schedule; of n arms ceil(n / eta^i) continue to it from their
    checkpoints, and those that finish are the survivors.  Losses are compared at equal shares of the arms' schedules.
    """

    factors = False
    intervals = True

    def __init__(
        self,
        axes: Sequence[Any],
        *,
        runs: Annotated[int, Positive, "arms of the first rung: all combinations, or a random sample of them"] = 27,
        eta: Annotated[int, Range(2), "one arm in eta continues after a rung"] = 3,
        first: Annotated[float, Range(0, 1, open_low=True), "share of the schedule at the first rung"] = 1 / 9,
        survivors: Annotated[int, Positive, "largest number of arms that run again with all seeds"] = 3,
        seed: Annotated[int, NonNegative, "seed of the sample"] = 0,
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
        # Products of a share such as 1/9^5 end just below 1; a rung for the rest would drop arms once more.
        next_share = share * self.eta if share * self.eta < 1 - 1e-9 else 1.0
        # Arms that diverged have no finite loss and drop out here, whatever their number.
        return [Trial(arm, next_share) for arm in best(rung, math.ceil(len(rung) / self.eta))]


@designs.register("tpe", paper="arXiv:2304.11127")
class Tpe:
    """Tree-structured Parzen estimator: the next arm maximizes l(x) / g(x), densities of good and of other trials.

    `batch` trials are sampled at a time, by optuna, and run in parallel.
    """

    factors = False
    intervals = True

    def __init__(
        self,
        axes: Sequence[Any],
        *,
        trials: Annotated[int, Positive, "number of trials"] = 40,
        batch: Annotated[int, Positive, "trials sampled from the same results"] = 4,
        startup: Annotated[int, Positive, "random trials before the estimator is used"] = 10,
        survivors: Annotated[int, Positive, "number of arms that run again with all seeds"] = 3,
        seed: Annotated[int, NonNegative, "seed of the sampler"] = 0,
    ) -> None:
        self.axes, self.trials, self.batch = axes, trials, batch
        self.startup, self.survivors, self.seed = startup, survivors, seed

    def count(self) -> int:
        return self.trials + self.survivors

    def more(self, told: Sequence[TrialResult]) -> list[Trial]:
        trials = [t for t in told if not t.ask.final]
        if len(trials) >= self.trials:
            return finals(told, trials, self.survivors)
        return [Trial(arm) for arm in self._sample(trials, min(self.batch, self.trials - len(trials)))]

    def _sample(self, trials: Sequence[TrialResult], count: int) -> list[Arm]:
        """Sample `count` arms given the results; the seed depends on their number, so a resumed sweep repeats it."""
        optuna = _optuna()
        sampler = optuna.samplers.TPESampler(
            seed=random.Random(f"{self.seed} {len(trials)}").randrange(2**31), n_startup_trials=self.startup
        )
        study = optuna.create_study(sampler=sampler, direction="minimize")
        space = {axis.key: _distribution(optuna, axis) for axis in self.axes}
        for t in trials:
            values = {axis.key: _from_text(axis, t.ask.arm[axis.key]) for axis in self.axes}
            worst = max((o.loss for o in trials if math.isfinite(o.loss)), default=0.0)
            loss = t.loss if math.isfinite(t.loss) else worst + 1.0  # a failed trial ranks below all others
            study.add_trial(optuna.trial.create_trial(params=values, distributions=space, value=loss))
        sampled = [study.ask(space).params for _ in range(count)]
        return [{axis.key: _to_text(axis, params[axis.key]) for axis in self.axes} for params in sampled]


def _optuna() -> Any:
    """Import optuna, an optional dependency."""
    try:
        import optuna
    except ImportError:
        raise UserError("design=tpe needs the package optuna\n    try: pip install 'ablatio[optuna]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(optuna: Any, axis: Any) -> Any:
    """Convert an axis to optuna's distribution."""
    interval = axis.interval
    if interval is None:
        return optuna.distributions.CategoricalDistribution(axis.values)
    if interval.whole:
        return optuna.distributions.IntDistribution(int(interval.low), int(interval.high), log=interval.log)
    return optuna.distributions.FloatDistribution(interval.low, interval.high, log=interval.log)


def _from_text(axis: Any, text: str) -> Any:
    """Parse a value of an arm for optuna; rounding in the text may have put it outside of the interval."""
    interval = axis.interval
    if interval is None:
        return text
    return int(text) if interval.whole else min(max(float(text), interval.low), interval.high)


def _to_text(axis: Any, value: Any) -> str:
    return f"{value:.6g}" if axis.interval and not axis.interval.whole else str(value)
