"""Compare all arms of a study over their seeds: differences, corrected p values, seeds still needed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from ablatio.report.statistics.moderated import moderate
from ablatio.report.statistics.multiple_testing import benjamini_hochberg, dunnett, holm
from ablatio.report.statistics.paired_tests import Difference, Method, paired
from ablatio.report.statistics.power import seeds_needed

Better = Literal["low", "high"]
Correction = Literal["holm", "dunnett", "bh", "none"]
Values = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True, slots=True)
class ArmScore:
    """One arm: number of runs, and mean and sd of those that did not diverge.

    rank  mean rank over the seeds in which every arm has a value (1 is best); nan without such a seed
    """

    label: str
    runs: int
    diverged: tuple[int, ...]  # seeds
    mean: float
    sd: float
    rank: float

    @property
    def n(self) -> int:
        """Number of runs that did not diverge."""
        return self.runs - len(self.diverged)


@dataclass(frozen=True, slots=True)
class Pair:
    """Arm a compared with arm b.

    difference  a - b over the seeds in which both have a value
    p           corrected for the comparisons of the study; nan if there can be no test
    better      label of the better arm if the difference is resolved (p <= alpha), else None
    more_seeds  further seeds that would resolve it with power 0.8 if it is as large as observed; None if it is
                resolved or the number cannot be computed
    left_out    seeds for which only one of the two has a value (not run, failed, diverged)
    """

    a: str
    b: str
    difference: Difference
    p: float
    better: str | None
    more_seeds: int | None
    left_out: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A compared study.  `pairs`: each arm against the baseline, or all pairs if there is no baseline."""

    arms: tuple[ArmScore, ...]
    pairs: tuple[Pair, ...]
    baseline: str | None
    better: Better
    correction: Correction
    alpha: float

    def arm(self, label: str) -> ArmScore:
        """The arm with this label."""
        return next(a for a in self.arms if a.label == label)

    @property
    def ordered(self) -> tuple[ArmScore, ...]:
        """Arms by mean, the best first; arms without a value last."""
        sign = 1 if self.better == "low" else -1
        return tuple(sorted(self.arms, key=lambda a: math.inf if math.isnan(a.mean) else sign * a.mean))


def compare(
    values: Values,
    baseline: str | None = None,
    *,
    better: Better = "low",
    correction: Correction = "holm",
    method: Method = "t",
    alpha: float = 0.05,
) -> Comparison:
    """Compare arms.  values: arm -> seed -> final score; nan or infinity marks a diverged run.

    A seed that an arm lacks was not run or failed.  Two arms are compared over the seeds in which both have a value;
    what is left out is counted in the pair and in the arm, never dropped silently.

    Raises:
        ValueError: the baseline is not an arm, or Dunnett's test is asked for without a baseline.
    """
    if baseline is not None and baseline not in values:
        raise ValueError(f"the baseline {baseline!r} is none of the arms: {', '.join(values)}")
    if correction == "dunnett" and baseline is None:
        raise ValueError("Dunnett's test is against a baseline, and none was given; use correction='holm'")
    sound = {arm: {s: float(v) for s, v in of.items() if math.isfinite(v)} for arm, of in values.items()}
    names = [(a, baseline) for a in values if a != baseline] if baseline is not None else list(combinations(values, 2))
    found = [_difference(sound[a], sound[b], method) for a, b in names]
    found = moderate(found) if method == "moderated" else found
    corrected = _corrected(sound, baseline, found, correction)
    pairs = [
        _pair(a, b, difference, p, len(sound[a].keys() ^ sound[b].keys()), len(names), better, alpha)
        for (a, b), difference, p in zip(names, found, corrected, strict=True)
    ]
    placed = _ranks(sound, better)
    arms = [_score(arm, values[arm], sound[arm], placed[arm]) for arm in values]
    return Comparison(tuple(arms), tuple(pairs), baseline, better, correction, alpha)


def _difference(a: Mapping[int, float], b: Mapping[int, float], method: Method) -> Difference:
    common = sorted(a.keys() & b.keys())
    return paired([a[s] for s in common], [b[s] for s in common], method=method)


def _corrected(
    sound: Values, baseline: str | None, found: Sequence[Difference], correction: Correction
) -> Sequence[float]:
    raw = [d.p for d in found]
    if not raw or correction == "none":
        return raw
    if correction == "dunnett":
        assert baseline is not None
        return _dunnett(sound, baseline)
    return [float(p) for p in (holm(raw) if correction == "holm" else benjamini_hochberg(raw))]


def _dunnett(sound: Values, baseline: str) -> list[float]:
    """Dunnett's p over the seeds that all arms have; arms without any value are left out."""
    alive = [a for a in sound if a != baseline and sound[a]]
    seeds = _shared({a: sound[a] for a in (baseline, *alive)})
    if len(seeds) < 2 or not alive:
        return [math.nan for a in sound if a != baseline]
    p = dict(zip(alive, dunnett([[sound[a][s] for a in (baseline, *alive)] for s in seeds]), strict=True))
    return [float(p.get(a, math.nan)) for a in sound if a != baseline]


def _shared(sound: Values) -> list[int]:
    return sorted(set.intersection(*(set(of) for of in sound.values())))


def _pair(
    a: str, b: str, difference: Difference, p: float, left_out: int, comparisons: int, better: Better, alpha: float
) -> Pair:
    if p <= alpha:
        a_is_better = (difference.mean < 0) == (better == "low")
        return Pair(a, b, difference, p, a if a_is_better else b, None, left_out)
    return Pair(a, b, difference, p, None, _more_seeds(difference, comparisons + 1, alpha), left_out)


def _more_seeds(difference: Difference, arms: int, alpha: float) -> int | None:
    if math.isnan(difference.p) or difference.mean == 0:
        return None
    try:
        return max(1, seeds_needed(difference.mean, difference.sd, arms, alpha) - difference.n)
    except ValueError:  # more seeds than the search allows
        return None


def _score(label: str, of: Mapping[int, float], sound: Mapping[int, float], rank: float) -> ArmScore:
    x = np.array(list(sound.values()), dtype=np.float64)
    mean = float(x.mean()) if len(x) else math.nan
    sd = float(x.std(ddof=1)) if len(x) > 1 else math.nan
    return ArmScore(label, len(of), tuple(sorted(s for s in of if s not in sound)), mean, sd, rank)


def _ranks(sound: Values, better: Better) -> dict[str, float]:
    """Mean rank of each arm over the seeds that all arms with a value share."""
    from scipy.stats import rankdata

    alive = {arm: of for arm, of in sound.items() if of}
    seeds = _shared(alive) if alive else []
    table = np.array([[of[s] for of in alive.values()] for s in seeds])  # (seeds, arms)
    mean = rankdata(table if better == "low" else -table, axis=1).mean(0) if seeds else [math.nan] * len(alive)
    return dict.fromkeys(sound, math.nan) | {a: float(r) for a, r in zip(alive, mean, strict=True)}
