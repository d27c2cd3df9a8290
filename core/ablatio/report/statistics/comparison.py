"""Compare all arms of a study over their seeds: differences, corrected p values, what the study could have shown."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np

from ablatio.report.statistics.best import with_best
from ablatio.report.statistics.divergence import RANKED, Divergence, divergences, ranked_difference
from ablatio.report.statistics.moderated import moderate
from ablatio.report.statistics.multiple_testing import benjamini_hochberg, dunnett, holm
from ablatio.report.statistics.paired_tests import Difference, Method, paired, t_test
from ablatio.report.statistics.power import seeds_needed, smallest_difference
from ablatio.report.statistics.robustness import (
    GUARD,
    SKEW_SEEDS,
    UNEQUAL,
    possible_skewness,
    skew_corrected,
    skewed,
    skewness,
    unequal_spread,
    varies_most,
)

Better = Literal["low", "high"]
Correction = Literal["holm", "dunnett", "bh", "none"]
Values = Mapping[str, Mapping[int, float]]
SKEWED = "paired t, corrected for skewness"  # method of a Difference
WITH_BEST = "comparison with the best"  # likewise
ALL_PAIRS = 8  # arms; without a baseline more arms are compared with the best one


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

    difference     a - b over the seeds in which both have a value.  If a run of either diverged, the p of it comes from
                   ranks in which a diverged run is the worst result, and the mean has no interval (`ranked_difference`)
    p              corrected for the comparisons of the study; nan if there can be no test
    better         label of the better arm if the difference is resolved (p <= alpha), else None; an arm that diverged
                   more often than the other is never the better one
    left_out       seeds that only one of the two ran, or ran to a result
    detectable     smallest true difference that this study would have resolved in 4 of 5 cases; nan if unknown
    planned_seeds  seeds per arm with which a new study resolves a difference as large as this one in 4 of 5 cases;
                   None if it is resolved or the number cannot be computed.  Adding seeds to this study until p is small
                   is another matter: it finds differences where there are none
    corrected      of a difference that is not resolved though its own interval lies to one side of 0: the interval that
                   allows for all comparisons of the study (Bonferroni), which contains 0; else None
    """

    a: str
    b: str
    difference: Difference
    p: float
    better: str | None
    left_out: int
    detectable: float = math.nan
    planned_seeds: int | None = None
    corrected: tuple[float, float] | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """The interval to show: the corrected one, if there is one."""
        return self.corrected or (self.difference.low, self.difference.high)

    @property
    def ranked(self) -> bool:
        """True if some run of the two arms diverged, and the pair is compared by ranks."""
        return self.difference.method == RANKED

    @property
    def equal(self) -> bool:
        """True if both arms gave the same numbers in all of two or more seeds."""
        return self.difference.n > 1 and self.difference.mean == 0 == self.difference.sd


@dataclass(frozen=True, slots=True)
class Comparison:
    """A compared study.

    pairs       each arm against the baseline; all pairs without a baseline; each arm against the best one if `best`
    best        label of the arm with the best mean, if all others are compared with it (see `with_best`)
    lead        of the best arm: its difference to the next one
    divergence  how often each arm diverged; empty if no run did
    correction  that was applied
    unequal     True if the spread of the arms differs too much for the pooled test that was asked for
    wild        arm that varies more than the others, if its paired t-tests are not corrected for skewness
    """

    arms: tuple[ArmScore, ...]
    pairs: tuple[Pair, ...]
    baseline: str | None
    better: Better
    correction: Correction | Literal["hsu"]
    alpha: float
    divergence: tuple[Divergence, ...] = ()
    best: str | None = None
    lead: Difference | None = None
    unequal: bool = False
    wild: str | None = None

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
    groups: Mapping[str, Hashable] | None = None,
) -> Comparison:
    """Compare arms.  values: arm -> seed -> final score; nan or infinity marks a diverged run.

    groups  arm -> what two arms must have in common to be compared; without it all are compared

    A seed that an arm lacks was not run or failed; an arm without any seed stays a comparison, so that its failure
    makes the other claims no easier.  Two arms are compared over the seeds in which both have a value; what is left
    out is counted in the pair and in the arm, never dropped silently.  Differences that look skewed get a t-test
    corrected for it (`skew_corrected`), and so do all those of an arm that varies more than the others.  Dunnett's test
    gives way to Holm's if the spread of the arms differs.

    Raises:
        ValueError: the baseline is not an arm, or Dunnett's test is asked for without a baseline.
    """
    if baseline is not None and baseline not in values:
        raise ValueError(f"the baseline {baseline!r} is none of the arms: {', '.join(values)}")
    if correction == "dunnett" and baseline is None:
        raise ValueError("Dunnett's test is against a baseline, and none was given; use correction='holm'")
    names = [(a, baseline) for a in values if a != baseline] if baseline is not None else list(combinations(values, 2))
    names = [(a, b) for a, b in names if groups is None or groups.get(a) == groups.get(b)]
    wild = _varies_most(values, names) if method == "t" else None
    skew = _skew_to_correct(values, names, baseline, method, wild)
    compared = [_difference(values[a], values[b], method, better, skew.get((a, b))) for a, b in names]
    found, signs = [d for d, _ in compared], [sign for _, sign in compared]
    found = moderate(found) if method == "moderated" else found
    unequal = correction == "dunnett" and _unequal(values, [*dict.fromkeys(x for pair in names for x in pair)])
    applied: Correction = "holm" if unequal else correction
    corrected = _corrected(values, names, [d.p for d in found], applied)
    # Also for Benjamini-Hochberg: power and intervals are planned for the strictest of its thresholds.
    family = 1 if correction == "none" else len(names)
    pairs = [
        _pair(a, b, values, (difference, sign), p, family, better, alpha)
        for (a, b), difference, sign, p in zip(names, found, signs, corrected, strict=True)
    ]
    pairs = [_with_corrected_interval(p, values, family, alpha, skew.get((p.a, p.b))) for p in pairs]
    scores, lost = _scores(values, better), _divergence(values, baseline)
    wild = wild if any(wild in (p.a, p.b) and p.difference.method != SKEWED for p in pairs) else None
    return Comparison(scores, tuple(pairs), baseline, better, applied, alpha, lost, unequal=unequal, wild=wild)


def compare_with_best(values: Values, *, better: Better = "low", alpha: float = 0.05) -> Comparison:
    """Compare many arms with the best of them (Hsu 1984); values as for `compare`.

    The mean is compared over the seeds that most arms have, between arms that have all of these and no diverged run;
    the other arms stay in the correction and have no p.
    """
    # The pooled spread has no meaning for a diverged run, and its survivors are a selection.
    sound = {arm: of for arm, of in values.items() if of and all(map(math.isfinite, of.values()))}
    # One arm that lacks a seed must not take that seed from all others.
    seeds = sorted({s for of in sound.values() for s in of if 2 * sum(s in o for o in sound.values()) > len(sound)})
    whole = [arm for arm, of in sound.items() if all(s in of for s in seeds)]
    scores, diverged = _scores(values, better), _divergence(values, None)
    if len(whole) < 2 or len(seeds) < 2:
        return Comparison(scores, (), None, better, "hsu", alpha, diverged)
    sign = 1 if better == "low" else -1
    table = sign * np.array([[values[arm][s] for arm in whole] for s in seeds])  # (seeds, arms)
    found = with_best(table, len(values), alpha)
    top = whole[found.top]

    def difference(i: int) -> Difference:
        low, high = sorted((sign * found.low[i], sign * found.high[i]))
        sd = float((table[:, i] - table[:, found.top]).std(ddof=1))
        # The residue of rounding would be shown as a difference between arms that gave the same numbers.
        gap = 0.0 if sd == 0 and found.p[i] == 1 else sign * found.gap[i]
        return Difference(gap, low, high, found.p[i], len(seeds), sd, WITH_BEST)

    def pair(arm: str) -> Pair:
        if arm not in whole:
            lacking = Difference(math.nan, math.nan, math.nan, math.nan, 0, math.nan, "no test")
            return Pair(arm, top, lacking, math.nan, None, len(seeds))
        d = difference(whole.index(arm))
        left_out = len(values[arm].keys() ^ set(seeds))
        return Pair(arm, top, d, d.p, top if d.p <= alpha else None, left_out, found.visible)

    pairs = tuple(pair(arm) for arm in values if arm != top)
    return Comparison(
        scores, pairs, None, better, "hsu", alpha, diverged, top, difference(found.top), not found.pooled
    )  # fmt: skip


def _divergence(values: Values, baseline: str | None) -> tuple[Divergence, ...]:
    if all(math.isfinite(v) for of in values.values() for v in of.values()):
        return ()
    return divergences(values, baseline)


def _sound(of: Mapping[int, float]) -> dict[int, float]:
    return {s: float(v) for s, v in of.items() if math.isfinite(v)}


def _difference(
    a: Mapping[int, float], b: Mapping[int, float], method: Method, better: Better, skew: Sequence[float] | None
) -> tuple[Difference, int]:
    """Return the difference and its sign: that of the mean, or of the ranks if a run diverged."""
    if not all(math.isfinite(v) for v in (*a.values(), *b.values())):
        return ranked_difference(a, b, better)
    common = sorted(a.keys() & b.keys())
    found = paired([a[s] for s in common], [b[s] for s in common], method=method)
    if skew and found.sd > 0:
        low, high, p = skew_corrected(_gaps(a, b), skew=skew)
        found = replace(found, low=low, high=high, p=p, method=SKEWED)
    return found, -1 if found.mean < 0 else 1


def _gaps(a: Mapping[int, float], b: Mapping[int, float]) -> list[float]:
    """Differences over the seeds in which both have a value."""
    return [a[s] - b[s] for s in sorted(a.keys() & b.keys()) if math.isfinite(a[s]) and math.isfinite(b[s])]


def _skew_to_correct(
    values: Values, names: Sequence[tuple[str, str]], baseline: str | None, method: Method, wild: str | None
) -> dict[tuple[str, str], tuple[float, ...]]:
    """Pair -> skewness that its t-test is corrected for; pairs without need are missing."""
    if method not in ("t", "skewed"):
        return {}
    gaps = {(a, b): _gaps(values[a], values[b]) for a, b in names}
    # Differences to one baseline share its skewness, so they tell of each other; pairs of different arms do not.
    others = [skewness(of) for of in gaps.values()] if baseline is not None else []
    found = {}
    for pair, of in gaps.items():
        if method == "skewed" or (wild in pair and len(of) >= SKEW_SEEDS):
            found[pair] = possible_skewness(of, others)
        elif skewed(of):
            found[pair] = (skewness(of),)
    return found


def _varies_most(values: Values, names: Sequence[tuple[str, str]]) -> str | None:
    kept, table = _table(values, [*dict.fromkeys(x for pair in names for x in pair)])
    place = varies_most(table) if len(table) else None
    return None if place is None else kept[place]


def _unequal(values: Values, arms: Sequence[str]) -> bool:
    _, table = _table(values, arms)
    return len(table) > 0 and unequal_spread(table) <= UNEQUAL


def _table(values: Values, arms: Sequence[str]) -> tuple[list[str], Any]:
    """Arms that have values and did not diverge, and their scores (seeds, arms) in the seeds that all of them have."""
    kept = [a for a in arms if values[a] and all(map(math.isfinite, values[a].values()))]
    seeds = _shared({a: values[a] for a in kept}) if kept else []
    return kept, np.array([[values[a][s] for a in kept] for s in seeds])


def _corrected(
    values: Values, names: Sequence[tuple[str, str]], raw: Sequence[float], correction: Correction
) -> Sequence[float]:
    if not raw or correction == "none":
        return raw
    if correction == "dunnett":
        return _dunnett(values, names, raw)
    return [float(p) for p in (holm(raw) if correction == "holm" else benjamini_hochberg(raw))]


def _dunnett(values: Values, names: Sequence[tuple[str, str]], raw: Sequence[float]) -> list[float]:
    """Dunnett's p over the seeds that all arms have, at least GUARD times the pair's own p.

    Arms without a value are counted.  If a run of any arm diverged, the pooled test has no common ground: Holm's p.
    """
    if any(not math.isfinite(v) for pair in names for arm in pair for v in values[arm].values()):
        return [float(p) for p in holm(raw)]
    base = names[0][1]
    alive = [a for a, _ in names if values[a]]
    _, table = _table(values, [base, *alive])
    if not values[base] or len(table) < 2 or not alive:
        return [math.nan] * len(names)
    p = dict(zip(alive, dunnett(table, len(names)), strict=True))
    return [
        float(min(1.0, max(p.get(a, math.nan), GUARD * own))) if not math.isnan(own) else math.nan
        for (a, _), own in zip(names, raw, strict=True)
    ]


def _shared(values: Values) -> list[int]:
    return sorted(set.intersection(*(set(of) for of in values.values())))


def _pair(
    a: str, b: str, values: Values, found: tuple[Difference, int], p: float, family: int, better: Better, alpha: float
) -> Pair:
    difference, sign = found
    ranked = difference.method == RANKED
    left_out = len(values[a].keys() ^ values[b].keys())
    winner = a if (sign < 0) == (better == "low") else b
    if p <= alpha and sign and not (ranked and _diverged_more(values, winner, a if winner == b else b)):
        return Pair(a, b, difference, p, winner, left_out)
    if difference.method != "paired t" or math.isnan(difference.p):
        return Pair(a, b, difference, p, None, left_out)
    # `family + 1`: both take a number of arms, of which all but one are compared with the baseline.
    detectable = smallest_difference(difference.n, difference.sd, family + 1, alpha)
    return Pair(a, b, difference, p, None, left_out, detectable, _planned_seeds(difference, family + 1, alpha))


def _with_corrected_interval(
    pair: Pair, values: Values, family: int, alpha: float, skew: Sequence[float] | None
) -> Pair:
    """Add the interval of confidence 1 - alpha / family, if the pair's own one contradicts its p.

    Without the correction an interval may lie to one side of 0 beside a corrected p above alpha.
    """
    d = pair.difference
    if pair.better is not None or family < 2 or math.isnan(d.low) or not excludes_zero(d.low, d.high):
        return pair
    gaps, confidence = _gaps(values[pair.a], values[pair.b]), 1 - alpha / family
    low, high = skew_corrected(gaps, confidence, skew)[:2] if d.method == SKEWED else t_test(gaps, confidence)[2:4]
    wide = (float(low), float(high))
    return pair if excludes_zero(*wide) else replace(pair, corrected=wide)


def excludes_zero(low: float, high: float) -> bool:
    """True if an interval lies to one side of 0."""
    return low > 0 or high < 0


def _diverged_more(values: Values, arm: str, other: str) -> bool:
    """True if `arm` lost a larger share of its runs than `other`."""
    lost = [sum(not math.isfinite(v) for v in values[x].values()) / max(1, len(values[x])) for x in (arm, other)]
    return lost[0] > lost[1]


def _planned_seeds(difference: Difference, arms: int, alpha: float) -> int | None:
    if difference.mean == 0:
        return None
    try:
        return seeds_needed(difference.mean, difference.sd, arms, alpha)
    except ValueError:  # more seeds than the search allows
        return None


def _scores(values: Values, better: Better) -> tuple[ArmScore, ...]:
    sound = {arm: _sound(of) for arm, of in values.items()}
    placed = _ranks(sound, better)
    return tuple(_score(arm, values[arm], sound[arm], placed[arm]) for arm in values)


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
