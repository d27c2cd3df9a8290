"""Checks of what tests assume, and tests that hold where it fails: unequal spread, skewed differences."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.floating[Any]]
UNEQUAL = 0.1  # p of `unequal_spread` up to which a pooled spread is given up
# p of the skewness test up to which the t-test is corrected.  Of normal samples one in twenty is corrected, too, and
# loses power: 3 points at 9 seeds, with the arms that vary most.  At 0.1 that is 5 points, more than a plan may be off,
# for 0.1 fewer false claims in 100 with a skewed baseline of three times the others' spread.
SKEWED = 0.05
SKEW_SEEDS = 8  # fewer seeds do not show the skewness of what they were drawn from
GUARD = 2.0  # a pooled p is never below this multiple of the pair's own p
# Draws of the null distribution: around p = UNEQUAL they have a standard error of 0.005.
DRAWS = 4000


def residuals(values: ArrayLike) -> Array:
    """Residuals of scores (seeds, arms) or (arms, seeds) after the means of seeds and arms are taken out."""
    x = np.asarray(values, dtype=np.float64)
    return np.asarray(x - x.mean(0) - x.mean(1, keepdims=True) + x.mean())


def unequal_spread(values: ArrayLike) -> float:
    """Return p of equal spread of all arms: scores (seeds, arms), with the seed as a block.

    Cochran's C, the largest share of one arm in the sum of squared residuals.  It does not depend on the true spread,
    so its distribution under normal scores of equal spread is drawn, with a fixed random seed.  With three seeds only
    a spread of several times the others' is found; hence GUARD.  nan for fewer than 2 seeds or 3 arms.
    """
    x = np.asarray(values, dtype=np.float64)
    seeds, arms = x.shape
    if seeds < 2 or arms < 3:
        return math.nan
    squares = (residuals(x) ** 2).sum(0)
    if not squares.sum() > 0:
        return math.nan
    null = _cochran(seeds, arms)
    return float((1 + (null >= squares.max() / squares.sum()).sum()) / (1 + len(null)))


@lru_cache(maxsize=64)
def _cochran(seeds: int, arms: int) -> Array:
    """Draws of Cochran's C for equal spread."""
    # At most 2 million numbers, or 200 draws: a study of a thousand arms must not wait for this check.
    draws = min(DRAWS, max(200, 2_000_000 // (seeds * arms)))
    x = np.random.default_rng(0).normal(size=(draws, seeds, arms))
    left = x - x.mean(1, keepdims=True) - x.mean(2, keepdims=True) + x.mean((1, 2), keepdims=True)
    squares = (left**2).sum(1)
    return np.asarray(squares.max(1) / squares.sum(1))


def skewed(differences: ArrayLike) -> bool:
    """True if the differences are more skewed than 19 in 20 normal samples (D'Agostino's test, n >= 8)."""
    from scipy import stats

    d = np.asarray(differences, dtype=np.float64)
    return len(d) >= SKEW_SEEDS and float(np.ptp(d)) > 0 and float(stats.skewtest(d).pvalue) < SKEWED


def varies_most(values: ArrayLike) -> int | None:
    """Return the place of the arm that varies more than the others (`unequal_spread`), of scores (seeds, arms)."""
    x = np.asarray(values, dtype=np.float64)
    return int((residuals(x) ** 2).sum(0).argmax()) if unequal_spread(x) <= UNEQUAL else None


def skewness(differences: ArrayLike) -> float:
    """Skewness, corrected for the number of values; nan for fewer than three, or without spread."""
    d = np.asarray(differences, dtype=np.float64)
    n, sd = len(d), float(d.std(ddof=1)) if len(d) > 2 else 0.0
    return n * n / ((n - 1) * (n - 2)) * float(((d - d.mean()) ** 3).mean()) / sd**3 if sd else math.nan


def possible_skewness(differences: ArrayLike, others: ArrayLike = ()) -> tuple[float, ...]:
    """Skewness that a small sample may come from: its own, twice that, and the mean over all pairs with its baseline.

    The skewness of a sample is smaller than that of the distribution it comes from, and where a test goes wrong, no
    outlier is in the sample.  Corrected for all three (`skew_corrected`), a test at 5 % claims at most 5.7 % with
    log-normal scores of 3 times the others' spread, and 6.4 % with 5 times (benchmarks/validity.py: `skewed test`).

    others  skewness of the differences of all arms to the same baseline
    """
    own, rest = skewness(differences), np.asarray(others, dtype=np.float64)
    rest = rest[np.isfinite(rest)]
    if math.isnan(own):
        return ()
    return (own, 2 * own, float(rest.mean())) if len(rest) > 1 else (own, 2 * own)


def skew_corrected(
    differences: ArrayLike, confidence: float = 0.95, skew: Sequence[float] | None = None
) -> tuple[float, float, float]:
    """Return (low, high, p) of the mean of skewed differences: Hall's transformed t, or the t-test where it is weaker.

    g(S) = S + a S^2 / 3 + a^2 S^3 / 27 + a / (6 n) with S = mean / sd and the skewness a removes the first-order effect
    of skewness from sqrt(n) S, and is increasing, so it can be inverted (Hall 1992, J. R. Stat. Soc. B 54).  p is the
    largest, the interval covers all.

    skew  values of a; by default that of the differences
    """
    d = np.asarray(differences, dtype=np.float64)
    n, mean, sd = len(d), float(d.mean()), float(d.std(ddof=1))
    reach, size = -float(special.stdtrit(n - 1, (1 - confidence) / 2)) / math.sqrt(n), mean / sd
    low, high, least = mean - sd * reach, mean + sd * reach, abs(size)
    for a in (skewness(d),) if skew is None else skew:
        hall = size + a * size**2 / 3 + a**2 * size**3 / 27 + a / (6 * n)
        # A correction that turns the sign leaves no evidence for the direction that was seen.
        least = min(least, abs(hall) if (hall > 0) == (size > 0) else 0.0)
        ends = [mean - sd * _hall_inverse(side * reach, a, n) for side in (1, -1)]
        low, high = min(low, *ends), max(high, *ends)
    return low, high, 2 * float(special.stdtr(n - 1, -least * math.sqrt(n)))


def _hall_inverse(y: float, a: float, n: int) -> float:
    """S with g(S) = y."""
    # Without skewness g is S itself, and the formula below would divide 0 by 0.
    if abs(a) < 1e-9:
        return y
    return float(3 / a * (np.cbrt(1 + a * (y - a / (6 * n))) - 1))
