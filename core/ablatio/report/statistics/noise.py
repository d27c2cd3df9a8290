"""How much of a score is chance: of seeds, of test questions, of the learning rate that was picked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from ablatio.report.statistics.power import smallest_difference


@dataclass(frozen=True, slots=True)
class Noise:
    """The spread of one arm over its seeds.

    low, high  a 95 % interval of sd (chi-square; for scores that vary normally)
    smallest   the smallest true difference to another arm that n seeds show with power 0.8
    What n seeds cannot say is nan.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    smallest: float


def noise(values: ArrayLike, *, correlation: float = 0.0, arms: int = 2) -> Noise:
    """The noise floor of one arm.

    correlation: between two arms over shared seeds; with it the difference varies by sd sqrt(2 (1 - correlation)).
    0 is the careful guess; a study with two arms knows better (`correlation`).
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    n, mean = len(x), float(x.mean()) if len(x) else math.nan
    if n < 2:
        return Noise(n, mean, math.nan, math.nan, math.nan, math.nan)
    sd = float(x.std(ddof=1))
    low, high = (sd * math.sqrt((n - 1) / special.chdtri(n - 1, tail)) for tail in (0.025, 0.975))
    return Noise(n, mean, sd, low, high, smallest_difference(n, sd * math.sqrt(2 * (1 - correlation)), arms))


def rate_sensitivity(losses: Mapping[float, float], initial: float) -> float:
    """What picking a learning rate blindly costs, in nats: mean over rates of min(loss, initial) - best loss.

    arXiv:2309.14322.  initial: the loss before training, which is also what a diverged run (nan) counts.  Each rate
    stands for its stretch of the log axis, so evenly spaced rates give the plain mean.
    """
    if len(losses) < 2:
        raise ValueError(f"a sensitivity needs two learning rates or more; {len(losses)} came")
    rates = sorted(losses)
    found = np.array([losses[r] for r in rates], dtype=np.float64)
    found = np.minimum(np.where(np.isfinite(found), found, initial), initial)
    gaps = np.diff(np.log(rates))
    width = (np.append(gaps[0], gaps) + np.append(gaps, gaps[-1])) / 2
    return float(np.average(found - found.min(), weights=width))
