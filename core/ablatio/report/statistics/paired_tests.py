"""Paired difference of two arms over shared seeds: mean, interval, p."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Method = Literal["t", "moderated", "skewed", "bootstrap", "permutation"]
Array = NDArray[np.floating[Any]]
ROUNDING = 1e-12  # relative spread below which differences vary by rounding alone


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of a - b over the n seeds that both have, with a 95 % interval [low, high] and a two-sided p.

    What n seeds cannot determine is nan: one seed gives no interval, no p and no sd; no seed gives no mean.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int
    sd: float
    method: str


def paired(
    a: ArrayLike, b: ArrayLike, *, method: Method = "t", confidence: float = 0.95, resamples: int = 9999, rng: int = 0
) -> Difference:
    """Return the difference a - b; a[i] and b[i] come from the same seed.

    t            paired t-test and its interval; the default.  For normally distributed differences its interval covers
                 the truth in 95 % of simulated studies for any n >= 2.
    bootstrap    BCa interval, with the p of `permutation`; for n >= 20.  It is too narrow for few seeds: in
                 tests/report/test_coverage.py it covers the truth in 72 % of studies with 3 seeds, 84 % with 5, 91 %
                 with 10.
    permutation  all 2^n sign flips of the differences (`resamples` random ones if there are more); its smallest p is
                 2^(1-n), so 5 seeds cannot reach 0.05.  The interval is that of the t-test.
    moderated    of several pairs (`compare`): one pair has no other to steady its variance, so this is t
    skewed       likewise of `compare`, which knows what other pairs say about the skewness; here this is t

    Raises:
        ValueError: the shapes differ, or a value is not finite (leave diverged runs out and count them, see `compare`).
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"one value per seed and arm is expected; shapes {first.shape} and {second.shape} came")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a diverged run has no value to compare: leave it out, and count it (see `compare`)")
    differences = first - second
    if len(differences) < 2:
        mean = float(differences[0]) if len(differences) else math.nan
        return Difference(mean, math.nan, math.nan, math.nan, len(differences), math.nan, "one seed: no test")
    scale = float(np.abs(np.concatenate([first, second])).max())
    if np.ptp(differences) <= ROUNDING * scale:
        return _without_spread(differences, scale)
    mean, sd, low, high, p = (float(x) for x in t_test(differences, confidence))
    if method in ("t", "moderated", "skewed"):
        return Difference(mean, low, high, p, len(differences), sd, "paired t")
    p = sign_flips(differences, resamples, rng)
    if method == "permutation":
        return Difference(mean, low, high, p, len(differences), sd, "sign flips")
    low, high = bca(differences, confidence, resamples, rng)
    return Difference(mean, low, high, p, len(differences), sd, "BCa bootstrap, sign flips")


def _without_spread(differences: Array, scale: float) -> Difference:
    """All seeds agree to the last digit: the arms are identical, or their spread cannot be estimated."""
    mean, n = float(differences.mean()), len(differences)
    if abs(mean) <= ROUNDING * scale:
        return Difference(0.0, 0.0, 0.0, 1.0, n, 0.0, "equal in every seed")
    return Difference(mean, math.nan, math.nan, math.nan, n, 0.0, "identical difference in every seed: no test")


def t_test(differences: ArrayLike, confidence: float = 0.95) -> tuple[Any, Any, Any, Any, Any]:
    """Over the last axis of (..., n): mean, sd, low, high and two-sided p of t = mean / (sd / sqrt(n))."""
    d = np.asarray(differences, dtype=np.float64)
    n = d.shape[-1]
    mean, sd = d.mean(-1), d.std(-1, ddof=1)
    error = sd / math.sqrt(n)
    reach = error * -special.stdtrit(n - 1, (1 - confidence) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * special.stdtr(n - 1, -np.abs(mean / error))
    return mean, sd, mean - reach, mean + reach, p


def bca(values: Sequence[float] | Array, confidence: float, resamples: int, rng: int) -> tuple[float, float]:
    """Return the bias-corrected and accelerated bootstrap interval of the mean, with a fixed random seed."""
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (values,), np.mean, confidence_level=confidence, n_resamples=resamples, method="BCa", rng=rng
        )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def sign_flips(differences: Array, resamples: int, rng: int) -> float:
    """Return the share of sign patterns with a mean as far from 0 as the observed one; exact for 2^n <= `resamples`."""
    from scipy import stats

    found = stats.permutation_test(
        (differences,), lambda d, axis: d.mean(axis), vectorized=True, permutation_type="samples",
        n_resamples=resamples, rng=rng,
    )  # fmt: skip
    return float(found.pvalue)
