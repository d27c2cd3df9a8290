"""Power of the paired t-test: seeds needed for a difference, differences that n seeds detect.

A spread that a pilot measured is uncertain: with 2 pairs its 95 % interval spans a factor of 70.  A plan that takes it
as exact has a power of 0.5 to 0.7 instead of 0.8.  With `df`, the degrees of freedom of the pilot's sd, plans are by
assurance: the power averaged over sigma = sd sqrt(df / chi2_df), the posterior of the true spread under the prior
1 / sigma.  Source: O'Hagan, Stevens and Campbell 2005, doi:10.1002/pst.175.
"""

import math
from functools import lru_cache

import numpy as np
from scipy import special

MOST = 1_000_000  # seeds; upper limit of the search
SPREADS = 64  # quantiles of the true spread over which an assurance averages


def power(n: int, delta: float, sd: float, arms: int = 2, alpha: float = 0.05) -> float:
    """Return the chance that the paired t-test over n seeds detects a true difference `delta` (two-sided).

    t = d / (sd / sqrt(n)) has n - 1 degrees of freedom and noncentrality |delta| sqrt(n) / sd.
    sd: of the differences between two arms that share a seed.  arms: baseline included; each of the `arms - 1`
    comparisons is tested at alpha / (arms - 1), the first step of Holm's procedure.
    """
    _check(delta, sd, arms, alpha)
    if n < 2:
        return 0.0
    if sd == 0:
        return 1.0 if delta else 0.0
    shift = abs(delta) * math.sqrt(n) / sd
    limit = -special.stdtrit(n - 1, alpha / (arms - 1) / 2)
    wrong_side = float(special.nctdtr(n - 1, shift, -limit))  # scipy gives nan where it is below 1e-16
    return 1 - float(special.nctdtr(n - 1, shift, limit)) + (0.0 if math.isnan(wrong_side) else wrong_side)


def assurance(n: int, delta: float, sd: float, df: int, arms: int = 2, alpha: float = 0.05) -> float:
    """Return the expected power of n seeds if `sd` was measured with `df` degrees of freedom."""
    if df < 1:
        raise ValueError(f"a measured spread has 1 degree of freedom or more; {df} came")
    _check(delta, sd, arms, alpha)
    if n < 2 or sd == 0:
        return power(n, delta, sd, arms, alpha)
    spreads = sd * np.sqrt(df / special.chdtri(df, (np.arange(SPREADS) + 0.5) / SPREADS))
    shift = abs(delta) * math.sqrt(n) / spreads
    limit = -special.stdtrit(n - 1, alpha / (arms - 1) / 2)
    with np.errstate(over="ignore"):
        reached = 1 - special.nctdtr(n - 1, shift, limit)
    # scipy gives nan for a shift that is far beyond the limit, where the test cannot miss
    return float(np.where(np.isnan(reached), shift > limit, reached).mean())


def seeds_needed(
    delta: float, sd: float, arms: int = 2, alpha: float = 0.05, power: float = 0.8, df: int | None = None
) -> int:
    """Return the fewest seeds per arm that detect a true difference `delta` with this power.

    df: degrees of freedom of a measured sd, for a plan by assurance; None: the spread is known.

    Raises:
        ValueError: delta is 0, or more than MOST seeds would be needed.
    """
    _check(delta, sd, arms, alpha)
    if delta == 0:
        raise ValueError("no number of seeds shows a difference of 0; give the smallest one that would matter to you")
    if not 0 < power < 1:
        raise ValueError(f"a power is between 0 and 1; {power} came")
    low, high = 1, 2  # low: too few; high: enough after the first loop
    while _expected(high, delta, sd, arms, alpha, df) < power:
        if high >= MOST:
            raise ValueError(f"a difference of {delta:g} at a spread of {sd:g} needs more than {MOST:,} seeds")
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _expected(middle, delta, sd, arms, alpha, df) >= power else (middle, high)
    return high


def smallest_difference(
    n: int, sd: float, arms: int = 2, alpha: float = 0.05, power: float = 0.8, df: int | None = None
) -> float:
    """Return the smallest true difference that n seeds detect with this power; nan for fewer than two seeds.

    df: degrees of freedom of a measured sd, for a plan by assurance; None: the spread is known.
    """
    _check(0.0, sd, arms, alpha)
    if n < 2:
        return math.nan
    return sd * _smallest_ratio(n, arms, alpha, power, df) if sd else 0.0


@lru_cache(maxsize=4096)
def _smallest_ratio(n: int, arms: int, alpha: float, power: float, df: int | None) -> float:
    """Smallest difference in units of its sd; the same for all pairs of a study."""
    from scipy.optimize import brentq

    high = 1.0
    while _expected(n, high, 1.0, arms, alpha, df) < power:
        high *= 2
    return float(brentq(lambda delta: _expected(n, delta, 1.0, arms, alpha, df) - power, 0.0, high, xtol=1e-12 * high))


def _expected(n: int, delta: float, sd: float, arms: int, alpha: float, df: int | None) -> float:
    return _power(n, delta, sd, arms, alpha) if df is None else assurance(n, delta, sd, df, arms, alpha)


_power = power  # `power` is also an argument below


def _check(delta: float, sd: float, arms: int, alpha: float) -> None:
    if not (math.isfinite(delta) and math.isfinite(sd) and sd >= 0):
        raise ValueError(f"a finite difference and a spread of 0 or more are needed; {delta:g} and {sd:g} came")
    if arms < 2:
        raise ValueError(f"a comparison needs two arms or more; {arms} came")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is between 0 and 1; {alpha} came")
