"""Group-sequential paired t-tests: boundaries by alpha spending, sequential p, repeated intervals, futility.

A comparison is tested at planned looks with n_1 < ... < n_K pairs of runs.  By look k the test may have spent

    a(s_k) = level * s_k ** 1.5,    s_k = n_k / n_K

of its level: alpha spending (Lan and DeMets 1983, doi:10.1093/biomet/70.3.659) by the power family (Kim and DeMets
1987, doi:10.1093/biomet/74.1.149).  The boundary of look k is a nominal two-sided p: the test rejects if the p of the
paired t-test over n_k pairs is at most that.  Spending of O'Brien-Fleming type leaves the looks
at 3 to 6 seeds so little that they hardly ever reject, and needs a few percent more runs (benchmarks/
validity_sequential.py).

The usual boundaries assume normal statistics and exceed their level with few pairs.  These are computed for t
statistics.  With normal differences under the null hypothesis, the direction of the data is independent of their mean
and spread, so the earlier t statistics can be simulated given the t of look k, however small its p:

    P(first rejection at look k) = p_k (1 - P(rejection at an earlier look | |T_k| beyond its boundary))

The draws are fixed, so the boundaries are the same on each machine.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]
DRAWS = 4096  # simulated paths; the error of a boundary's p is about 1 %
POWER = 1.5  # of the spending function
LEAST_LEVEL = 1e-6  # smallest sequential p that is told apart
LEVELS = tuple(float(f"{x:.6g}") for x in np.logspace(math.log10(LEAST_LEVEL), 0, 16))
GROWTH = 1.1  # factor between the seeds of two looks


def look_sizes(first: int, most: int) -> tuple[int, ...]:
    """Return the seeds at each look: `first`, then one or about 10 % more each time, `most` at last.

    Raises:
        ValueError: first < 2 or most < first.
    """
    if first < 2 or most < first:
        raise ValueError(f"looks from {first} to {most} seeds came; a first look needs 2 seeds, the last as many")
    sizes = [first]
    while sizes[-1] < most:
        sizes.append(min(most, max(sizes[-1] + 1, math.ceil(sizes[-1] * GROWTH - 1e-9))))
    if len(sizes) > 2 and sizes[-1] - sizes[-2] < sizes[-2] - sizes[-3]:
        del sizes[-2]  # a last look after few seeds may spend little, and costs a tenth of the power
    return tuple(sizes)


def spent(level: ArrayLike, share: ArrayLike) -> Any:
    """Return how much of `level` may be spent when the share n_k / n_K of the pairs is there."""
    return np.asarray(level, dtype=np.float64) * np.asarray(share, dtype=np.float64) ** POWER


@dataclass(frozen=True, slots=True)
class Boundaries:
    """Nominal p of each look for a grid of levels.

    sizes    pairs at each look
    levels   ascending, from LEAST_LEVEL to 1
    nominal  (levels, looks): p of the paired t-test at or below which a test of this level rejects at this look
    """

    sizes: tuple[int, ...]
    levels: tuple[float, ...]
    nominal: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, sizes: Sequence[int]) -> "Boundaries":
        """Compute the boundaries for these looks."""
        found = _nominal(tuple(sizes), LEVELS)
        return cls(tuple(sizes), LEVELS, tuple(tuple(float(f"{p:.6g}") for p in row) for row in found))

    @classmethod
    def read(cls, data: Any) -> "Boundaries":
        """Read what `as_dict` wrote."""
        return cls(tuple(data["sizes"]), tuple(data["levels"]), tuple(tuple(row) for row in data["nominal"]))

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for study.json."""
        return asdict(self)

    def p_at(self, look: int, level: float) -> float:
        """Nominal p of look 0, 1, ... for a test of this level; levels between those of the grid are interpolated."""
        column = np.log([row[look] for row in self.nominal])
        return float(np.exp(np.interp(math.log(max(level, LEAST_LEVEL)), np.log(self.levels), column)))

    def level_of(self, look: int, p: ArrayLike) -> Any:
        """Smallest level whose test rejects at look 0, 1, ... when the paired t-test has this p; nan stays nan."""
        column = np.log([row[look] for row in self.nominal])
        with np.errstate(divide="ignore"):
            asked = np.log(np.asarray(p, dtype=np.float64))
        keep = np.append(np.diff(column) > 0, True)  # of equal boundaries the largest level: the claim is the weakest
        found = np.exp(np.interp(asked, column[keep], np.log(self.levels)[keep]))
        return np.where(asked > column[-1], 1.0, found)


def _nominal(sizes: tuple[int, ...], levels: Sequence[float]) -> Array:
    """Solve for the nominal p of each look and level."""
    earlier = _Paths(sizes)
    shares = np.array(sizes) / sizes[-1]
    found = np.empty((len(levels), len(sizes)))
    for i, level in enumerate(levels):
        budget = spent(level, shares)
        found[i, 0] = budget[0]
        for k in range(1, len(sizes)):
            found[i, k] = earlier.solve(k, found[i, :k], budget[k] - budget[k - 1], budget[k - 1])
    # A smaller level must not have a wider boundary: sequential p values need nested rejections.
    return np.minimum.accumulate(found[::-1], axis=0)[::-1]


class _Paths:
    """Simulated t statistics of earlier looks, given the t of a later one."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        rng = np.random.default_rng(20261128)
        n = np.array(sizes, dtype=np.float64)
        steps = np.diff(n, prepend=0.0)
        means = rng.normal(size=(DRAWS, len(n))) / np.sqrt(steps)
        within = np.where(steps > 1, 2 * rng.standard_gamma(np.maximum(steps - 1, 1e-9) / 2, size=means.shape), 0.0)
        sums, squares = np.cumsum(steps * means, 1), np.cumsum(within + steps * means**2, 1)
        self.n, self.mean = n, sums / n
        self.sd = np.sqrt(np.maximum(squares - sums**2 / n, 1e-300) / (n - 1))
        self.tail = (rng.permutation(DRAWS) + 0.5) / DRAWS  # stratified
        self.grid = np.linspace(math.log(1e-15), 0.0, 2000)  # of log p: its t is interpolated, 50 times faster
        self.t = [-special.stdtrit(size - 1, np.exp(self.grid) / 2) for size in sizes]

    def solve(self, k: int, nominal: Array, target: float, before: float) -> float:
        """Return p with P(|T_k| beyond p, no earlier rejection) = target; before: the level spent so far."""
        limits = np.array([self._t(j, p) for j, p in enumerate(nominal)])
        shift = (self.mean[:, :k] - self.mean[:, k : k + 1]) / self.sd[:, k : k + 1]
        scale = self.sd[:, :k] / self.sd[:, k : k + 1] / np.sqrt(self.n[:k])
        above = (limits * scale - shift).min(1)  # a t beyond these crosses an earlier boundary
        below = (-limits * scale - shift).max(1)
        p = target  # f(p) = p * clear(p), and clear changes slowly: the iteration converges within 1e-3 in 6 steps
        for _ in range(6):
            t = self._t(k, p * self.tail) / math.sqrt(self.n[k])
            clear = float(((below <= t) & (t <= above)).mean())
            p = min(target + before, target / max(clear, 1 / DRAWS))
        return p

    def _t(self, k: int, p: Any) -> Any:
        return np.interp(np.log(p), self.grid, self.t[k])


def repeated_interval(mean: float, sd: float, n: int, nominal: float) -> tuple[float, float]:
    """Return mean -+ t_(1 - nominal / 2, n - 1) sd / sqrt(n): the repeated interval of a look with this nominal p.

    The intervals of all looks cover the true difference at once, with the confidence of the boundary's level, whatever
    made the study stop.  Source: Jennison and Turnbull 1989, doi:10.1111/j.2517-6161.1989.tb01433.x.
    """
    reach = float(_reach(sd, n, nominal))
    return mean - reach, mean + reach


def chance_to_resolve(mean: ArrayLike, sd: ArrayLike, n: ArrayLike, most: int, nominal: ArrayLike) -> Any:
    """Return the predictive probability that the t-test over `most` pairs reaches its boundary `nominal`.

    mean, sd: of the n < most differences so far.  The mean of the remaining differences is predicted from these, with a
    flat prior: t with n - 1 degrees of freedom; their spread is taken as it is.
    """
    reach = _reach(sd, most, nominal)
    return _below(-reach, mean, sd, n, most) + 1 - _below(reach, mean, sd, n, most)


def chance_to_be_equal(
    mean: ArrayLike, sd: ArrayLike, n: ArrayLike, most: int, nominal: ArrayLike, margin: float
) -> Any:
    """Return the predictive probability that the repeated interval over `most` pairs lies within -+ margin."""
    room = np.maximum(margin - _reach(sd, most, nominal), 0.0)
    return np.maximum(_below(room, mean, sd, n, most) - _below(-room, mean, sd, n, most), 0.0)


def _reach(sd: ArrayLike, n: ArrayLike, nominal: ArrayLike) -> Any:
    """Half the width of the repeated interval."""
    pairs = np.asarray(n, dtype=np.float64)
    return -special.stdtrit(pairs - 1, np.asarray(nominal) / 2) * np.asarray(sd, dtype=np.float64) / np.sqrt(pairs)


def _below(limit: Any, mean: ArrayLike, sd: ArrayLike, n: ArrayLike, most: int) -> Any:
    """Predictive probability that the mean of all `most` differences is below `limit`."""
    pairs = np.asarray(n, dtype=np.float64)
    spread = np.asarray(sd, dtype=np.float64) * np.sqrt(1 / pairs - 1 / most)
    return special.stdtr(pairs - 1, (limit - np.asarray(mean, dtype=np.float64)) / spread)
