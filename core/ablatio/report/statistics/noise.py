"""Noise of a score: spread over seeds, and sensitivity to the learning rate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from ablatio.report.statistics.power import smallest_difference


@dataclass(frozen=True, slots=True)
class Noise:
    """Spread of one arm over its seeds; what n seeds cannot determine is nan.

    low, high  95 % interval of sd (chi-square, for normally distributed scores)
    smallest   smallest true difference from another arm that n seeds detect with power 0.8, on average over what the
               true spread may be (`assurance`)
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    smallest: float


def noise(values: ArrayLike, *, correlation: float = 0.0, arms: int = 2) -> Noise:
    """Return the noise floor of one arm.

    correlation: between the scores of two arms over shared seeds; their difference has sd * sqrt(2 (1 - correlation)).
    The default 0 is conservative; a study with two arms can measure it.
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    n, mean = len(x), float(x.mean()) if len(x) else math.nan
    if n < 2:
        return Noise(n, mean, math.nan, math.nan, math.nan, math.nan)
    sd = float(x.std(ddof=1))
    low, high = (sd * math.sqrt((n - 1) / special.chdtri(n - 1, tail)) for tail in (0.025, 0.975))
    return Noise(n, mean, sd, low, high, smallest_difference(n, sd * math.sqrt(2 * (1 - correlation)), arms, df=n - 1))


def rate_sensitivity(losses: Mapping[float, float], initial: float) -> float:
    """Return mean over rates of min(loss, initial) - best loss, in nats: the cost of a randomly picked rate.

    Source: arXiv:2309.14322.  initial: the loss before training, which also stands for a diverged run (nan).  Each rate
    is weighted by its share of the log axis, so evenly spaced rates give the plain mean.

    Raises:
        ValueError: fewer than two learning rates.
    """
    if len(losses) < 2:
        raise ValueError(f"a sensitivity needs two learning rates or more; {len(losses)} came")
    rates = sorted(losses)
    found = np.array([losses[r] for r in rates], dtype=np.float64)
    found = np.minimum(np.where(np.isfinite(found), found, initial), initial)
    gaps = np.diff(np.log(rates))
    width = (np.append(gaps[0], gaps) + np.append(gaps, gaps[-1])) / 2
    return float(np.average(found - found.min(), weights=width))
