"""Comparison of many arms with the best of them (Hsu 1984, Ann. Stat. 12:1136), without a baseline."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from ablatio.report.statistics.multiple_testing import holm
from ablatio.report.statistics.paired_tests import ROUNDING, t_test
from ablatio.report.statistics.robustness import GUARD, UNEQUAL, residuals, unequal_spread

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Best:
    """Arms compared with the best, the lowest mean first in `top`; the other fields are in the order of the columns.

    top        index of the arm with the lowest mean
    gap        mean of an arm minus the lowest mean of the others: below 0 for the top alone
    low, high  simultaneous 1 - alpha bounds of that difference.  One of them is 0 as soon as it is clear whether the
               arm is the best (Hsu's constrained intervals)
    p          that the arm is as good as the best; nan where there is no test, and for the top
    pooled     False if the spread of the arms differs: Holm-corrected paired t-tests instead of one pooled spread
    visible    smallest true difference from the best that is found in 4 of 5 studies; nan if unknown
    """

    top: int
    gap: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    p: tuple[float, ...]
    pooled: bool
    visible: float


def with_best(values: ArrayLike, planned: int | None = None, alpha: float = 0.05) -> Best:
    """Compare scores (seeds, arms) with the lowest mean; the seed is a block.  planned: number of arms of the study.

    Closed testing: an arm is called worse than the best if no set of arms that contains it can be a set of equally
    best arms.  The last arm is tested first, against the distribution of the gap from the best to the last of all
    arms, the next one against that of one arm fewer.  The chance that any best arm is called worse is at most alpha,
    also where several arms share the first place.  One spread for all arms, with (seeds - 1)(arms - 1) degrees of
    freedom; p is at least twice that of the paired t-test against the top, which limits what an arm of larger spread
    can do where `unequal_spread` does not find it.
    """
    x = np.asarray(values, dtype=np.float64)
    seeds, k = x.shape
    # Arms without a result were part of the question: leaving them out would make the other claims easier.
    m = max(k, planned or k)
    means = x.mean(0)
    order = np.argsort(means, kind="stable")
    top = int(order[0])
    gap = means - np.where(np.arange(k) == top, means[order[1]], means[top])
    df = (seeds - 1) * (k - 1)
    error = math.sqrt(2 * float((residuals(x) ** 2).sum()) / df / seeds) if df else 0.0
    # Equal arms, or arms with one constant gap: their difference is known, but no noise to test it against.
    nothing = ROUNDING * float(np.abs(x).max())
    if error <= nothing:
        p = np.where(np.abs(gap) <= nothing, 1.0, math.nan)
        return _best(top, gap, np.full((2, k), math.nan), p, True, math.nan)
    against = x[:, :, None] - x[:, None, :]  # (seeds, arms, arms)
    own, sd = _one_sided(against)
    pooled = not unequal_spread(x) <= UNEQUAL
    if pooled:
        p = np.maximum(_stepped(gap, order, error, m, df), np.minimum(1.0, 2 * GUARD * own[:, top]))
        reach = np.full((k, k), error * critical(1, m, df, alpha))
        visible = error * _noncentrality(critical(m, m, df, alpha), df)
    else:
        # Which arm is the best is not known: the best of m - 1 rivals is paid for by Bonferroni, the arms by Holm.
        p = holm([*np.minimum(1.0, (m - 1) * own.min(1)), *[math.nan] * (m - k)])[:k]
        reach = sd / math.sqrt(seeds) * -float(special.stdtrit(seeds - 1, alpha / (m - 1)))
        # The first step of that procedure, as a plan has to assume.
        limit = -float(special.stdtrit(seeds - 1, alpha / (m * (m - 1))))
        visible = float(np.median(np.delete(sd[:, top], top))) / math.sqrt(seeds) * _noncentrality(limit, seeds - 1)
    return _best(top, gap, _constrained(against.mean(0), reach), p, pooled, visible)


def _best(top: int, gap: Array, bounds: Array, p: Array, pooled: bool, visible: float) -> Best:
    p = np.where(np.arange(len(p)) == top, math.nan, p)
    low, high = bounds
    return Best(top, tuple(gap.tolist()), tuple(low.tolist()), tuple(high.tolist()), tuple(p.tolist()), pooled, visible)


def _one_sided(against: Array) -> tuple[Array, Array]:
    """Return (p, sd) of each arm (row) being worse than each other arm (column): paired t-tests; p is 1 for itself."""
    mean, sd, _, _, p = t_test(np.moveaxis(against, 0, -1))
    one = np.where(mean > 0, p / 2, 1 - p / 2)
    return np.where(np.isnan(one), 1.0, one), sd


def _constrained(means: Array, reach: Array) -> Array:
    """Hsu's bounds of mu_i - min of the others, from differences (arms, arms) and their one-sided reach: (2, arms)."""
    itself = np.eye(len(means), dtype=bool)
    low = np.where(itself, -np.inf, means - reach).max(1)
    high = np.where(itself, -np.inf, means + reach).max(1)
    return np.stack([np.minimum(0, low), np.maximum(0, high)])


def _stepped(gap: Array, order: NDArray[np.intp], error: float, m: int, df: int) -> Array:
    """p of each arm: the largest of those of the arms at its place and behind it."""
    p, largest = np.ones(len(gap)), 0.0
    for place in range(len(order) - 1, 0, -1):
        arm = order[place]
        largest = max(largest, beyond(gap[arm] / error, place + 1 + m - len(order), m, df))
        p[arm] = largest
    return p


def beyond(limit: float, s: int, k: int, df: int) -> float:
    """P(max of the first s arms - min of all k arms > limit), in standard errors of a difference, all means equal.

    s = 1 is Dunnett's one-sided test, s = k the studentized range over sqrt(2).  Integrated over the smallest Z and
    over the spread S = chi / sqrt(df).
    """
    place, weights = _nodes(120)
    # Beyond 9 standard deviations the normal density is below 1e-17.
    u, density = 9 * place, 9 * weights * np.exp(-((9 * place) ** 2) / 2) / math.sqrt(2 * math.pi)
    share, share_weights = _nodes(60)
    # At quantiles of chi^2 and not at values of S, so that the same nodes fit any number of degrees of freedom.
    spread = np.sqrt(special.chdtri(df, 0.5 - share / 2) / df)[:, None]
    above = special.ndtr(-u)
    within = np.maximum(special.ndtr(u + math.sqrt(2) * limit * spread) - special.ndtr(u), 0.0)
    first = s * within ** (s - 1) * above ** (k - s)
    rest = (k - s) * above ** (k - s - 1) * within**s if k > s else 0.0
    return float(np.clip(1 - share_weights / 2 @ (first + rest) @ density, 0.0, 1.0))


@lru_cache(maxsize=8)
def _nodes(count: int) -> tuple[Array, Array]:
    return np.polynomial.legendre.leggauss(count)


@lru_cache(maxsize=256)
def critical(s: int, k: int, df: int, alpha: float) -> float:
    """Limit that `beyond` exceeds with probability alpha."""
    from scipy.optimize import brentq

    # Doubled until it lies beyond the root: with one degree of freedom the limit exceeds any fixed bracket.
    high = 4.0
    while beyond(high, s, k, df) > alpha:
        high *= 2
    return float(brentq(lambda limit: beyond(limit, s, k, df) - alpha, 0.0, high, xtol=1e-6))


def _noncentrality(limit: float, df: int, power: float = 0.8) -> float:
    """Shift of a t statistic, in standard errors, with which it exceeds `limit` with this probability."""
    from scipy.optimize import brentq

    high = limit + 2
    while 1 - special.nctdtr(df, high, limit) < power:
        high *= 2
    return float(brentq(lambda shift: 1 - special.nctdtr(df, shift, limit) - power, 0.0, high, xtol=1e-6 * high))
