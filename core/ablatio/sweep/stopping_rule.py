"""The stopping rule of a sequential study: what each look decides on each comparison with the baseline.

resolved   Holm's procedure over the sequential p of all comparisons rejects "no difference" at alpha
equal      the repeated interval lies within the margin: two one-sided tests, each at alpha / comparisons
hopeless   neither can be expected by the last look: the predictive probability of each is below FUTILITY
untested   a run of the pair diverged: what is left is no fair sample of the arm

A comparison that is decided gets no further seeds.  Stopping for hopelessness is not binding: it never makes a false
claim, and no boundary counts on it.  Everything broadcasts, so that a simulation decides many studies at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ablatio.sweep.group_sequential import Boundaries, chance_to_be_equal, chance_to_resolve, repeated_interval

State = Literal["open", "resolved", "equal", "hopeless", "untested"]
OPEN, RESOLVED, EQUAL, HOPELESS, UNTESTED = range(5)
NAMES: tuple[State, ...] = get_args(State)
FUTILITY = 0.1  # predictive probability below which a comparison is hopeless
ROUNDING = 1e-12  # relative spread below which differences vary by rounding alone
PAIRS_TO_GIVE_UP = 3  # fewer do not show the spread

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StoppingRule:
    """Boundaries, level and margin of a sequential study.

    comparisons  number of arms besides the baseline
    margin       differences below it do not matter; None: equality is not tested
    """

    boundaries: Boundaries
    comparisons: int
    alpha: float = 0.05
    margin: float | None = None
    futility: float = FUTILITY

    @property
    def sizes(self) -> tuple[int, ...]:
        """Seeds at each look."""
        return self.boundaries.sizes

    def sequential_p(self, look: int, mean: Any, sd: Any, n: Any) -> Any:
        """Return the sequential p of look 0, 1, ...: the smallest level that the boundary of this look rejects."""
        return self.boundaries.level_of(look, t_test_p(mean, sd, n))

    def interval(self, look: int, mean: float, sd: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
        """Return the repeated interval of a mean difference at look 0, 1, ..."""
        return repeated_interval(mean, sd, n, self.boundaries.p_at(look, 1 - confidence))

    def decide(
        self, look: int, mean: Any, sd: Any, n: Any, before: Array, states: NDArray[np.int64]
    ) -> tuple[Array, NDArray[np.int64]]:
        """Return (sequential p, states) after look 0, 1, ...; all arrays are (..., comparisons).

        mean, sd, n    of the paired differences; nan where there is none
        before, states  sequential p and states after the look before; decided comparisons keep theirs
        """
        mean, sd, n = (np.asarray(x, dtype=np.float64) for x in np.broadcast_arrays(mean, sd, n))
        still = states == OPEN
        p = np.where(still, np.fmin(before, self.sequential_p(look, mean, sd, n)), before)
        found = np.where((sd == 0) & (mean == 0) & still, EQUAL, states)
        if self.margin is not None:
            found = np.where(self._is_equal(look, mean, sd, n) & (found == OPEN), EQUAL, found)
        found = np.where(self._rejected(p) & np.isin(found, (OPEN, HOPELESS)), RESOLVED, found)
        if look + 1 < len(self.sizes):
            found = np.where((found == OPEN) & self._is_hopeless(mean, sd, n, found), HOPELESS, found)
        return p, found

    def _rejected(self, p: Array) -> Any:
        """Holm's step-down procedure; nan counts as a comparison."""
        order = np.argsort(p, axis=-1)  # nan last
        passed = np.take_along_axis(p, order, -1) <= self.alpha / np.arange(self.comparisons, 0, -1)
        rejected = np.empty_like(passed)
        np.put_along_axis(rejected, order, np.logical_and.accumulate(passed, axis=-1), -1)
        return rejected

    def _is_equal(self, look: int, mean: Array, sd: Array, n: Array) -> Any:
        reach = -special.stdtrit(n - 1, self.boundaries.p_at(look, self._equality_level) / 2) * sd / np.sqrt(n)
        return np.abs(mean) + reach < self.margin

    @property
    def _equality_level(self) -> float:
        return min(1.0, 2 * self.alpha / self.comparisons)  # of both tests together: the boundaries are two-sided

    def _is_hopeless(self, mean: Array, sd: Array, n: Array, states: NDArray[np.int64]) -> Any:
        last, most = len(self.sizes) - 1, self.sizes[-1]
        left = np.maximum(1, self.comparisons - (states == RESOLVED).sum(-1, keepdims=True))
        needed = np.array([self.boundaries.p_at(last, self.alpha / k) for k in range(1, self.comparisons + 1)])
        pairs = np.minimum(n, most - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            chance = chance_to_resolve(mean, sd, pairs, most, needed[left - 1])
            if self.margin is not None:
                nominal = self.boundaries.p_at(last, self._equality_level)
                chance = np.maximum(chance, chance_to_be_equal(mean, sd, pairs, most, nominal, self.margin))
        return (chance < self.futility) & (n >= PAIRS_TO_GIVE_UP) & (sd > 0)


def t_test_p(mean: Any, sd: Any, n: Any) -> Any:
    """Two-sided p of the paired t-test; 1 for differences that are all 0, nan for other ones without spread."""
    mean, sd, n = (np.asarray(x, dtype=np.float64) for x in (mean, sd, n))
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * special.stdtr(n - 1, -np.abs(mean) / sd * np.sqrt(n))
    return np.where((sd > 0) & (n > 1), p, np.where((mean == 0) & (n > 1), 1.0, math.nan))


def moments(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, int]:
    """Return (mean, sd, n) of first - second; what n pairs cannot tell is nan, and rounding alone is no spread."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    d = a - b
    if len(d) < 2:
        return float(d.mean()) if len(d) else math.nan, math.nan, len(d)
    scale = ROUNDING * float(np.abs([a, b]).max())
    mean, sd = float(d.mean()), float(d.std(ddof=1))
    same = float(np.ptp(d)) <= scale
    return 0.0 if same and abs(mean) <= scale else mean, 0.0 if same else sd, len(d)
