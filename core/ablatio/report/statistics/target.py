"""Test whether arms reach a target, and from which step on, when all seeds of an arm stop at one step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from ablatio.report.statistics.equivalence import one_sided


@dataclass(frozen=True, slots=True)
class TargetTest:
    """Whether the true mean of an arm is beyond a target.

    n, diverged  seeds with a value, and seeds without one because they diverged
    bound        one-sided 1 - alpha confidence limit of the mean, on the side of the target; not corrected
    p            of H0: the true mean is not beyond the target; times the number of arms.  nan: no test
    reached      p <= alpha
    """

    n: int
    diverged: int
    mean: float
    bound: float
    p: float
    reached: bool


def against_target(
    values: Mapping[str, ArrayLike], target: float, *, better: str = "low", alpha: float = 0.05
) -> dict[str, TargetTest]:
    """One-sided one-sample t-test of each arm's seeds against a target, Bonferroni over the arms.

    A diverged seed (nan or infinity) has not reached the target, so an arm with one has no test: its other seeds would
    speak for a selection of the runs.
    """
    return {
        arm: _test(np.asarray(v, dtype=np.float64), target, better, alpha, len(values)) for arm, v in values.items()
    }


def _test(x: np.ndarray, target: float, better: str, alpha: float, arms: int) -> TargetTest:
    sound = x[np.isfinite(x)]
    n, lost = len(sound), len(x) - len(sound)
    mean = float(sound.mean()) if n else math.nan
    sd = float(sound.std(ddof=1)) if n > 1 else math.nan
    if n < 2 or lost:
        return TargetTest(n, lost, mean, math.nan, math.nan, False)
    sign = -1.0 if better == "low" else 1.0
    reach = -float(special.stdtrit(n - 1, alpha)) * sd / math.sqrt(n)
    p = min(1.0, arms * one_sided(sign * mean, sd, n, sign * target)) if sd else math.nan
    return TargetTest(n, lost, mean, mean - sign * reach, p, p <= alpha)


def stopping_step(
    steps: Sequence[int], values: ArrayLike, target: float, *, better: str = "low", alpha: float = 0.05, arms: int = 1
) -> int | None:
    """Earliest step at which, and at all later ones, the mean over seeds is shown to be beyond the target.

    steps, values  S ascending steps and the scores there, (seeds, S): every seed is evaluated at the same step, none is
                   stopped where its own loss happens to be low

    The steps are tested from the last one backwards, each at alpha / arms, until one fails.  In this fixed order no
    further correction is needed: the first false claim needs one test at alpha to fail (Maurer, Hothorn and Lehmacher
    1995).  Choosing the earliest of all steps with p <= alpha would not keep alpha.  None: not even the last step.
    """
    x = np.asarray(values, dtype=np.float64)
    found: int | None = None
    for step, column in zip(reversed(steps), x.T[::-1], strict=True):
        if not _test(column, target, better, alpha, arms).reached:
            break
        found = step
    return found
