"""Power of the paired t-test: seeds needed for a difference, differences that n seeds detect."""

import math

import numpy as np
from scipy import special

MOST = 1_000_000  # seeds; upper limit of the search


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
    wrong_side = special.nctdtr(n - 1, shift, -limit)  # scipy gives nan where it is below 1e-16
    return float(1 - special.nctdtr(n - 1, shift, limit) + np.nan_to_num(wrong_side))


def seeds_needed(delta: float, sd: float, arms: int = 2, alpha: float = 0.05, power: float = 0.8) -> int:
    """Return the fewest seeds per arm that detect a true difference `delta` with this power.

    Raises:
        ValueError: delta is 0, or more than MOST seeds would be needed.
    """
    _check(delta, sd, arms, alpha)
    if delta == 0:
        raise ValueError("no number of seeds shows a difference of 0; give the smallest one that would matter to you")
    if not 0 < power < 1:
        raise ValueError(f"a power is between 0 and 1; {power} came")
    low, high = 1, 2  # low: too few; high: enough after the first loop
    while _power(high, delta, sd, arms, alpha) < power:
        if high >= MOST:
            raise ValueError(f"a difference of {delta:g} at a spread of {sd:g} needs more than {MOST:,} seeds")
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, delta, sd, arms, alpha) >= power else (middle, high)
    return high


def smallest_difference(n: int, sd: float, arms: int = 2, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest true difference that n seeds detect with this power; nan for fewer than two seeds."""
    from scipy.optimize import brentq

    _check(0.0, sd, arms, alpha)
    if n < 2:
        return math.nan
    if sd == 0:
        return 0.0
    high = sd
    while _power(n, high, sd, arms, alpha) < power:
        high *= 2
    return float(brentq(lambda delta: _power(n, delta, sd, arms, alpha) - power, 0.0, high, xtol=1e-12 * high))


_power = power  # `power` is also an argument below


def _check(delta: float, sd: float, arms: int, alpha: float) -> None:
    if not (math.isfinite(delta) and math.isfinite(sd) and sd >= 0):
        raise ValueError(f"a finite difference and a spread of 0 or more are needed; {delta:g} and {sd:g} came")
    if arms < 2:
        raise ValueError(f"a comparison needs two arms or more; {arms} came")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is between 0 and 1; {alpha} came")
