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
"""

import math
from collections.abc import Callable, Mapping, Sequence

from scipy import optimize, special

from ablatio.report.statistics.comparison import Comparison, Pair


def selected_interval(
    mean: float, sd: float, n: int, largest_p: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the interval of a mean of n >= 2 paired differences that is shown because its p was small.

    Args:
        mean: of the differences.
        sd: of the differences, with n - 1 degrees of freedom; positive.
        n: number of differences.
        largest_p: two-sided p of the paired t-test up to which the difference would have been shown.
        confidence: share of shown intervals that cover the true mean.

    Returns:
        Lower and upper end.  The usual interval if t is far beyond the selection; near it the interval reaches 0 and
        further, since a difference that was barely shown says little of its size.
    """
    sign = -1.0 if mean < 0 else 1.0
    t = abs(mean) / sd * math.sqrt(n)
    # What was shown was selected: rounding must not put it outside of its own selection.
    critical = min(-float(special.stdtrit(n - 1, largest_p / 2)), t * (1 - 1e-12))
    tail = (1 - confidence) / 2

    # _solve is in units of the standard error, in which the estimate is t.
    def end(share: float) -> float:
        return sign * sd / math.sqrt(n) * _solve(lambda mu: _share_above(mu, t, n, critical) - share, t)

    low, high = sorted((end(tail), end(1 - tail)))
    return low, high


def interval_of_picked(comparison: Comparison, pair: Pair, of: int) -> tuple[float, float] | None:
    """Return the interval of the largest of `of` resolved differences (Bonferroni); None: the test has no exact one.

    Where `of` is above 1 it covers a little more often than it says.
    """
    d = pair.difference
    if d.method != "paired t" or comparison.correction not in LARGEST_P:
        return None
    p, index = [x.difference.p for x in comparison.pairs], comparison.pairs.index(pair)
    limit = LARGEST_P[comparison.correction](p, index, comparison.alpha)
    return selected_interval(d.mean, d.sd, d.n, limit, 1 - 0.05 / of)


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
    above = _upper(seen, half)
    if root <= 0:  # all are selected
        return _lower(seen, half), above
    first, second = ((-free * a + s * math.sqrt(root)) / lead for s in (-1, 1))
    between = max(0.0, _between(second, seen, half))
    return _lower(first, half) + between, above


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
