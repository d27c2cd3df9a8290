"""Interval of a difference that is shown because it is resolved.

Such differences look too large on average (the winner's curse): with little power, only lucky estimates are resolved,
and of their usual 95 % intervals far fewer than 95 % cover the truth.  The interval here is exact for a paired t-test
given that |t| > c, the selection: x_1..x_n are the paired differences with mean m, and for a hypothetical true mean mu

    r^2 = sum (x_i - mu)^2        u = sqrt(n) (m - mu) / r        (1 + u) / 2 ~ Beta((n - 1)/2, (n - 1)/2)

and u does not depend on r.  With a = sqrt(n) mu / r the selection is a set of u alone,

    |t| > c   <=>   (n - 1) (a + u)^2 > c^2 (1 - u^2)

so that P(u <= observed | r, selection) is uniform at the true mu.  The interval holds every mu at which this number
lies between alpha/2 and 1 - alpha/2.  After Fithian, Sun and Taylor, "Optimal Inference After Model Selection",
arXiv:1410.2597.

With few seeds these mu can have a gap.  For a^2 > 1 + c^2 / (n - 1) every sample is resolved: the selection says
nothing, and P(u >= observed) falls with mu as usual; below the mu at which it begins, `_always_shown`, it rises again.
Where it falls to less than `BRIDGED` times its tail there, the interval ends as the usual one does; otherwise it
bridges the gap and ends at the outermost mu.  To bridge none would cover 91 to 94 % with 2 or 3 seeds, to bridge all
95 to 97 %, and would halve the lower end of strong results of few seeds.

The largest of k resolved differences was also chosen among them, and this makes an estimate too large, hardly ever too
small.  So only the end towards 0 allows for it: its tail is alpha/k instead of alpha/2, the other one stays alpha/2.

    k equal differences     the largest estimate is too large with at most k * alpha/k, and hardly ever too small
    one that stands out     nothing was chosen: alpha/k + alpha/2 <= alpha
    k = 2                   both tails are the usual ones, which need no change for the larger of two independent
                            estimates (Benjamini, Hechtlinger and Stark, "Confidence Intervals for Selected
                            Parameters", arXiv:1906.00505)

k counts the resolved differences whose usual interval overlaps that of the largest, since the others could hardly have
been chosen.  With a baseline the interval lies within that of Bonferroni, whose tails are both alpha/(2 k).  Without a
baseline an arm that beats all others is told without a number, and estimates that fall short remain: the tail of the
far end is alpha/(2 k), where k counts the pairs of this arm that are not resolved as well.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from scipy import optimize, special

from ablatio.report.statistics.comparison import Comparison, Pair
from ablatio.report.statistics.paired_tests import Difference

# Of the tail: at this value the interval covers 93 to 97 % for 2 to 7 seeds, selections at p = 0.05 to 0.007 and true
# means from 0.5 to 12 standard errors, and at least 94 % where one study in ten or more shows the difference.
BRIDGED = 0.6


def selected_interval(
    mean: float, sd: float, n: int, largest_p: float, too_large: float = 0.025, too_small: float = 0.025
) -> tuple[float, float]:
    """Return the interval of a mean of n >= 2 paired differences that is shown because its p was small.

    Args:
        mean: of the differences.
        sd: of the differences, with n - 1 degrees of freedom; positive.
        n: number of differences.
        largest_p: two-sided p of the paired t-test up to which the difference would have been shown.
        too_large: share of shown intervals that may lie beyond the true mean, seen from 0.
        too_small: share of shown intervals that may end before it.

    Returns:
        Lower and upper end.  The usual interval if t is far beyond the selection; near it the interval reaches 0 and
        further, since a difference that was barely shown says little of its size.
    """
    sign = -1.0 if mean < 0 else 1.0
    t = abs(mean) / sd * math.sqrt(n)
    # What was shown was selected: rounding must not put it outside of its own selection.
    critical = min(-float(special.stdtrit(n - 1, largest_p / 2)), t * (1 - 1e-12))

    # In units of the standard error, in which the estimate is t.
    first = _towards_zero(t, n, critical, too_large)
    second = _solve(lambda mu: _share_above(mu, t, n, critical) - (1 - too_small), t)
    low, high = sorted(sign * sd / math.sqrt(n) * end for end in (first, second))
    return low, high


def interval_of_picked(comparison: Comparison, pair: Pair, among: Sequence[Pair]) -> tuple[float, float] | None:
    """Return the 95 % interval of the largest difference of `among`, all resolved; None: the test has no exact one."""
    d = pair.difference
    if d.method != "paired t" or comparison.correction not in LARGEST_P:
        return None
    p, index = [x.difference.p for x in comparison.pairs], comparison.pairs.index(pair)
    limit = LARGEST_P[comparison.correction](p, index, comparison.alpha)
    k = rivals(d, among)
    short = [x for x in comparison.pairs if x in among or pair.better in (x.a, x.b)]
    too_small = 0.025 if comparison.baseline is not None else 0.025 / rivals(d, short)
    return selected_interval(d.mean, d.sd, d.n, limit, 0.05 / max(2, k), too_small)


def rivals(largest: Difference, among: Sequence[Pair]) -> int:
    """Return how many of `among` have an interval that overlaps that of the largest in size, itself among them."""
    least = _size(largest)[0]
    return sum(_size(x.difference)[1] >= least for x in among)


def _size(d: Difference) -> tuple[float, float]:
    """Interval of a difference, turned so that its mean is positive."""
    return (-d.high, -d.low) if d.mean < 0 else (d.low, d.high)


def largest_p_of_holm(p: Sequence[float], index: int, alpha: float) -> float:
    """Return the largest p at which Holm's test still resolves comparison `index`, the others as they are."""
    others = sorted(x for i, x in enumerate(p) if i != index and not math.isnan(x))
    m = len(p)
    before = 0
    while before < len(others) and others[before] <= alpha / (m - before):
        before += 1
    return alpha / (m - before)


def largest_p_of_benjamini_hochberg(p: Sequence[float], index: int, alpha: float) -> float:
    """Return the largest p at which Benjamini and Hochberg's test still resolves comparison `index`."""
    m = len(p)
    others = sorted(x for i, x in enumerate(p) if i != index and not math.isnan(x))
    steps = (alpha * (before + 1) / m for before in range(len(others), 0, -1))
    return next((step for other, step in zip(reversed(others), steps, strict=True) if other <= step), alpha / m)


LARGEST_P: Mapping[str, Callable[[Sequence[float], int, float], float]] = {
    "holm": largest_p_of_holm,
    "bh": largest_p_of_benjamini_hochberg,
    "none": lambda p, index, alpha: alpha,
}


def _always_shown(t: float, n: int, critical: float) -> float | None:
    """Return the least mu, in standard errors, at which all samples with the observed sum of squares are resolved.

    a^2 = mu^2 / (n - 1 + (t - mu)^2) = 1 + critical^2 / (n - 1); None where no mu reaches it.
    """
    free = n - 1
    share = critical**2 / (free + critical**2)
    root = t * t - share * (t * t + free)
    return (t - math.sqrt(root)) / share if root > 0 else None


def _towards_zero(t: float, n: int, critical: float, tail: float) -> float:
    """Return the end towards 0, in standard errors, of the interval about the positive `t`."""

    def excess(mu: float) -> float:
        return _share_above(mu, t, n, critical) - tail

    usual = _always_shown(t, n, critical)
    if usual is not None and excess(usual) < (BRIDGED - 1) * tail:
        return float(optimize.brentq(excess, usual, t))
    return _lowest(excess, t)


def _share_above(mu: float, t: float, n: int, critical: float) -> float:
    """P(u >= observed | |t| > critical) at the true mean `mu`, in standard errors."""
    below, above = _masses(mu, t, n, critical)
    return above / (below + above)


def _masses(mu: float, t: float, n: int, critical: float) -> tuple[float, float]:
    """Return the probabilities of selected u below and above the observed one; the observed t is positive."""
    free = n - 1
    r = math.sqrt(free + (t - mu) ** 2)  # of sqrt(n) x / sd: sum of squares about mu
    a, seen = mu / r, (t - mu) / r
    half = free / 2
    # Not selected: (free + c^2) u^2 + 2 free a u + free a^2 - c^2 <= 0
    lead, square = free + critical**2, critical**2
    root = square * (square + free - free * a * a)  # a quarter of the discriminant
    if root <= 0:  # all are selected
        return _lower(seen, half), _upper(seen, half)
    first, second = ((-free * a + s * math.sqrt(root)) / lead for s in (-1, 1))
    # For a > 1 samples below mu that vary little are selected as well: the gap may lie above the observed u.
    if seen < (first + second) / 2:
        return _lower(seen, half), max(0.0, _between(seen, first, half)) + _upper(second, half)
    return _lower(first, half) + max(0.0, _between(second, seen, half)), _upper(seen, half)


def _lower(u: float, half: float) -> float:
    return float(special.betainc(half, half, min(1.0, max(0.0, (1 + u) / 2))))


def _upper(u: float, half: float) -> float:
    return _lower(-u, half)


def _between(first: float, second: float, half: float) -> float:
    """P(first < u < second), from the tail in which both lie."""
    # In the upper tail both probabilities are nearly 1, and their difference would be rounding.
    if first > 0:
        return _upper(first, half) - _upper(second, half)
    return _lower(second, half) - _lower(first, half)


def _solve(f: Callable[[float], float], near: float) -> float:
    """Return the zero of an increasing function."""
    reach = 1.0
    while f(near - reach) > 0 or f(near + reach) < 0:
        reach *= 2
    return float(optimize.brentq(f, near - reach, near + reach))


def _lowest(f: Callable[[float], float], near: float) -> float:
    """Return the smallest zero of a function that is negative far below `near` and positive there."""
    steps = [0.0, *(2.0**k for k in range(60))]
    last = max(i for i, step in enumerate(steps) if f(near - step) >= 0)
    return float(optimize.brentq(f, near - steps[last + 1], near - steps[last]))
